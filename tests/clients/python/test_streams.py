"""Conversations through tritonclient, synchronous and asyncio, against model_repository."""

import asyncio
import queue
import unittest

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.aio import InferenceServerClient as AioClient
from tritonclient.utils import InferenceServerException

from case import WAIT, Case
from samples import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    NOT_FOUND,
    address,
    check_digits,
    check_pair,
    digit_image,
    pair,
    pair_inputs,
    tensor,
)

MANY = 300


class Streamed(Case):
    def setUp(self):
        super().setUp()
        self.answers = queue.Queue()

    def start(self, **options):
        self.client.start_stream(lambda result, error: self.answers.put((result, error)), **options)
        self.addCleanup(self.client.stop_stream)

    def ask(self, seed: int, rows: int = 1, model: str = "add_sub", **options):
        first, second = pair(rows, seed=seed)
        self.client.async_stream_infer(model, pair_inputs(first, second), request_id=str(seed), **options)

    def next(self):
        return self.answers.get(timeout=WAIT)

    def check(self, seed: int, rows: int = 1):
        """The next answer must be that of this request, the only one that it gets."""
        result, error = self.next()
        self.assertIsNone(error)
        response = result.get_response()
        self.assertEqual((response.id, response.model_name), (str(seed), "add_sub"))
        self.assertTrue(response.parameters["triton_final_response"].bool_param)
        check_pair(self, result, *pair(rows, seed=seed))


class Order(Streamed):
    def test_answers_come_in_the_order_of_their_requests(self):
        self.start()
        for seed in range(MANY):
            self.ask(seed, rows=1 + seed % 7)
        for seed in range(MANY):
            self.check(seed, rows=1 + seed % 7)

    def test_an_empty_final_answer_is_none_of_its_own(self):
        self.start()
        for seed in range(2):
            self.ask(seed, enable_empty_final_response=True)
        for seed in range(2):
            self.check(seed)

    def test_compressed(self):
        for algorithm in ["gzip", "deflate"]:
            with self.subTest(algorithm):
                self.start(compression_algorithm=algorithm)
                self.ask(1, rows=8)
                self.check(1, rows=8)
                self.client.stop_stream()

    def test_several_models_share_a_stream(self):
        self.start()
        for turn in range(20):
            self.ask(turn)
            self.client.async_stream_infer("digits", [tensor("image", digit_image())], request_id=f"d{turn}")
        for turn in range(20):
            self.check(turn)
            result, error = self.next()
            self.assertIsNone(error)
            self.assertEqual(result.get_response().id, f"d{turn}")
            check_digits(self, result, digit_image())

    def test_priority_and_timeout_are_those_of_a_message(self):
        self.start()
        self.ask(1, priority=1, timeout=30_000_000)
        self.check(1)


class Errors(Streamed):
    def test_a_request_that_fails_is_answered_in_its_turn_and_harms_no_other(self):
        self.start()
        for seed in range(0, 30, 3):
            self.ask(seed)
            self.ask(seed + 1, model="nobody")
            self.ask(seed + 2, rows=1, parameters={"other": "is allowed"})
        for seed in range(0, 30, 3):
            self.check(seed)
            result, error = self.next()
            self.assertIsNone(result)
            self.assertEqual(error.message(), "Request for unknown model: 'nobody' is not found")
            self.check(seed + 2)

    def test_the_id_of_a_request_that_failed_comes_back(self):
        with grpc.insecure_channel(address()) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            bad = service_pb2.ModelInferRequest(id="mine", model_name="add_sub")
            (answer,) = stub.ModelStreamInfer(iter([bad]), timeout=WAIT)
            self.assertIn("INPUT0", answer.error_message)
            self.assertEqual(answer.infer_response.id, "mine")

    def test_who_asks_for_real_statuses_gets_them_and_the_stream_ends(self):
        self.start(headers={"triton_grpc_error": "true"})
        self.ask(1)
        self.ask(2, model="nobody")
        self.check(1)
        _, error = self.next()
        with self.refused(NOT_FOUND, "'nobody' is not found"):
            raise error

    def test_what_is_no_request_ends_the_stream(self):
        with grpc.insecure_channel(address()) as channel:
            call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            with self.refused(INVALID_ARGUMENT, "the request is not valid protobuf"):
                list(call(iter([b"\xff\xff"]), timeout=WAIT))
        self.check_alive()


class Ends(Streamed):
    def test_half_a_close_answers_all_that_is_in_flight(self):
        with grpc.insecure_channel(address()) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            call = stub.ModelStreamInfer((request(number) for number in range(MANY)), timeout=WAIT)
            ids = [answer.infer_response.id for answer in call]
        self.assertEqual(ids, [str(number) for number in range(MANY)])
        self.assertEqual(call.code(), grpc.StatusCode.OK)

    def test_nothing_at_all_is_a_conversation_too(self):
        with grpc.insecure_channel(address()) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            self.assertEqual(list(stub.ModelStreamInfer(iter([]), timeout=WAIT)), [])

    def test_a_caller_who_cancels_is_forgotten(self):
        self.start()
        for seed in range(MANY):
            self.ask(seed)
        self.client.stop_stream(cancel_requests=True)
        self.check_alive()

    def test_the_deadline_of_the_stream_holds(self):
        self.start(stream_timeout=0.3)
        self.ask(1)
        self.check(1)
        _, error = self.next()
        with self.refused(DEADLINE_EXCEEDED, "Deadline Exceeded"):
            raise error


def request(number: int) -> service_pb2.ModelInferRequest:
    image = service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    data = digit_image().astype(np.float32).tobytes()
    return service_pb2.ModelInferRequest(
        id=str(number), model_name="digits", inputs=[image], raw_input_contents=[data]
    )


class Aio(unittest.TestCase):
    def test_requests_and_answers_as_iterators(self):
        async def requests():
            for seed in range(MANY):
                first, second = pair(1, seed=seed)
                yield {"model_name": "add_sub", "inputs": pair_inputs(first, second), "request_id": str(seed)}
            yield {"model_name": "nobody", "inputs": [], "request_id": "last"}

        async def talk():
            errors = []
            async with AioClient(address()) as client:
                seed = 0
                async for result, error in client.stream_infer(requests()):
                    if error is not None:
                        errors.append(error)
                        continue
                    self.assertEqual(result.get_response().id, str(seed))
                    check_pair(self, result, *pair(1, seed=seed))
                    seed += 1
                self.assertEqual(seed, MANY)
            (error,) = errors
            self.assertIsInstance(error, InferenceServerException)
            self.assertIn("'nobody' is not found", error.message())

        asyncio.run(asyncio.wait_for(talk(), WAIT))
