"""The asyncio tritonclient against a live server that serves model_repository."""

import asyncio
import functools
import unittest

import numpy as np
from tritonclient.grpc import InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from samples import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    MODELS,
    NOT_FOUND,
    UNIMPLEMENTED,
    address,
    check_digits,
    check_pair,
    check_texts,
    digit_image,
    digit_images,
    digit_scores,
    pair,
    pair_inputs,
    tensor,
    texts,
)

WAIT = 30


# One loop for all tests: grpc's poller stays with the loop that it first met.
LOOP = asyncio.new_event_loop()


def tearDownModule():
    LOOP.close()


class Case(unittest.TestCase):
    def __init_subclass__(cls):
        for name, test in list(vars(cls).items()):
            if name.startswith("test_"):
                setattr(cls, name, functools.partialmethod(Case.run_on_loop, test))

    def run_on_loop(self, test):
        async def with_client():
            async with InferenceServerClient(address()) as self.client:
                await test(self)

        LOOP.run_until_complete(with_client())

    async def refused(self, code, part, call):
        """Awaiting the call must raise this code with this part in its text."""
        with self.assertRaises(InferenceServerException) as caught:
            await call
        self.assertEqual(caught.exception.status(), code, caught.exception.message())
        self.assertIn(part, caught.exception.message())


class Server(Case):
    async def test_is_live_and_ready(self):
        self.assertTrue(await self.client.is_server_live())
        self.assertTrue(await self.client.is_server_ready())
        for model in MODELS:
            self.assertTrue(await self.client.is_model_ready(model))
            self.assertFalse(await self.client.is_model_ready(model, "2"))
        self.assertFalse(await self.client.is_model_ready("no_such_model"))

    async def test_tells_what_it_serves(self):
        self.assertEqual((await self.client.get_server_metadata()).name, "sconce")
        for model in MODELS:
            self.assertEqual((await self.client.get_model_metadata(model)).name, model)
            self.assertEqual((await self.client.get_model_config(model)).config.name, model)
        index = (await self.client.get_model_repository_index()).models
        self.assertEqual({(model.name, model.state) for model in index}, {(model, "READY") for model in MODELS})

    async def test_tells_what_it_has_counted(self):
        told = (await self.client.get_inference_statistics("digits", "1")).model_stats
        self.assertEqual([(model.name, model.version) for model in told], [("digits", "1")])

    async def test_says_so_where_it_serves_no_such_rpc(self):
        client = self.client
        unserved = {
            "shared memory": lambda: client.get_system_shared_memory_status(),
            "cuda shared memory": lambda: client.get_cuda_shared_memory_status(),
        }
        for name, call in unserved.items():
            with self.subTest(name):
                await self.refused(UNIMPLEMENTED, "", call())


class Infer(Case):
    async def test_all_models(self):
        images = digit_images(7, seed=7)
        check_digits(self, await self.client.infer("digits", [tensor("image", images)]), images)
        first, second = pair(8, seed=8)
        check_pair(self, await self.client.infer("add_sub", pair_inputs(first, second)), first, second)
        lines = ["Grüße, JÜRGEN!", "", "a b  c"]
        check_texts(self, await self.client.infer("text_stats", [tensor("text", texts(*lines))]), lines)
        values = np.array([3, 5], np.float32)
        result = await self.client.infer("dict_stats", [tensor("values", values)])
        self.assertEqual(list(result.as_numpy("mean")), [4])

    async def test_options(self):
        first, second = pair(1, seed=9)
        result = await self.client.infer(
            "add_sub",
            pair_inputs(first, second),
            model_version="1",
            request_id="aio",
            outputs=[InferRequestedOutput("OUTPUT__1")],
            priority=1,
            timeout=10_000_000,
            client_timeout=WAIT,
            headers={"x-test": "1"},
            parameters={"text": "x", "count": 3},
        )
        answer = result.get_response()
        self.assertEqual((answer.id, answer.model_version), ("aio", "1"))
        self.assertIsNone(result.as_numpy("OUTPUT__0"))
        np.testing.assert_array_equal(result.as_numpy("OUTPUT__1"), first - second)

    async def test_compression(self):
        for algorithm in ("gzip", "deflate"):
            with self.subTest(algorithm):
                values = np.zeros(500_000, np.float32)
                result = await self.client.infer(
                    "dict_stats", [tensor("values", values)], compression_algorithm=algorithm
                )
                np.testing.assert_array_equal(result.as_numpy("weighted"), values)

    async def test_classification(self):
        image = digit_image()
        result = await self.client.infer(
            "digits", [tensor("image", image)], outputs=[InferRequestedOutput("scores", class_count=3)]
        )
        value, index, label = result.as_numpy("scores")[0][0].decode().split(":")
        self.assertEqual((int(index), label), (7, "seven"))
        self.assertAlmostEqual(float(value), digit_scores(image).max(), places=4)

    async def test_large_tensors_come_back_whole(self):
        values = np.random.default_rng(5).random(2_097_152, np.float32)  # 8 MB
        result = await self.client.infer("dict_stats", [tensor("values", values)])
        np.testing.assert_array_equal(result.as_numpy("weighted"), values)

    async def test_refusals(self):
        first, second = pair(1, seed=10)
        inputs = pair_inputs(first, second)
        infer = self.client.infer
        await self.refused(NOT_FOUND, "Request for unknown model: 'absent' is not found", infer("absent", inputs))
        await self.refused(NOT_FOUND, "version 9 is not found", infer("add_sub", inputs, model_version="9"))
        await self.refused(INVALID_ARGUMENT, "INPUT1", infer("add_sub", inputs[:1]))
        wrong = pair_inputs(first, second[:, :3].copy())
        await self.refused(INVALID_ARGUMENT, "unexpected shape for input 'INPUT1'", infer("add_sub", wrong))
        absent = [tensor("weights", first)]
        await self.refused(INTERNAL, "dict_stats needs the input 'values'", infer("dict_stats", absent))
        values = [tensor("values", np.ones(8_000_000, np.float32))]  # 32 MB take longer than this
        late = infer("dict_stats", values, client_timeout=0.001)
        await self.refused(DEADLINE_EXCEEDED, "Deadline Exceeded", late)


class ManyAtOnce(Case):
    async def test_two_hundred_get_their_own_answers(self):
        async def one(seed):
            first, second = pair(1 + seed % 8, seed)
            result = await self.client.infer("add_sub", pair_inputs(first, second), request_id=str(seed))
            self.assertEqual(result.get_response().id, str(seed))
            check_pair(self, result, first, second)

        await asyncio.gather(*(one(seed) for seed in range(200)))

    async def test_models_and_failures_mixed(self):
        async def one(seed):
            match seed % 4:
                case 0:
                    images = digit_images(1, seed)
                    check_digits(self, await self.client.infer("digits", [tensor("image", images)]), images)
                case 1:
                    lines = [f"Request {seed}!"]
                    check_texts(self, await self.client.infer("text_stats", [tensor("text", texts(*lines))]), lines)
                case 2:
                    call = self.client.infer("dict_stats", [tensor("weights", np.ones(seed, np.float32))])
                    await self.refused(INTERNAL, "needs the input 'values'", call)
                case 3:
                    values = np.full(4, seed, np.float32)
                    result = await self.client.infer("dict_stats", [tensor("values", values)])
                    self.assertEqual(list(result.as_numpy("weighted")), [seed] * 4)

        await asyncio.gather(*(one(seed) for seed in range(200)))

    async def test_cancelled_calls(self):
        values = np.ones((512, 1024), np.float32)
        calls = [asyncio.ensure_future(self.client.infer("dict_stats", [tensor("values", values)])) for _ in range(20)]
        # One is answered, so that the others are on their way.
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        first, second = pair(1, seed=1)
        check_pair(self, await self.client.infer("add_sub", pair_inputs(first, second)), first, second)


if __name__ == "__main__":
    unittest.main()
