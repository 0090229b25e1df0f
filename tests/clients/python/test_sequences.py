"""Sequences through tritonclient, after Triton's tests of its sequence batcher: the sums of running_sum."""

import asyncio
import itertools
import queue
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc.aio import InferenceServerClient as AioClient

from case import WAIT, Case
from samples import INVALID_ARGUMENT, address, tensor

MODEL = "running_sum"
NO_START = "must specify the START flag on the first request of the sequence"
NO_ID = "must specify a non-zero or non-empty correlation ID"

# Sequences that go on belong to nobody else: each test has ids of its own.
_numbers = itertools.count(1_000)


def new_id() -> int:
    return next(_numbers)


def value(*values: float):
    return [tensor("value", np.array(values, np.float32).reshape(-1, 1))]


def flags(turn: int, turns: int) -> dict:
    return {"sequence_start": turn == 0, "sequence_end": turn == turns - 1}


def total(result) -> float:
    sums = result.as_numpy("sum")
    assert (sums.shape, sums.dtype) == ((1, 1), np.float32), (sums.shape, sums.dtype)
    return float(sums[0, 0])


class Sums(Case):
    def sum(self, number: float, id, **options) -> float:
        return total(self.client.infer(MODEL, value(number), sequence_id=id, **options))


class Unary(Sums):
    def test_ids_are_numbers_and_texts(self):
        # tritonclient sends a number as int64.
        ids = [new_id(), 2**63 - 1, -(2**63), -1, "a", f"{new_id()}", "ä ö\n\"'", "x" * 128]
        for turn in range(4):
            for place, id in enumerate(ids):
                expected = sum(10 * place + each for each in range(turn + 1))
                self.assertEqual(self.sum(10 * place + turn, id, **flags(turn, 4)), expected, id)

    def test_a_number_and_its_text_are_two_sequences(self):
        id = new_id()
        self.assertEqual(self.sum(1, id, sequence_start=True), 1)
        self.assertEqual(self.sum(10, str(id), sequence_start=True), 10)
        self.assertEqual(self.sum(1, id, sequence_end=True), 2)
        self.assertEqual(self.sum(10, str(id), sequence_end=True), 20)

    def test_a_sequence_of_one(self):
        id = new_id()
        self.assertEqual(self.sum(5, id, sequence_start=True, sequence_end=True), 5)
        with self.refused(INVALID_ARGUMENT, NO_START, f"sequence {id} ", MODEL):
            self.sum(5, id)

    def test_a_start_in_the_middle_begins_anew(self):
        for id in [new_id(), f"again {new_id()}"]:
            self.assertEqual(self.sum(1, id, sequence_start=True), 1)
            self.assertEqual(self.sum(2, id), 3)
            self.assertEqual(self.sum(5, id, sequence_start=True), 5)
            self.assertEqual(self.sum(6, id, sequence_end=True), 11)

    def test_without_a_start_there_is_no_sequence(self):
        for id in [new_id(), f"none {new_id()}"]:
            for options in [{}, {"sequence_end": True}]:
                with self.refused(INVALID_ARGUMENT, NO_START, str(id)):
                    self.sum(1, id, **options)

    def test_what_has_ended_does_not_go_on_and_may_begin_again(self):
        id = new_id()
        for _ in range(3):
            self.assertEqual(self.sum(1, id, sequence_start=True), 1)
            self.assertEqual(self.sum(1, id, sequence_end=True), 2)
            with self.refused(INVALID_ARGUMENT, NO_START):
                self.sum(1, id, sequence_end=True)

    def test_no_id_is_refused(self):
        # tritonclient sends no flags without an id.
        for options in [{}, {"sequence_id": 0, "sequence_start": True}, {"sequence_id": ""}]:
            with self.refused(INVALID_ARGUMENT, NO_ID, MODEL):
                self.client.infer(MODEL, value(1), **options)

    def test_an_id_that_is_too_long_is_refused(self):
        with self.refused(INVALID_ARGUMENT, "sequence_id", "129 bytes"):
            self.sum(1, "x" * 129, sequence_start=True)

    def test_two_rows_are_refused_and_change_nothing(self):
        id = new_id()
        self.assertEqual(self.sum(1, id, sequence_start=True), 1)
        with self.refused(INVALID_ARGUMENT, "must specify batch-size 1"):
            self.client.infer(MODEL, value(1, 2), sequence_id=id)
        self.assertEqual(self.sum(1, id, sequence_end=True), 2)

    def test_a_wrong_request_changes_nothing(self):
        id = new_id()
        self.assertEqual(self.sum(1, id, sequence_start=True), 1)
        state = tensor("total", np.ones((1, 1), np.float32))
        for inputs in [[], value(1) + [state], [tensor("value", np.ones((1, 1), np.int32))]]:
            with self.refused(INVALID_ARGUMENT):
                self.client.infer(MODEL, inputs, sequence_id=id, sequence_end=True)
        self.assertEqual(self.sum(1, id, sequence_end=True), 2)

    def test_models_without_sequences_take_no_notice(self):
        image = tensor("image", np.zeros((1, 1, 8, 8), np.float32))
        self.client.infer("digits", [image], sequence_id=new_id(), sequence_start=True)

    def test_the_configuration_and_metadata_are_tritons(self):
        config = self.client.get_model_config(MODEL).config
        self.assertEqual(config.WhichOneof("scheduling_choice"), "sequence_batching")
        (state,) = config.sequence_batching.state
        self.assertEqual((state.input_name, state.output_name, list(state.dims)), ("total", "new_total", [1]))
        metadata = self.client.get_model_metadata(MODEL)
        names = [[each.name for each in rows] for rows in (metadata.inputs, metadata.outputs)]
        self.assertEqual(names, [["value"], ["sum"]])
        self.assertIn("sequence", self.client.get_server_metadata().extensions)


class Concurrent(Sums):
    def test_many_sequences_at_once_keep_their_own_sums(self):
        def one(id):
            with InferenceServerClient(address()) as client:
                found = []
                for turn in range(20):
                    answer = client.infer(MODEL, value(id + turn), sequence_id=id, **flags(turn, 20))
                    found.append(total(answer))
                return found

        ids = [new_id() for _ in range(64)]
        with ThreadPoolExecutor(16) as threads:
            for id, found in zip(ids, threads.map(one, ids)):
                self.assertEqual(found, [sum(range(id, id + turn + 1)) for turn in range(20)])

    def test_a_sequence_goes_on_over_any_connection(self):
        clients = [InferenceServerClient(address()) for _ in range(3)]
        for client in clients:
            self.addCleanup(client.close)
        id = new_id()
        for turn in range(9):
            answer = clients[turn % 3].infer(MODEL, value(1), sequence_id=id, **flags(turn, 9))
            self.assertEqual(total(answer), turn + 1)

    def test_it_goes_on_from_unary_calls_to_streams_and_back(self):
        id, answers = new_id(), queue.Queue()
        self.assertEqual(self.sum(1, id, sequence_start=True), 1)
        self.client.start_stream(lambda result, error: answers.put((result, error)))
        self.addCleanup(self.client.stop_stream)
        self.client.async_stream_infer(MODEL, value(2), sequence_id=id)
        result, error = answers.get(timeout=WAIT)
        self.assertIsNone(error)
        self.assertEqual(total(result), 3)
        self.assertEqual(self.sum(3, id, sequence_end=True), 6)


class Streamed(Sums):
    def stream(self):
        """A client with a stream, and the queue of what comes."""
        client, answers = InferenceServerClient(address()), queue.Queue()
        self.addCleanup(client.close)
        client.start_stream(lambda result, error: answers.put((result, error)))
        return client, answers

    def check(self, answers, name: str, expected: float):
        result, error = answers.get(timeout=WAIT)
        self.assertIsNone(error)
        response = result.get_response()
        self.assertEqual((response.id, total(result)), (name, expected))
        self.assertTrue(response.parameters["triton_final_response"].bool_param)

    def test_requests_that_are_sent_ahead_run_in_their_order(self):
        client, answers = self.stream()
        for id in [new_id(), f"ahead {new_id()}"]:
            for turn in range(200):
                client.async_stream_infer(
                    MODEL, value(turn), request_id=f"{turn}", sequence_id=id, **flags(turn, 200)
                )
            for turn in range(200):
                self.check(answers, f"{turn}", turn * (turn + 1) / 2)

    def test_sequences_between_each_other_on_one_stream(self):
        client, answers = self.stream()
        ids = [new_id() if place % 2 else f"text {new_id()}" for place in range(12)]
        turns = 15
        for turn in range(turns):
            for place, id in enumerate(ids):
                client.async_stream_infer(
                    MODEL, value(place + 1), request_id=f"{id} {turn}", sequence_id=id, **flags(turn, turns)
                )
        for turn in range(turns):
            for place, id in enumerate(ids):
                self.check(answers, f"{id} {turn}", (place + 1) * (turn + 1))

    def test_sequences_on_streams_of_their_own(self):
        streams = [self.stream() for _ in range(6)]
        ids = [new_id() for _ in streams]
        for turn in range(30):
            for (client, _), id in zip(streams, ids):
                client.async_stream_infer(MODEL, value(id), request_id=f"{turn}", sequence_id=id, **flags(turn, 30))
        for (_, answers), id in zip(streams, ids):
            for turn in range(30):
                self.check(answers, f"{turn}", id * (turn + 1))

    def test_a_stream_that_closes_ends_no_sequence(self):
        id = new_id()
        client, answers = self.stream()
        client.async_stream_infer(MODEL, value(4), request_id="first", sequence_id=id, sequence_start=True)
        self.check(answers, "first", 4)
        client.stop_stream()
        client, answers = self.stream()
        client.async_stream_infer(MODEL, value(4), request_id="last", sequence_id=id, sequence_end=True)
        self.check(answers, "last", 8)

    def test_what_is_refused_is_told_in_its_turn_and_the_sequence_goes_on(self):
        id = new_id()
        client, answers = self.stream()
        client.async_stream_infer(MODEL, value(1), request_id="1", sequence_id=id)
        client.async_stream_infer(MODEL, value(1), request_id="2", sequence_id=id, sequence_start=True)
        client.async_stream_infer(MODEL, value(1, 1), request_id="3", sequence_id=id)
        client.async_stream_infer(MODEL, value(1), request_id="4", sequence_id=id, sequence_end=True)
        client.async_stream_infer(MODEL, value(1), request_id="5", sequence_id=id)
        for name, refused in [("1", NO_START), ("2", None), ("3", "batch-size 1"), ("4", None), ("5", NO_START)]:
            if refused is None:
                self.check(answers, name, int(name) // 2)
                continue
            result, error = answers.get(timeout=WAIT)
            self.assertIsNone(result)
            self.assertIn(refused, error.message())

    def test_asynchronous_calls(self):
        id, answers = new_id(), queue.Queue()
        for turn in range(10):
            self.client.async_infer(
                MODEL,
                value(1),
                lambda result, error: answers.put((result, error)),
                sequence_id=id,
                **flags(turn, 10),
            )
            result, error = answers.get(timeout=WAIT)
            self.assertIsNone(error)
            self.assertEqual(total(result), turn + 1)

    def test_streams_and_unary_calls_at_once(self):
        ids = [new_id() for _ in range(8)]
        found, failed = {}, []

        def unary(id):
            try:
                found[id] = [self.sum(id, id, **flags(turn, 25)) for turn in range(25)]
            except Exception as error:  # told by the thread that can
                failed.append(error)

        threads = [threading.Thread(target=unary, args=[id]) for id in ids]
        for thread in threads:
            thread.start()
        self.test_sequences_between_each_other_on_one_stream()
        for thread in threads:
            thread.join(WAIT)
        self.assertEqual(failed, [])
        for id in ids:
            self.assertEqual(found[id], [id * (turn + 1) for turn in range(25)])


class Aio(unittest.TestCase):
    def test_unary_calls(self):
        async def one(client, id):
            found = []
            for turn in range(10):
                answer = await client.infer(MODEL, value(turn), sequence_id=id, **flags(turn, 10))
                found.append(total(answer))
            self.assertEqual(found, [sum(range(turn + 1)) for turn in range(10)], id)

        async def talk():
            async with AioClient(address()) as client:
                await asyncio.gather(*(one(client, id) for id in [new_id() for _ in range(30)] + ["a text"]))

        asyncio.run(asyncio.wait_for(talk(), WAIT))

    def test_a_stream(self):
        ids = [new_id(), f"text {new_id()}"]

        async def requests():
            for turn in range(50):
                for id in ids:
                    yield {
                        "model_name": MODEL,
                        "inputs": value(turn),
                        "request_id": f"{id} {turn}",
                        "sequence_id": id,
                        **flags(turn, 50),
                    }
            yield {"model_name": MODEL, "inputs": value(1), "sequence_id": ids[0]}

        async def talk():
            async with AioClient(address()) as client:
                answers = aiter(client.stream_infer(requests()))
                for turn in range(50):
                    for id in ids:
                        result, error = await anext(answers)
                        self.assertIsNone(error)
                        name, expected = f"{id} {turn}", turn * (turn + 1) / 2
                        self.assertEqual((result.get_response().id, total(result)), (name, expected))
                result, error = await anext(answers)
                self.assertIsNone(result)
                self.assertIn(NO_START, error.message())

        asyncio.run(asyncio.wait_for(talk(), WAIT))
