"""What the synchronous tests stand on: a client, and how a refusal is checked."""

import unittest

import grpc
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from samples import address, check_pair, pair, pair_inputs

WAIT = 30  # seconds for an answer that a callback brings


class Case(unittest.TestCase):
    def setUp(self):
        self.client = InferenceServerClient(address())
        self.addCleanup(self.client.close)

    def refused(self, code, *parts):
        """The block must raise this code, with each of the parts in its text."""
        return _Refused(self, code, parts)

    def check_alive(self):
        first, second = pair(1, seed=1)
        check_pair(self, self.client.infer("add_sub", pair_inputs(first, second)), first, second)


class _Refused:
    def __init__(self, case, code, parts):
        self.case, self.code, self.parts = case, code, parts

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if kind is None:
            self.case.fail(f"nothing was refused, expected {self.code}")
        if not isinstance(error, (InferenceServerException, grpc.RpcError)):
            return False
        raw = isinstance(error, grpc.RpcError)
        code, text = (str(error.code()), error.details()) if raw else (error.status(), error.message())
        self.case.assertEqual(code, self.code, text)
        for part in self.parts:
            self.case.assertIn(part, text)
        self.case.assertNotIn("\n", text)
        return True
