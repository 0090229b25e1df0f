"""The settings of the log, changed and told through tritonclient, as Triton's own tests do it."""

import asyncio
import os
import unittest

import tritonclient.grpc.aio
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from case import Case
from samples import address

INITIAL = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
INVALID = "StatusCode.INVALID_ARGUMENT"


def setUpModule():
    if "SCONCE_LOGGING" not in os.environ:
        raise unittest.SkipTest("these have a server of their own, see tests/clients.rs")


def message(settings):
    """The answer that has these settings."""
    fields = {bool: "boolParam", int: "uint32Param", str: "stringParam"}
    values = {name: {fields[type(value)]: value} for name, value in settings.items()}
    return json_format.ParseDict({"settings": values}, service_pb2.LogSettingsResponse())


class Logging(Case):
    def setUp(self):
        super().setUp()
        self.assertEqual(self.client.get_log_settings(), message(INITIAL))
        self.addCleanup(self.reset)

    def reset(self):
        settings = {name: value for name, value in INITIAL.items() if name != "log_file"}
        self.assertEqual(self.client.update_log_settings(settings), message(INITIAL))
        self.client.close()

    def test_every_setting_is_told_back(self):
        told = dict(INITIAL)
        for name, value in [
            ("log_info", False),
            ("log_warning", False),
            ("log_error", False),
            ("log_verbose_level", 1),
            ("log_format", "ISO8601"),
            ("log_verbose_level", 4294967295),
            ("log_format", "json"),
            ("log_info", True),
        ]:
            told[name] = value
            self.assertEqual(self.client.update_log_settings({name: value}), message(told))
            self.assertEqual(self.client.get_log_settings(), message(told))
        self.assertEqual(self.client.get_log_settings(as_json=True)["settings"]["log_info"], {"bool_param": True})

    def test_all_at_once_as_they_were_told(self):
        changed = {**INITIAL, "log_info": False, "log_verbose_level": 2}
        self.assertEqual(self.client.update_log_settings(changed), message(changed))

    def test_what_cannot_be_set_is_refused_and_nothing_is_changed(self):
        with self.refused(INVALID, "log file location can not be updated through network protocol"):
            self.client.update_log_settings({"log_info": False, "log_file": "log_file.log"})
        with self.refused(INVALID, "invalid argument for log_format, got: 'ISO 8601\\n'"):
            self.client.update_log_settings({"log_info": False, "log_format": "ISO 8601\n"})
        with self.refused(INVALID, "'log_warnings'", "log_warning,"):
            self.client.update_log_settings({"log_info": False, "log_warnings": False})
        # A key without a value.
        for name, kind in [("log_info", "boolean"), ("log_verbose_level", "int32"), ("log_format", "string")]:
            with self.refused(INVALID, f"expect {kind} for '{name}'"):
                self.client.update_log_settings({"log_error": False, name: None})
        self.assertEqual(self.client.get_log_settings(), message(INITIAL))

    def test_asyncio(self):
        async def change():
            async with tritonclient.grpc.aio.InferenceServerClient(address()) as client:
                await client.update_log_settings({"log_warning": False})
                return await client.get_log_settings()

        self.assertEqual(asyncio.run(change()), message({**INITIAL, "log_warning": False}))

    def test_the_extension_is_told(self):
        self.assertIn("logging", self.client.get_server_metadata().extensions)


if __name__ == "__main__":
    unittest.main()
