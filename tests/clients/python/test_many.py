"""Many requests at once through the synchronous tritonclient, each checked against its own answer."""

import queue
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tritonclient.grpc import InferenceServerClient

from case import WAIT, Case
from samples import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    address,
    check_digits,
    check_pair,
    check_texts,
    digit_images,
    pair,
    pair_inputs,
    tensor,
    texts,
)


class ManyAtOnce(Case):
    """Every request gets its own answer."""

    IN_FLIGHT = 64

    def test_threads_that_share_a_client(self):
        def work(seed):
            for turn in range(10):
                first, second = pair(1 + (seed + turn) % 8, seed=1000 * seed + turn)
                name = f"{seed}.{turn}"
                result = self.client.infer("add_sub", pair_inputs(first, second), request_id=name)
                self.assertEqual(result.get_response().id, name)
                check_pair(self, result, first, second)

        with ThreadPoolExecutor(self.IN_FLIGHT) as pool:
            list(pool.map(work, range(self.IN_FLIGHT)))

    def test_clients_of_their_own_and_all_models(self):
        def work(seed):
            with InferenceServerClient(address()) as client:
                for turn in range(4):
                    match (seed + turn) % 4:
                        case 0:
                            first, second = pair(2, seed)
                            check_pair(self, client.infer("add_sub", pair_inputs(first, second)), first, second)
                        case 1:
                            images = digit_images(1 + seed % 3, seed)
                            check_digits(self, client.infer("digits", [tensor("image", images)]), images)
                        case 2:
                            lines = [f"Text {seed}, {turn}!"] * (1 + seed % 5)
                            check_texts(self, client.infer("text_stats", [tensor("text", texts(*lines))]), lines)
                        case 3:
                            values = np.full(1 + seed, seed, np.float32)
                            result = client.infer("dict_stats", [tensor("values", values)])
                            self.assertEqual(list(result.as_numpy("total")), [seed * (1 + seed)])

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(self.IN_FLIGHT)))

    def test_wrong_requests_among_right_ones(self):
        def work(seed):
            first, second = pair(1, seed)
            if seed % 3 == 0:
                with self.refused(INVALID_ARGUMENT, "INPUT1"):
                    self.client.infer("add_sub", pair_inputs(first, second[:, : seed % 16].copy()))
            else:
                check_pair(self, self.client.infer("add_sub", pair_inputs(first, second)), first, second)

        with ThreadPoolExecutor(self.IN_FLIGHT) as pool:
            list(pool.map(work, range(4 * self.IN_FLIGHT)))

    def test_callbacks(self):
        answers = queue.Queue()
        pairs = [pair(1 + seed % 8, seed) for seed in range(self.IN_FLIGHT)]
        for seed, (first, second) in enumerate(pairs):
            self.client.async_infer(
                "add_sub",
                pair_inputs(first, second),
                lambda result, error, seed=seed: answers.put((seed, result, error)),
                request_id=str(seed),
            )
        seen = set()
        for _ in pairs:
            seed, result, error = answers.get(timeout=WAIT)
            self.assertIsNone(error)
            self.assertEqual(result.get_response().id, str(seed))
            check_pair(self, result, *pairs[seed])
            seen.add(seed)
        self.assertEqual(len(seen), len(pairs))

    def test_callback_with_an_error(self):
        answers = queue.Queue()
        self.client.async_infer(
            "no_such_model", pair_inputs(*pair(1, 1)), lambda result, error: answers.put((result, error))
        )
        result, error = answers.get(timeout=WAIT)
        self.assertIsNone(result)
        self.assertEqual(error.status(), NOT_FOUND)

    def test_cancelled_calls(self):
        answers = queue.Queue()
        values = np.ones((512, 1024), np.float32)
        for _ in range(20):
            call = self.client.async_infer(
                "dict_stats", [tensor("values", values)], lambda result, error: answers.put((result, error))
            )
            call.cancel()
        for _ in range(20):
            result, error = answers.get(timeout=WAIT)
            self.assertTrue(result is not None or error.status() == "StatusCode.CANCELLED")
        self.check_alive()

    def test_a_large_request_does_not_stop_small_ones(self):
        values = np.ones(8_000_000, np.float32)  # 32 MB
        done = threading.Event()

        def large():
            with InferenceServerClient(address()) as client:
                result = client.infer("dict_stats", [tensor("values", values)])
                self.assertEqual(result.as_numpy("weighted").shape, values.shape)
            done.set()

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(large)
            deadline = time.monotonic() + WAIT
            while not done.is_set() and not future.done() and time.monotonic() < deadline:
                self.check_alive()
            future.result(timeout=WAIT)


if __name__ == "__main__":
    unittest.main()
