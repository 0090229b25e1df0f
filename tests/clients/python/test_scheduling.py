"""Queues, priorities, timeouts and batches through tritonclient, by Triton's own configuration.

Modelled on what Triton's tests L0_model_queue, L0_batcher, L0_client_timeout and L0_request_cancellation
check, without their sleeps: a run of the probe waits at a gate until the test opens it, and its answer
tells in which run and in how large a batch a request was.
"""

import itertools
import json
import os
import queue
import struct
import time
import unittest
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from case import WAIT, Case
from samples import DEADLINE_EXCEEDED, address, tensor

RESOURCE_EXHAUSTED = "StatusCode.RESOURCE_EXHAUSTED"
UNAVAILABLE = "StatusCode.UNAVAILABLE"
CANCELLED = "StatusCode.CANCELLED"

BATCH = 8  # rows of the largest batch: a request of as many is a run of its own
MINUTE = 60_000_000  # microseconds: nothing here waits as long
FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"

SCOPES = itertools.count(1)


def setUpModule():
    if "SCONCE_PROBE" not in os.environ:
        raise unittest.SkipTest("these have a server of their own, see tests/clients.rs")


def config(batching: dict, count: int, parameters: dict) -> str:
    def described(name, dims):
        return {"name": name, "data_type": "TYPE_FP32", "dims": dims}

    return json.dumps(
        {
            "backend": "pytorch",
            "max_batch_size": BATCH,
            "input": [described("x", [-1])],
            "output": [described("size", [1]), described("turn", [1])],
            "instance_group": [{"kind": "KIND_CPU", "count": count}],
            # The gate is closed while the model is loaded.
            "parameters": {
                key: {"string_value": value} for key, value in {"WARMUP": "off", **parameters}.items()
            },
            "dynamic_batching": batching,
        }
    )


class Scheduled(Case):
    """A test that schedules probes."""

    def setUp(self):
        super().setUp()
        self.gates = Path(os.environ["SCONCE_GATES"])

    def load(self, batching: dict, count: int = 1, **parameters: str):
        """Loads a probe with a gate of its own; the test goes on with this one."""
        self.scope = next(SCOPES)
        self.model = f"probe{self.scope}"
        self.answers = queue.Queue()
        files = {"file:1/model.pt": Path(os.environ["SCONCE_PROBE"]).read_bytes()}
        self.client.load_model(self.model, config=config(batching, count, parameters), files=files)
        self.addCleanup(self.client.unload_model, self.model)
        self.addCleanup(self.open, self.scope)

    def open(self, scope: int | None = None):
        """Lets all runs go on that wait at the gate, and those to come."""
        # Never cut: the file is mapped by those who wait.
        file = os.open(self.gates / f"gate{scope or self.scope}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(file, struct.pack("<f", 1), 0)
        os.close(file)

    def turns(self) -> int:
        """How many runs have begun."""
        try:
            data = (self.gates / f"turns{self.scope}").read_bytes()
        except FileNotFoundError:
            return 0
        return int(struct.unpack("<f", data)[0]) if len(data) == 4 else 0

    def until(self, holds):
        deadline = time.monotonic() + WAIT
        while not holds():
            self.assertLess(time.monotonic(), deadline, "it never was so")
            time.sleep(0.005)

    def x(self, rows: int, width: int, gated: bool):
        values = np.zeros((rows, width), np.float32)
        values[:, 0] = self.scope if gated else 0
        values[:, 1] = self.scope
        return [tensor("x", values)]

    def send(self, name: str, rows: int = 1, width: int = 2, gated: bool = False, **options):
        """Sends a request whose answer comes to `answers`, under this name."""
        return self.client.async_infer(
            self.model,
            self.x(rows, width, gated),
            lambda result, error: self.answers.put((name, result, error)),
            **options,
        )

    def hold(self, rows: int = BATCH, runs: int = 1):
        """Occupies an instance of the model until the gate is opened."""
        call = self.send("hold", rows, gated=True)
        self.until(lambda: self.turns() == runs)
        return call

    def answered(self, count: int) -> dict:
        """The size and the turn of the next answers, by name; none may be an error."""
        found = {}
        for _ in range(count):
            name, result, error = self.answers.get(timeout=WAIT)
            self.assertIsNone(error, name)
            sizes, turns = set(result.as_numpy("size").flat), set(result.as_numpy("turn").flat)
            self.assertEqual((len(sizes), len(turns)), (1, 1), "a request is run as a whole")
            found[name] = (int(sizes.pop()), int(turns.pop()))
        return found

    def next_refused(self, code: str, text: str) -> str:
        """The name of the next that is answered, which must be refused so."""
        name, _, error = self.answers.get(timeout=WAIT)
        with self.refused(code, text):
            if error is not None:
                raise error
        return name

    def run_one(self, **options) -> tuple[int, int]:
        self.send("one", **options)
        return self.answered(1)["one"]


class Queues(Scheduled):
    """L0_model_queue."""

    def test_a_full_queue_refuses_at_once_and_the_others_are_answered(self):
        self.load({"default_queue_policy": {"max_queue_size": 4}})
        self.hold()
        sent = {str(number) for number in range(7)}
        for name in sent:
            self.send(name)
        # While the gate is closed: nobody has to wait to be refused.
        refused = {self.next_refused(RESOURCE_EXHAUSTED, FULL) for _ in range(3)}
        self.open()
        self.assertEqual(set(self.answered(5)), sent - refused | {"hold"})
        self.run_one()

    def test_what_waits_too_long_is_refused_while_it_waits_and_never_run(self):
        self.load({"default_queue_policy": {"default_timeout_microseconds": 20_000}})
        self.hold()
        for name in ["a", "b"]:
            self.send(name)
        self.assertEqual({self.next_refused(DEADLINE_EXCEEDED, EXPIRED) for _ in range(2)}, {"a", "b"})
        self.open()
        self.assertEqual(self.answered(1), {"hold": (BATCH, 1)})
        self.assertEqual(self.run_one(), (1, 2))

    def test_what_waits_too_long_is_delayed_where_the_policy_says_so(self):
        policy = {"default_timeout_microseconds": MINUTE, "allow_timeout_override": True}
        self.load(
            {
                "priority_levels": 2,
                "default_priority_level": 1,
                "default_queue_policy": {"timeout_action": "DELAY", **policy},
                "priority_queue_policy": {"2": {"timeout_action": "REJECT", **policy}},
            }
        )
        self.hold()
        self.send("delayed", BATCH, timeout=1000)
        self.send("in time", BATCH)
        # When this one has been given up, the first has waited longer than it may.
        self.send("given up", BATCH, priority=2, timeout=100_000)
        self.assertEqual(self.next_refused(DEADLINE_EXCEEDED, EXPIRED), "given up")
        self.open()
        turns = {name: turn for name, (_, turn) in self.answered(3).items()}
        self.assertEqual(turns, {"hold": 1, "in time": 2, "delayed": 3})

    def test_a_request_may_say_how_long_it_waits_where_the_policy_lets_it(self):
        # Without a default, which Triton takes for "no timeout whatever the request says".
        for default in [MINUTE, 0]:
            with self.subTest(default=default):
                policy = {"default_timeout_microseconds": default, "allow_timeout_override": True}
                self.load({"default_queue_policy": policy})
                self.hold()
                self.send("patient")
                self.send("hurried", timeout=20_000)
                self.assertEqual(self.next_refused(DEADLINE_EXCEEDED, EXPIRED), "hurried")
                self.open()
                self.assertEqual(set(self.answered(2)), {"hold", "patient"})

    def test_a_request_may_not_say_it_elsewhere(self):
        self.load({"default_queue_policy": {"default_timeout_microseconds": MINUTE}})
        self.hold()
        self.send("hurried", timeout=1)
        self.send("later", client_timeout=0.05)
        self.assertEqual(self.next_refused(DEADLINE_EXCEEDED, "Deadline Exceeded"), "later")
        self.open()
        self.assertEqual(set(self.answered(2)), {"hold", "hurried"})

    def test_the_highest_priority_comes_first_and_each_has_its_own_queue(self):
        self.load(
            {
                "priority_levels": 2,
                "default_priority_level": 2,
                "default_queue_policy": {"max_queue_size": 3},
                "priority_queue_policy": {"1": {"max_queue_size": 2}},
            }
        )
        self.hold()
        # One more of each than there is room for: when it has been refused, the others are in the queue.
        for number, priority in enumerate([2, 0, 2, 0]):
            self.send(f"low {number}", BATCH, priority=priority)
        self.assertIn("low", self.next_refused(RESOURCE_EXHAUSTED, FULL))
        for number in range(3):
            self.send(f"high {number}", BATCH, priority=1)
        self.assertIn("high", self.next_refused(RESOURCE_EXHAUSTED, FULL))
        self.open()
        order = sorted(self.answered(6).items(), key=lambda answer: answer[1][1])
        kinds = [name.split()[0] for name, _ in order]
        self.assertEqual(kinds, ["hold", "high", "high", "low", "low", "low"])


class Batches(Scheduled):
    """L0_batcher."""

    def test_what_waits_together_runs_together(self):
        self.load({"preferred_batch_size": [4], "default_queue_policy": {"max_queue_size": 4}})
        self.hold(rows=4)
        for number in range(5):
            self.send(str(number))
        self.next_refused(RESOURCE_EXHAUSTED, FULL)
        self.open()
        answers = self.answered(5)
        self.assertEqual(answers.pop("hold"), (4, 1))
        self.assertEqual(set(answers.values()), {(4, 2)})

    def test_requests_wait_for_a_preferred_size(self):
        self.load({"preferred_batch_size": [4], "max_queue_delay_microseconds": MINUTE})
        for rows in [[1, 1, 1, 1], [1, 3], [2, 1, 1]]:
            for number, count in enumerate(rows):
                self.send(str(number), count)
            self.assertEqual({size for size, _ in self.answered(len(rows)).values()}, {4})

    def test_requests_wait_no_longer_than_they_have_to(self):
        self.load({"preferred_batch_size": [4], "max_queue_delay_microseconds": 20_000})
        self.assertEqual(self.run_one(), (1, 1))
        self.assertEqual(self.run_one(rows=3), (3, 2))

    def test_a_full_batch_does_not_wait(self):
        self.load({"max_queue_delay_microseconds": MINUTE})
        self.assertEqual(self.run_one(rows=BATCH), (BATCH, 1))
        for number in range(2):
            self.send(str(number), BATCH // 2)
        self.assertEqual(self.answered(2), {"0": (BATCH, 2), "1": (BATCH, 2)})

    def test_shapes_do_not_mix(self):
        self.load({"default_queue_policy": {"max_queue_size": 4}})
        self.hold()
        for number in range(5):
            self.send(f"{number} of width {2 + number % 2}", width=2 + number % 2)
        self.next_refused(RESOURCE_EXHAUSTED, FULL)
        self.open()
        answers = self.answered(5)
        answers.pop("hold")
        widths = {}
        for name, (_, turn) in answers.items():
            widths.setdefault(turn, set()).add(name.split()[-1])
        for turn, found in widths.items():
            self.assertEqual(len(found), 1, f"run {turn} was of {found}")
        for name, (size, turn) in answers.items():
            together = [other for other, (_, of) in answers.items() if of == turn]
            self.assertEqual(size, len(together), name)

    def test_shapes_mix_where_the_shorter_ones_are_filled_up(self):
        # Triton never does: its issue 3395.
        batching = {"preferred_batch_size": [4], "default_queue_policy": {"max_queue_size": 4}}
        self.load(batching, PAD="x=0")
        self.hold(rows=4)
        for number in range(5):
            self.send(str(number), width=2 + number % 3)
        self.next_refused(RESOURCE_EXHAUSTED, FULL)
        self.open()
        answers = self.answered(5)
        self.assertEqual(answers.pop("hold"), (4, 1))
        self.assertEqual(set(answers.values()), {(4, 2)})

    def test_answers_keep_the_order_of_requests_only_where_that_is_asked_for(self):
        for ordered in [False, True]:
            with self.subTest(ordered=ordered):
                self.load({"preserve_ordering": ordered}, count=2)
                self.hold()
                self.send("second", BATCH)
                if ordered:
                    # Another model, asked later, has answered by now, again and again.
                    for _ in range(20):
                        self.client.infer("echo", [tensor("x", np.ones(3, np.float32))])
                    self.assertTrue(self.answers.empty(), "the first has not been answered yet")
                else:
                    self.assertEqual(self.answered(1), {"second": (BATCH, 2)})
                self.open()
                rest = self.answered(2 if ordered else 1)
                self.assertEqual(rest["hold"], (BATCH, 1))


class GivenUp(Scheduled):
    """L0_client_timeout and L0_request_cancellation."""

    def settle(self):
        """The server has read what was sent before on this connection."""
        for _ in range(3):
            self.assertTrue(self.client.is_server_live())

    def outcome(self, **options) -> str:
        """The code of a refusal."""
        with self.assertRaises(InferenceServerException) as raised:
            self.client.infer(self.model, self.x(1, 2, False), **options)
        return raised.exception.status()

    def test_a_deadline_binds_a_request_that_runs(self):
        self.load({})
        self.send("hold", BATCH, gated=True, client_timeout=0.2)
        self.assertEqual(self.next_refused(DEADLINE_EXCEEDED, "Deadline Exceeded"), "hold")
        self.open()
        self.run_one()

    def test_a_deadline_binds_a_request_that_waits_which_is_never_run(self):
        self.load({})
        self.hold()
        with self.refused(DEADLINE_EXCEEDED, "Deadline Exceeded"):
            self.client.infer(self.model, self.x(1, 2, False), client_timeout=0.05)
        self.send("late", client_timeout=0.05)
        self.assertEqual(self.next_refused(DEADLINE_EXCEEDED, "Deadline Exceeded"), "late")
        self.settle()
        self.open()
        self.assertEqual(self.answered(1), {"hold": (BATCH, 1)})
        self.assertEqual(self.run_one(), (1, 2))

    def test_a_cancelled_request_leaves_its_place_at_once_and_is_never_run(self):
        self.load({"default_queue_policy": {"max_queue_size": 1}})
        self.hold()
        calls = {name: self.send(name) for name in ["a", "b"]}
        refused = self.next_refused(RESOURCE_EXHAUSTED, FULL)
        left = ({"a", "b"} - {refused}).pop()
        calls[left].cancel()
        self.assertEqual(self.next_refused(CANCELLED, ""), left)
        # Who finds a place waits until its deadline, who finds none is refused.
        self.until(lambda: self.outcome(client_timeout=0.05) == DEADLINE_EXCEEDED)
        self.settle()
        self.open()
        self.assertEqual(self.answered(1), {"hold": (BATCH, 1)})
        self.assertEqual(self.run_one(), (1, 2))

    def test_a_cancelled_run_disturbs_no_other(self):
        self.load({})
        self.hold().cancel()
        self.assertEqual(self.next_refused(CANCELLED, ""), "hold")
        self.send("after")
        self.open()
        self.assertEqual(self.answered(1), {"after": (1, 2)})


class Refusals(Scheduled):
    """How a refusal tells what to do."""

    def test_a_full_queue_says_when_to_come_back(self):
        self.load({"default_queue_policy": {"max_queue_size": 1}})
        for _ in range(5):  # now it is known how long a run takes
            self.run_one()
        self.hold(runs=6)
        self.send("a")
        self.send("b")
        self.next_refused(RESOURCE_EXHAUSTED, FULL)
        sent = service_pb2.ModelInferRequest(model_name=self.model)
        for made in self.x(1, 2, False):
            sent.inputs.append(made._get_tensor())
            sent.raw_input_contents.append(made._get_content())
        with grpc.insecure_channel(address()) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with self.assertRaises(grpc.RpcError) as raised:
                stub.ModelInfer(sent, timeout=WAIT)
        error = raised.exception
        self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        told = dict(error.trailing_metadata())
        self.assertGreaterEqual(int(told["grpc-retry-pushback-ms"]), 0)
        self.assertIn(b"type.googleapis.com/google.rpc.RetryInfo", told["grpc-status-details-bin"])


class TritonsCodes(Scheduled):
    """With --triton-error-codes the same refusals have Triton's codes."""

    def setUp(self):
        super().setUp()
        self.client = InferenceServerClient(os.environ["SCONCE_TRITON_CODES_ADDRESS"])
        self.addCleanup(self.client.close)

    def test_a_full_queue_and_a_timeout_are_unavailable(self):
        policy = {"max_queue_size": 1, "allow_timeout_override": True, "default_timeout_microseconds": MINUTE}
        self.load({"default_queue_policy": policy})
        self.hold()
        for name in ["a", "b"]:
            self.send(name, timeout=200_000)
        names = [self.next_refused(UNAVAILABLE, FULL), self.next_refused(UNAVAILABLE, EXPIRED)]
        self.assertEqual(sorted(names), ["a", "b"])


if __name__ == "__main__":
    unittest.main()
