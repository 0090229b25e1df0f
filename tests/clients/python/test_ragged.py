"""Ragged batches through tritonclient, by the configuration of Triton's own documentation.

Modelled on what Triton's test L0_batch_input checks: requests of different lengths run in one batch, of which
the model gets all elements in one dimension, and where each request ends.
"""

import json
import os
import queue
import unittest
from pathlib import Path

import numpy as np

from case import WAIT, Case
from samples import INVALID_ARGUMENT, tensor

MINUTE = 60_000_000  # microseconds: nothing here waits as long
LENGTHS = [3, 4, 5]


def setUpModule():
    if "SCONCE_RAGGED" not in os.environ:
        raise unittest.SkipTest("these have a server of their own, see tests/clients.rs")


def config(batching: dict) -> str:
    def described(name, dims, **more):
        return {"name": name, "data_type": "TYPE_FP32", "dims": dims, **more}

    return json.dumps(
        {
            "backend": "pytorch",
            "max_batch_size": 16,
            "input": [described("INPUT", [-1], allow_ragged_batch=True)],
            "batch_input": [
                {
                    "kind": "BATCH_ACCUMULATED_ELEMENT_COUNT",
                    "target_name": ["INDEX"],
                    "data_type": "TYPE_FP32",
                    "source_input": ["INPUT"],
                }
            ],
            "output": [described("CENTRED", [-1]), described("SUM", [1]), described("REQUESTS", [1])],
            "batch_output": [
                {
                    "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE",
                    "target_name": ["CENTRED"],
                    "source_input": ["INPUT"],
                }
            ],
            "instance_group": [{"kind": "KIND_CPU"}],
            "dynamic_batching": batching,
        }
    )


class Ragged(Case):
    def load(self, batching: dict):
        files = {"file:1/model.pt": Path(os.environ["SCONCE_RAGGED"]).read_bytes()}
        self.client.load_model("ragged", config=config(batching), files=files)
        self.addCleanup(self.client.unload_model, "ragged")

    def values(self, length: int) -> np.ndarray:
        return np.arange(1, length + 1, dtype=np.float32).reshape(1, length) * length

    def check(self, result, length: int, requests: int):
        values = self.values(length)
        np.testing.assert_array_equal(result.as_numpy("CENTRED"), values - values.sum())
        np.testing.assert_array_equal(result.as_numpy("SUM"), [[values.sum()]])
        np.testing.assert_array_equal(result.as_numpy("REQUESTS"), [[requests]])

    def test_requests_of_any_length_run_in_one_batch(self):
        # The example of Triton's documentation: requests of 3, 4 and 5 elements.
        self.load({"preferred_batch_size": [3], "max_queue_delay_microseconds": MINUTE})
        answers = queue.Queue()
        for length in LENGTHS:
            self.client.async_infer(
                "ragged",
                [tensor("INPUT", self.values(length))],
                lambda result, error, length=length: answers.put((length, result, error)),
            )
        for _ in LENGTHS:
            length, result, error = answers.get(timeout=WAIT)
            self.assertIsNone(error)
            self.check(result, length, len(LENGTHS))

    def test_a_lone_request_is_answered_in_the_same_layout(self):
        self.load({})
        for length in [1, 300]:
            self.check(self.client.infer("ragged", [tensor("INPUT", self.values(length))]), length, 1)

    def test_what_the_server_makes_is_no_input(self):
        self.load({})
        metadata = self.client.get_model_metadata("ragged")
        self.assertEqual([(each.name, list(each.shape)) for each in metadata.inputs], [("INPUT", [-1, -1])])
        shown = self.client.get_model_config("ragged").config
        self.assertTrue(shown.input[0].allow_ragged_batch)
        self.assertEqual(list(shown.batch_input[0].target_name), ["INDEX"])
        self.assertEqual(list(shown.batch_output[0].source_input), ["INPUT"])
        with self.refused(INVALID_ARGUMENT, "unexpected inference input 'INDEX'"):
            index = tensor("INDEX", np.array([[3]], np.float32))
            self.client.infer("ragged", [tensor("INPUT", self.values(3)), index])


if __name__ == "__main__":
    unittest.main()
