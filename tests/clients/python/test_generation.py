"""One request, many answers, through tritonclient: what char_lm writes, against its reference in numpy."""

import asyncio
import itertools
import json
import os
import queue
import time
import unittest
from urllib.request import urlopen

import grpc
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput, service_pb2, service_pb2_grpc
from tritonclient.grpc.aio import InferenceServerClient as AioClient

from case import WAIT, Case
from char_lm import MAX_STEPS, written
from samples import DEADLINE_EXCEEDED, INVALID_ARGUMENT, address, check_pair, pair, pair_inputs, tensor, texts

MODEL = "char_lm"
PROMPTS = ["Alice ", "'I don't", "The Queen said", "", "a" * 700, "Grüße, "]


def asked(prompt: str, temperature: float | None = None, seed: int | None = None) -> list:
    inputs = [tensor("prompt", texts(prompt).reshape(1, 1))]
    if temperature is not None:
        inputs.append(tensor("temperature", np.array([[temperature]], np.float32)))
    if seed is not None:
        inputs.append(tensor("seed", np.array([[seed]], np.int64)))
    return inputs


def text(result) -> str:
    array = result.as_numpy("text")
    assert array.shape == (1, 1), array.shape
    return array[0, 0].decode()


def is_last(result) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


class Streamed(Case):
    def setUp(self):
        super().setUp()
        self.answers = queue.Queue()

    def start(self, **options):
        self.client.start_stream(lambda result, error: self.answers.put((result, error)), **options)
        self.addCleanup(self.client.stop_stream)

    def ask(self, prompt: str, *inputs, id: str = "", **options):
        self.client.async_stream_infer(MODEL, asked(prompt, *inputs), request_id=id, **options)

    def next(self):
        result, error = self.answers.get(timeout=WAIT)
        self.assertIsNone(error)
        return result

    def collect(self, *ids: str) -> dict[str, list[str]]:
        """All answers to these requests, each up to its last one."""
        found, open_ids = {id: [] for id in ids}, set(ids)
        while open_ids:
            result = self.next()
            response = result.get_response()
            self.assertIn(response.id, open_ids)
            self.assertEqual((response.model_name, response.model_version), (MODEL, "1"))
            self.assertEqual([output.name for output in response.outputs], ["text"])
            found[response.id].append(text(result))
            if is_last(result):
                open_ids.remove(response.id)
        return found


class Answers(Streamed):
    def test_are_the_characters_that_the_reference_writes(self):
        self.start()
        for prompt in PROMPTS:
            for temperature, seed in [(None, None), (0.0, 5), (0.8, 2**62), (1.5, -3)]:
                with self.subTest(prompt=prompt, temperature=temperature, seed=seed):
                    self.ask(prompt, temperature, seed, id="one")
                    expected = written(prompt, 0.6 if temperature is None else temperature, seed or 0)
                    self.assertEqual(self.collect("one")["one"], expected)

    def test_end_where_the_text_ends_with_an_answer_without_text(self):
        self.start()
        self.ask("'I don't", 0.6, 1, id="short")
        found = self.collect("short")["short"]
        self.assertLess(len(found), MAX_STEPS)
        self.assertEqual((found[-1], found), ("", written("'I don't", 0.6, 1)))

    def test_an_empty_final_answer_is_not_needed(self):
        self.start()
        for options in [{}, {"enable_empty_final_response": True}]:
            self.ask("Alice ", id="one", parameters={"max_steps": 7}, **options)
            self.assertEqual(self.collect("one")["one"], written("Alice ", steps=7))
        # Nothing comes behind the last: the next answer is another's.
        self.ask("Alice ", id="two", parameters={"max_steps": 1})
        self.assertEqual(self.collect("two")["two"], written("Alice ", steps=1))

    def test_are_no_more_than_the_request_or_the_model_allows(self):
        self.start()
        for steps in [1, 2, 30, MAX_STEPS, MAX_STEPS + 1, 2**31]:
            self.ask("Alice ", 0.0, id="one", parameters={"max_steps": steps})
            expected = written("Alice ", 0.0, steps=min(steps, MAX_STEPS))
            self.assertEqual(self.collect("one")["one"], expected)

    def test_of_several_requests_come_between_each_other(self):
        self.start()
        expected = {}
        for seed in range(40):
            prompt = PROMPTS[seed % len(PROMPTS)]
            self.ask(prompt, 0.7, seed, id=f"{seed}", parameters={"max_steps": 20 + seed})
            expected[f"{seed}"] = written(prompt, 0.7, seed, steps=20 + seed)
        self.assertEqual(self.collect(*expected), expected)

    def test_a_short_one_overtakes_long_ones(self):
        self.start()
        longs = {f"{seed}" for seed in range(40)}
        for seed in longs:
            self.ask("Alice ", 0.0, id=seed)
        self.ask("Alice ", 0.0, id="short", parameters={"max_steps": 2})
        ended = set()
        while "short" not in ended:
            result = self.next()
            if is_last(result):
                ended.add(result.get_response().id)
        self.assertTrue(longs - ended)

    def test_other_models_share_the_stream(self):
        self.start()
        self.ask("Alice ", id="text", parameters={"max_steps": 50})
        for seed in range(5):
            self.client.async_stream_infer("add_sub", pair_inputs(*pair(1, seed=seed)), request_id=f"{seed}")
        found, sums, last = [], 0, False
        while sums < 5 or not last:
            result = self.next()
            if result.get_response().id == "text":
                found.append(text(result))
                last = is_last(result)
                continue
            self.assertEqual(result.get_response().id, f"{sums}")
            check_pair(self, result, *pair(1, seed=sums))
            sums += 1
        self.assertEqual(found, written("Alice ", steps=50))

    def test_have_the_outputs_that_are_asked_for(self):
        self.start()
        wanted = [InferRequestedOutput(name) for name in ["done", "token"]]
        self.ask("Alice ", outputs=wanted, parameters={"max_steps": 2})
        for last in [False, True]:
            result = self.next()
            self.assertEqual([output.name for output in result.get_response().outputs], ["done", "token"])
            self.assertEqual((result.as_numpy("done").tolist(), is_last(result)), ([[False]], last))
            self.assertIsNone(result.as_numpy("text"))

    def test_are_classified_where_that_is_asked_for(self):
        self.start()
        wanted = [InferRequestedOutput("token"), InferRequestedOutput("token", class_count=1)]
        found = []
        for output in wanted:
            self.ask("Alice ", outputs=[output], parameters={"max_steps": 1})
            found.append(self.next().as_numpy("token"))
        self.assertEqual(found[1].tolist(), [[f"{found[0][0, 0]}:0".encode()]])

    def test_compressed(self):
        self.start(compression_algorithm="gzip")
        self.ask("Alice ", id="one", parameters={"max_steps": 9})
        self.assertEqual(self.collect("one")["one"], written("Alice ", steps=9))


class Ends(Streamed):
    def going_on(self) -> int:
        with urlopen(f"http://{os.environ['SCONCE_HTTP_ADDRESS']}/models/{MODEL}", timeout=WAIT) as answer:
            return sum(version["generations"] or 0 for version in json.load(answer)["versions"])

    def wait_for_none(self):
        until = time.monotonic() + WAIT
        while self.going_on():
            self.assertLess(time.monotonic(), until, "a generation goes on that nobody reads")

    def test_who_stops_the_stream_gets_what_he_asked_for(self):
        self.start()
        self.ask("Alice ", 0.0, id="one")
        self.client.stop_stream()
        self.assertEqual(self.collect("one")["one"], written("Alice ", 0.0))

    def test_who_cancels_ends_what_is_being_made_for_him(self):
        self.start()
        for seed in range(20):
            self.ask("Alice ", 0.0, seed, id=f"{seed}")
        self.next()
        self.client.stop_stream(cancel_requests=True)
        self.wait_for_none()
        self.check_alive()
        self.start()
        while not self.answers.empty():
            self.answers.get()
        self.ask("Alice ", 0.0, id="after", parameters={"max_steps": 5})
        self.assertEqual(self.collect("after")["after"], written("Alice ", 0.0, steps=5))

    def test_the_deadline_of_the_stream_ends_it(self):
        with grpc.insecure_channel(address()) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with self.refused(DEADLINE_EXCEEDED, "Deadline Exceeded"):
                # Without an end.
                for answer in stub.ModelStreamInfer(itertools.repeat(raw("endless")), timeout=0.3):
                    if answer.error_message:  # where a step saw it first
                        self.assertIn("Deadline Exceeded", answer.error_message)
        self.wait_for_none()


def raw(id: str) -> service_pb2.ModelInferRequest:
    prompt = service_pb2.ModelInferRequest.InferInputTensor(name="prompt", datatype="BYTES", shape=[1, 1])
    return service_pb2.ModelInferRequest(
        id=id, model_name=MODEL, inputs=[prompt], raw_input_contents=[b"\x01\0\0\0A"]
    )


class Errors(Streamed):
    def test_have_the_id_and_are_the_last_answer(self):
        good = raw("good")
        good.parameters["max_steps"].int64_param = 3
        bad = service_pb2.ModelInferRequest(id="bad", model_name=MODEL)
        with grpc.insecure_channel(address()) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answers = list(stub.ModelStreamInfer(iter([good, bad, good]), timeout=WAIT))
        (error,) = [answer for answer in answers if answer.error_message]
        self.assertIn("prompt", error.error_message)
        self.assertEqual(error.infer_response.id, "bad")
        self.assertTrue(error.infer_response.parameters["triton_final_response"].bool_param)
        self.assertEqual([answer.infer_response.id for answer in answers].count("good"), 6)

    def test_say_what_is_wrong_and_harm_no_other(self):
        two = tensor("prompt", texts("a", "b").reshape(2, 1))
        wrong = [
            ("batch-size 1", {"inputs": [two]}),
            ("seeds", {"inputs": asked("a") + [tensor("seeds", np.zeros((1, 1), np.int64))]}),
            ("FP32", {"inputs": asked("a") + [tensor("temperature", np.zeros((1, 1)))]}),
            ("hidden", {"inputs": asked("a"), "outputs": [InferRequestedOutput("hidden")]}),
            ("max_steps", {"inputs": asked("a"), "parameters": {"max_steps": 0}}),
            ("max_steps", {"inputs": asked("a"), "parameters": {"max_steps": "three"}}),
            ("version 9", {"inputs": asked("a"), "model_version": "9"}),
        ]
        self.start()
        for part, options in wrong:
            with self.subTest(part):
                self.client.async_stream_infer(MODEL, **options)
                result, error = self.answers.get(timeout=WAIT)
                self.assertIsNone(result)
                self.assertIn(part, error.message())
                self.ask("Alice ", id="good", parameters={"max_steps": 2})
                self.assertEqual(self.collect("good")["good"], written("Alice ", steps=2))

    def test_who_asks_for_real_statuses_gets_them(self):
        self.start(headers={"triton_grpc_error": "true"})
        self.client.async_stream_infer(MODEL, [])
        _, error = self.answers.get(timeout=WAIT)
        with self.refused(INVALID_ARGUMENT, "prompt"):
            raise error


class Collected(Case):
    def test_is_all_that_a_stream_would_bring(self):
        for prompt in PROMPTS:
            for temperature, seed in [(None, None), (0.0, None), (1.0, 9)]:
                with self.subTest(prompt=prompt, temperature=temperature, seed=seed):
                    result = self.client.infer(MODEL, asked(prompt, temperature, seed))
                    expected = written(prompt, 0.6 if temperature is None else temperature, seed or 0)
                    self.assertEqual(text(result), "".join(expected))

    def test_joins_tensors_along_their_second_dimension(self):
        wanted = [InferRequestedOutput(name) for name in ["token", "done", "text"]]
        result = self.client.infer(MODEL, asked("'I don't", 0.6, 1), outputs=wanted)
        expected = written("'I don't", 0.6, 1)
        self.assertEqual(result.as_numpy("token").shape, (1, len(expected)))
        self.assertEqual(result.as_numpy("done").tolist(), [[False] * (len(expected) - 1) + [True]])
        self.assertEqual(text(result), "".join(expected))

    def test_as_long_as_wanted(self):
        result = self.client.infer(MODEL, asked("Alice "), parameters={"max_steps": 11})
        self.assertEqual(text(result), "".join(written("Alice ", steps=11)))

    def test_tells_what_is_wrong(self):
        with self.refused(INVALID_ARGUMENT, "prompt"):
            self.client.infer(MODEL, [])
        with self.refused(INVALID_ARGUMENT, "max_steps"):
            self.client.infer(MODEL, asked("a"), parameters={"max_steps": -1})
        with self.refused(INVALID_ARGUMENT, "'token'", "ModelStreamInfer"):
            self.client.infer(MODEL, asked("a"), outputs=[InferRequestedOutput("token", class_count=1)])

    def test_the_configuration_says_that_it_is_decoupled(self):
        self.assertTrue(self.client.get_model_config(MODEL).config.model_transaction_policy.decoupled)
        for model in ["add_sub", "running_sum"]:
            self.assertFalse(self.client.get_model_config(model).config.model_transaction_policy.decoupled)

    def test_many_clients_at_once(self):
        answers = queue.Queue()
        clients = [InferenceServerClient(address()) for _ in range(8)]
        for seed, client in enumerate(clients):
            self.addCleanup(client.close)
            client.async_infer(
                MODEL,
                asked("Alice ", 0.9, seed),
                lambda result, error, seed=seed: answers.put((seed, result, error)),
            )
        found = {}
        for _ in clients:
            seed, result, error = answers.get(timeout=WAIT)
            self.assertIsNone(error)
            found[seed] = text(result)
        self.assertEqual(found, {seed: "".join(written("Alice ", 0.9, seed)) for seed in range(8)})


class Aio(unittest.TestCase):
    def test_answers_as_an_iterator(self):
        async def requests():
            for seed in range(10):
                yield {
                    "model_name": MODEL,
                    "inputs": asked("Alice ", 0.6, seed),
                    "request_id": f"{seed}",
                    "parameters": {"max_steps": 60},
                }
            yield {"model_name": MODEL, "inputs": []}

        async def talk():
            found, errors = {f"{seed}": [] for seed in range(10)}, []
            async with AioClient(address()) as client:
                async for result, error in client.stream_infer(requests()):
                    if error is not None:
                        errors.append(error.message())
                        continue
                    found[result.get_response().id].append(text(result))
                collected = await client.infer(MODEL, asked("Alice ", 0.6, 3), parameters={"max_steps": 60})
            expected = {f"{seed}": written("Alice ", 0.6, seed, steps=60) for seed in range(10)}
            self.assertEqual(found, expected)
            self.assertEqual(text(collected), "".join(expected["3"]))
            (error,) = errors
            self.assertIn("prompt", error)

        asyncio.run(asyncio.wait_for(talk(), WAIT))

    def test_who_cancels_gets_no_more(self):
        async def requests():
            yield {"model_name": MODEL, "inputs": asked("Alice ", 0.0)}
            await asyncio.Event().wait()  # the stream stays open until it is cancelled

        async def talk():
            async with AioClient(address()) as client:
                answers = client.stream_infer(requests())
                result, error = await anext(aiter(answers))
                self.assertIsNone(error)
                self.assertEqual(text(result), written("Alice ", 0.0, steps=1)[0])
                self.assertTrue(answers.cancel())
                with self.assertRaises(asyncio.CancelledError):
                    while True:
                        await anext(aiter(answers))

        asyncio.run(asyncio.wait_for(talk(), WAIT))
