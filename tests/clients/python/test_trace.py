"""Trace settings through tritonclient, synchronous and asyncio.

Modelled on what Triton's tests L0_trace (trace_endpoint_test.py) check of the endpoint.
"""

import asyncio
import json
import os
import unittest

import tritonclient.grpc.aio as aio
from google.protobuf import json_format

from case import Case
from samples import INVALID_ARGUMENT, NOT_FOUND, address

DEFAULTS = {
    "trace_file": [""],
    "trace_level": ["TIMESTAMPS"],
    "trace_rate": ["1"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_mode": ["opentelemetry"],
}
CHANGEABLE = ["trace_level", "trace_rate", "trace_count"]


def setUpModule():
    if "SCONCE_TRACED" not in os.environ:
        raise unittest.SkipTest("these have a server of their own, see tests/clients.rs")


def values(settings) -> dict:
    """Settings as lists by name, from the dict or the message that a client gives."""
    if not isinstance(settings, dict):
        settings = json.loads(json_format.MessageToJson(settings, preserving_proto_field_name=True))
    return {name: setting.get("value", []) for name, setting in settings["settings"].items()}


class TraceSettings(Case):
    def setUp(self):
        super().setUp()
        clear = {name: None for name in CHANGEABLE}
        for model in ["", "add_sub"]:
            self.addCleanup(self.client.update_trace_settings, model_name=model, settings=clear)

    def told(self, model=None):
        return values(self.client.get_trace_settings(model_name=model, as_json=True))

    def test_settings_are_told_as_messages_and_as_json(self):
        self.assertEqual(self.told(), DEFAULTS)
        self.assertEqual(self.told("add_sub"), DEFAULTS)
        self.assertEqual(values(self.client.get_trace_settings()), DEFAULTS)

    def test_settings_of_one_model_are_its_own_until_they_are_cleared(self):
        updated = self.client.update_trace_settings(
            model_name="add_sub", settings={"trace_rate": "12", "trace_level": ["OFF"]}, as_json=True
        )
        own = {**DEFAULTS, "trace_rate": ["12"], "trace_level": ["OFF"]}
        self.assertEqual(values(updated), own)
        self.assertEqual(self.told("add_sub"), own)
        self.assertEqual(self.told(), DEFAULTS)
        self.client.update_trace_settings(settings={"trace_rate": "7", "trace_count": "9"})
        self.assertEqual(self.told("add_sub"), {**own, "trace_count": ["9"]})
        self.client.update_trace_settings(model_name="add_sub", settings={"trace_rate": None, "trace_level": []})
        self.assertEqual(self.told("add_sub"), {**DEFAULTS, "trace_rate": ["7"], "trace_count": ["9"]})
        self.client.update_trace_settings(settings={"trace_rate": None, "trace_count": None})
        self.assertEqual(self.told(), DEFAULTS)

    def test_what_cannot_be_is_refused_by_name(self):
        wrong = [
            ({"trace_file": "trace.log"}, "trace_file"),
            ({"log_frequency": "50"}, "log_frequency"),
            ({"trace_mode": "triton"}, "trace_mode"),
            ({"trace_level": ["TIMESTAMPS", "TENSORS"]}, "TENSORS"),
            ({"trace_level": "LOUD"}, "LOUD"),
            ({"trace_rate": "often"}, "often"),
            ({"trace_rate": ["1", "2"]}, "trace_rate"),
            ({"do-not-exist": "1"}, "do-not-exist"),
        ]
        for settings, part in wrong:
            with self.refused(INVALID_ARGUMENT, part):
                self.client.update_trace_settings(settings=settings)
        self.assertEqual(self.told(), DEFAULTS)
        for call in [self.client.get_trace_settings, self.client.update_trace_settings]:
            with self.refused(NOT_FOUND, "nobody"):
                call(model_name="nobody")
        self.check_alive()

    def test_clients_find_the_extension(self):
        self.assertIn("trace", self.client.get_server_metadata().extensions)


class AsyncTraceSettings(unittest.TestCase):
    def test_settings_are_changed_and_told(self):
        async def change():
            async with aio.InferenceServerClient(address()) as client:
                updated = await client.update_trace_settings(settings={"trace_rate": "3"}, as_json=True)
                told = await client.get_trace_settings(model_name="add_sub", as_json=True)
                await client.update_trace_settings(settings={"trace_rate": None})
                return values(updated), values(told)

        for told in asyncio.run(change()):
            self.assertEqual(told, {**DEFAULTS, "trace_rate": ["3"]})


if __name__ == "__main__":
    unittest.main()
