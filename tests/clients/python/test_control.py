"""Loading and unloading by tritonclient, synchronous and asyncio."""

import asyncio
import json
import unittest

import tritonclient.grpc.aio as aio
from tritonclient.grpc import model_config_pb2

from case import Case
from samples import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    REPOSITORY,
    address,
    check_pair,
    pair,
    pair_inputs,
)


def config(batch: int, **more) -> str:
    """What add_sub is served by, as clients of Triton write it."""

    def tensor(name):
        return {"name": name, "data_type": "TYPE_FP32", "dims": [16]}

    inputs, outputs = ["INPUT0", "INPUT1"], ["OUTPUT__0", "OUTPUT__1"]
    return json.dumps(
        {
            "backend": "pytorch",
            "max_batch_size": batch,
            "input": [tensor(name) for name in inputs],
            "output": [tensor(name) for name in outputs],
            **more,
        }
    )


class Control(Case):
    def rows(self, name):
        models = self.client.get_model_repository_index().models
        return [(row.version, row.state, row.reason) for row in models if row.name == name]

    def check_pair(self, name):
        first, second = pair(2, seed=3)
        check_pair(self, self.client.infer(name, pair_inputs(first, second)), first, second)

    def test_a_model_is_unloaded_and_loaded(self):
        self.addCleanup(self.client.load_model, "add_sub")
        for dependents in [False, True]:
            self.client.unload_model("add_sub", unload_dependents=dependents)
            self.assertFalse(self.client.is_model_ready("add_sub"))
            self.assertTrue(self.client.is_server_ready())
            self.assertEqual(self.rows("add_sub"), [("1", "UNAVAILABLE", "unloaded")])
            with self.refused(NOT_FOUND, "'add_sub' has no available versions"):
                self.check_pair("add_sub")
            self.client.load_model("add_sub")
            self.assertEqual(self.rows("add_sub"), [("1", "READY", "")])
            self.check_pair("add_sub")

    def test_a_configuration_comes_with_the_order(self):
        self.addCleanup(self.client.load_model, "add_sub")
        self.client.load_model("add_sub", config=config(3, instance_group=[{"kind": "KIND_CPU", "count": 2}]))
        told = self.client.get_model_config("add_sub").config
        self.assertEqual(told.max_batch_size, 3)
        self.assertEqual(told.instance_group[0].count, 2)
        self.assertEqual(told.input[0].data_type, model_config_pb2.TYPE_FP32)
        first, second = pair(4, seed=4)
        with self.refused(INVALID_ARGUMENT, "add_sub"):
            self.client.infer("add_sub", pair_inputs(first, second))
        self.check_pair("add_sub")
        self.client.load_model("add_sub")
        self.assertEqual(self.client.get_model_config("add_sub").config.max_batch_size, 8)
        self.client.infer("add_sub", pair_inputs(first, second))

    def test_a_wrong_configuration_changes_nothing(self):
        for wrong in ["{", '{"no_such_field": 1}', config(-1)]:
            with self.subTest(wrong), self.refused(INVALID_ARGUMENT, "failed to load 'add_sub'"):
                self.client.load_model("add_sub", config=wrong)
        self.check_pair("add_sub")

    def test_files_come_with_the_order(self):
        self.addCleanup(self.client.unload_model, "sent")
        files = {"file:5/model.pt": (REPOSITORY / "add_sub/1/model.pt").read_bytes()}
        self.client.load_model("sent", config=config(8), files=files)
        self.assertEqual(self.rows("sent"), [("5", "READY", "")])
        self.check_pair("sent")
        broken = {"file:6/model.pt": b"this is no model"}
        with self.refused(INVALID_ARGUMENT, "load failed for model 'sent'", "version 6 is at UNAVAILABLE state"):
            self.client.load_model("sent", config=config(8), files=broken)
        self.client.unload_model("sent")
        self.assertFalse(self.client.is_model_ready("sent"))
        self.assertFalse((REPOSITORY / "sent").exists())

    def test_no_path_leads_out(self):
        for name in ["../5/model.pt", "5/../../model.pt", "/5/model.pt", "5//etc/passwd", "0/model.pt"]:
            with self.subTest(name), self.refused(INVALID_ARGUMENT, "file:<version>/<path>"):
                self.client.load_model("sent", config=config(8), files={f"file:{name}": b"x"})
        for name in ["", "..", "../digits", "a/b"]:
            with self.subTest(name), self.refused(INVALID_ARGUMENT, "cannot be the name of a model"):
                self.client.load_model(name)
        with self.refused(NOT_FOUND, "failed to load 'nobody'"):
            self.client.load_model("nobody")

    def test_asyncio_does_the_same(self):
        self.addCleanup(self.client.load_model, "add_sub")

        async def run():
            async with aio.InferenceServerClient(address()) as client:
                await client.unload_model("add_sub")
                self.assertFalse(await client.is_model_ready("add_sub"))
                calls = [client.load_model("add_sub") for _ in range(20)]
                await asyncio.gather(*calls)
                self.assertTrue(await client.is_model_ready("add_sub"))

        asyncio.run(run())


if __name__ == "__main__":
    unittest.main()
