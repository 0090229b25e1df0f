"""The synchronous tritonclient against a live server that serves model_repository."""

import unittest

import grpc
import numpy as np
from tritonclient.grpc import InferRequestedOutput
from tritonclient.utils import InferenceServerException

from case import WAIT, Case
from samples import (
    DEADLINE_EXCEEDED,
    DIGIT,
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


class Server(Case):
    def test_is_live_and_ready(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())

    def test_tells_what_it_is(self):
        told = self.client.get_server_metadata()
        self.assertEqual(told.name, "sconce")
        self.assertRegex(told.version, r"^\d+\.\d+\.\d+")
        served = set(told.extensions)
        self.assertLessEqual({"classification", "model_configuration", "model_repository", "sequence", "statistics"}, served)
        unserved = {"system_shared_memory", "cuda_shared_memory"}
        self.assertEqual(served & unserved, set())

    def test_tells_which_models_are_ready(self):
        for model in MODELS:
            with self.subTest(model):
                self.assertTrue(self.client.is_model_ready(model))
                self.assertTrue(self.client.is_model_ready(model, "1"))
                self.assertFalse(self.client.is_model_ready(model, "2"))
        self.assertFalse(self.client.is_model_ready("no_such_model"))
        self.assertFalse(self.client.is_model_ready("../digits"))

    def test_lists_the_repository(self):
        models = self.client.get_model_repository_index().models
        listed = {(model.name, model.version, model.state, model.reason) for model in models}
        self.assertEqual(listed, {(model, "1", "READY", "") for model in MODELS})

    def test_takes_client_timeouts(self):
        self.assertTrue(self.client.is_server_live(client_timeout=WAIT))
        self.assertTrue(self.client.is_model_ready("digits", client_timeout=WAIT))
        self.assertEqual(self.client.get_server_metadata(client_timeout=WAIT).name, "sconce")

    def test_says_so_where_it_serves_no_such_rpc(self):
        client = self.client
        unserved = {
            "shared memory status": lambda: client.get_system_shared_memory_status(),
            "shared memory register": lambda: client.register_system_shared_memory("region", "/key", 64),
            "shared memory unregister": lambda: client.unregister_system_shared_memory(),
            "cuda status": lambda: client.get_cuda_shared_memory_status(),
            "cuda register": lambda: client.register_cuda_shared_memory("region", b"aGFuZGxl", 0, 64),
            "cuda unregister": lambda: client.unregister_cuda_shared_memory(),
        }
        for name, call in unserved.items():
            with self.subTest(name), self.refused(UNIMPLEMENTED):
                call()
        self.check_alive()

    def test_says_so_where_an_rpc_does_not_exist(self):
        with grpc.insecure_channel(address()) as channel, self.refused(UNIMPLEMENTED):
            channel.unary_unary("/inference.GRPCInferenceService/Nonsense")(b"", timeout=WAIT)


class Statistics(Case):
    def test_counts_what_this_client_asked(self):
        def told():
            [model] = self.client.get_inference_statistics("add_sub").model_stats
            return model

        before = told()
        for number in range(3):
            first, second = pair(2, seed=number)
            check_pair(self, self.client.infer("add_sub", pair_inputs(first, second)), first, second)
        with self.refused("StatusCode.INVALID_ARGUMENT"):
            self.client.infer("add_sub", pair_inputs(*pair(9, seed=9)))
        after = told()
        # Other tests do not run beside this one, but nothing here depends on what they did before.
        self.assertEqual(after.inference_count - before.inference_count, 6)
        for kind, count in {"success": 3, "fail": 1, "queue": 3, "compute_infer": 3}.items():
            grown = getattr(after.inference_stats, kind).count - getattr(before.inference_stats, kind).count
            self.assertEqual(grown, count, kind)
        self.assertGreater(after.inference_stats.success.ns, before.inference_stats.success.ns)
        self.assertGreaterEqual(after.last_inference, before.last_inference)
        self.assertEqual(
            sum(batch.compute_infer.count for batch in after.batch_stats),
            after.execution_count,
        )

    def test_tells_of_all_models_and_of_none_that_is_not_there(self):
        told = self.client.get_inference_statistics(as_json=True)["model_stats"]
        self.assertEqual([model["name"] for model in told], sorted(MODELS))
        with self.refused("StatusCode.NOT_FOUND", "no_such_model"):
            self.client.get_inference_statistics("no_such_model")


class Metadata(Case):
    def metadata(self, model, version=""):
        told = self.client.get_model_metadata(model, version)
        self.assertEqual(told.name, model)
        self.assertEqual(list(told.versions), ["1"])
        self.assertEqual(told.platform, "pytorch_libtorch")

        def tensors(side):
            return [(one.name, one.datatype, list(one.shape)) for one in side]

        return tensors(told.inputs), tensors(told.outputs)

    def test_of_a_model_with_batches(self):
        expected = [("image", "FP32", [-1, 1, 8, 8])], [("scores", "FP32", [-1, 10])]
        self.assertEqual(self.metadata("digits"), expected)
        self.assertEqual(self.metadata("digits", "1"), expected)

    def test_of_a_model_with_tritons_config(self):
        inputs, outputs = self.metadata("add_sub")
        self.assertEqual(inputs, [("INPUT0", "FP32", [-1, 16]), ("INPUT1", "FP32", [-1, 16])])
        self.assertEqual(outputs, [("OUTPUT__0", "FP32", [-1, 16]), ("OUTPUT__1", "FP32", [-1, 16])])

    def test_of_a_model_without_batches(self):
        inputs, outputs = self.metadata("text_stats")
        self.assertEqual(inputs, [("text", "BYTES", [-1])])
        self.assertEqual(outputs, [("clean", "BYTES", [-1]), ("words", "INT64", [-1])])

    def test_of_a_model_without_config(self):
        inputs, outputs = self.metadata("dict_stats")
        for _, datatype, shape in inputs + outputs:  # whichever of the names the code gave away
            self.assertEqual((datatype, shape), ("FP32", [-1]))

    def test_of_what_is_not_there(self):
        with self.refused(NOT_FOUND, "Request for unknown model: 'no_such_model' is not found"):
            self.client.get_model_metadata("no_such_model")
        with self.refused(NOT_FOUND, "Request for unknown model: 'digits' version 9 is not found"):
            self.client.get_model_metadata("digits", "9")
        with self.refused(NOT_FOUND, "Request for unknown model: 'no_such_model' is not found"):
            self.client.get_model_config("no_such_model")

    def test_config_of_every_model(self):
        for model in MODELS:
            with self.subTest(model):
                self.assertEqual(self.client.get_model_config(model).config.name, model)

    def test_config_from_yaml(self):
        config = self.client.get_model_config("digits").config
        self.assertEqual(config.max_batch_size, 32)
        self.assertEqual([one.name for one in config.input], ["image"])
        self.assertEqual(list(config.input[0].dims), [1, 8, 8])
        self.assertEqual(config.input[0].data_type, 11)  # TYPE_FP32
        self.assertEqual([one.name for one in config.output], ["scores"])
        self.assertEqual(list(config.output[0].dims), [10])
        self.assertEqual(config.output[0].label_filename, "labels.txt")

    def test_config_from_tritons_own(self):
        config = self.client.get_model_config("add_sub").config
        self.assertEqual(config.max_batch_size, 8)
        self.assertEqual(config.platform, "pytorch_libtorch")
        self.assertEqual([(one.name, list(one.dims)) for one in config.input], [("INPUT0", [16]), ("INPUT1", [16])])
        self.assertEqual([one.name for one in config.output], ["OUTPUT__0", "OUTPUT__1"])

    def test_as_json(self):
        self.assertEqual(self.client.get_server_metadata(as_json=True)["name"], "sconce")
        self.assertEqual(self.client.get_model_metadata("digits", as_json=True)["name"], "digits")
        self.assertEqual(self.client.get_model_config("digits", as_json=True)["config"]["max_batch_size"], 32)


class Infer(Case):
    def test_digits(self):
        image = digit_image()
        result = self.client.infer("digits", [tensor("image", image)])
        check_digits(self, result, image)
        self.assertEqual(int(result.as_numpy("scores")[0].argmax()), DIGIT)

    def test_digits_in_batches(self):
        for count in (2, 5, 32):
            with self.subTest(count):
                images = digit_images(count, seed=count)
                check_digits(self, self.client.infer("digits", [tensor("image", images)]), images)

    def test_add_sub_in_batches(self):
        for rows in (1, 3, 8):
            with self.subTest(rows):
                first, second = pair(rows, seed=rows)
                check_pair(self, self.client.infer("add_sub", pair_inputs(first, second)), first, second)

    def test_inputs_in_any_order(self):
        first, second = pair(2, seed=3)
        inputs = [tensor("INPUT1", second), tensor("INPUT0", first)]
        check_pair(self, self.client.infer("add_sub", inputs), first, second)

    def test_infinities_and_nan_pass(self):
        first, second = pair(1, seed=4)
        first[0, :4] = [np.inf, -np.inf, np.nan, -0.0]
        result = self.client.infer("add_sub", pair_inputs(first, second))
        np.testing.assert_array_equal(result.as_numpy("OUTPUT__0"), first + second)

    def test_text(self):
        lines = ["Hello, World!", "  It's\ta well-known\nfact.  ", "", "...", "ONE"]
        result = self.client.infer("text_stats", [tensor("text", texts(*lines))])
        check_texts(self, result, lines)
        self.assertEqual(list(result.as_numpy("words")), [2, 4, 0, 0, 1])

    def test_text_in_unicode(self):
        lines = ["Grüße, Jürgen!", "日本語。 テスト", "naïve 🔥 CAFÉ", "Привет, мир", "e\u0301 \u200d \u3000"]
        result = self.client.infer("text_stats", [tensor("text", texts(*lines))])
        check_texts(self, result, lines)
        self.assertEqual(result.as_numpy("clean")[0].decode(), "grüße jürgen")

    def test_bytes_that_are_no_text(self):
        lines = [b"\xff\xfe A", b"nul\0 B", b"\x80", bytes(range(128, 256))]
        check_texts(self, self.client.infer("text_stats", [tensor("text", texts(*lines))]), lines)

    def test_many_and_long_texts(self):
        lines = [f"Line {index}, of many!" for index in range(5000)]
        check_texts(self, self.client.infer("text_stats", [tensor("text", texts(*lines))]), lines)
        long = ["Many, WORDS! " * 200_000]
        check_texts(self, self.client.infer("text_stats", [tensor("text", texts(*long))]), long)

    def test_no_texts_at_all(self):
        result = self.client.infer("text_stats", [tensor("text", np.empty([0], np.object_))])
        self.assertEqual(result.as_numpy("clean").shape, (0,))
        self.assertEqual(result.as_numpy("words").shape, (0,))
        self.assertEqual(result.as_numpy("words").dtype, np.int64)

    def test_dict(self):
        values = np.array([1, 2, 3, 4], np.float32)
        weights = np.array([1, 0, 0, 3], np.float32)
        result = self.client.infer("dict_stats", [tensor("values", values), tensor("weights", weights)])
        self.assertEqual(list(result.as_numpy("mean")), [3.25])
        self.assertEqual(list(result.as_numpy("total")), [13])
        self.assertEqual(list(result.as_numpy("weighted")), [1, 0, 0, 12])

    def test_dict_without_its_optional_key(self):
        values = np.array([[1, 2], [3, 6]], np.float32)
        result = self.client.infer("dict_stats", [tensor("values", values)])
        self.assertEqual(list(result.as_numpy("mean")), [3])
        self.assertEqual(list(result.as_numpy("total")), [12])
        np.testing.assert_array_equal(result.as_numpy("weighted"), values)

    def test_dict_of_doubles(self):
        values = np.array([1e-300, 0.1, 1e300])
        result = self.client.infer("dict_stats", [tensor("values", values)])
        self.assertEqual(result.as_numpy("weighted").dtype, np.float64)
        np.testing.assert_array_equal(result.as_numpy("weighted"), values)

    def test_tensors_without_elements(self):
        for shape in ([0], [3, 0], [0, 2, 5]):
            with self.subTest(shape):
                result = self.client.infer("dict_stats", [tensor("values", np.zeros(shape, np.float32))])
                self.assertEqual(list(result.as_numpy("weighted").shape), shape)
                self.assertEqual(list(result.as_numpy("total")), [0])
                self.assertTrue(np.isnan(result.as_numpy("mean")[0]))

    def test_large_tensors_come_back_whole(self):
        values = np.random.default_rng(5).random((2048, 1024), np.float32)  # 8 MB
        weights = np.random.default_rng(6).random((2048, 1024), np.float32)
        result = self.client.infer("dict_stats", [tensor("values", values), tensor("weights", weights)])
        np.testing.assert_array_equal(result.as_numpy("weighted"), values * weights)
        mean = np.average(values.astype(np.float64), weights=weights.astype(np.float64))
        np.testing.assert_allclose(result.as_numpy("mean"), [mean], rtol=1e-4)


class Request(Case):
    def setUp(self):
        super().setUp()
        self.first, self.second = pair(1, seed=11)

    def infer(self, **options):
        result = self.client.infer("add_sub", pair_inputs(self.first, self.second), **options)
        if "outputs" not in options:
            check_pair(self, result, self.first, self.second)
        return result.get_response()

    def test_ids_are_echoed(self):
        self.assertEqual(self.infer(request_id="request 42 ✓").id, "request 42 ✓")
        self.assertEqual(self.infer().id, "")

    def test_answers_name_model_and_version(self):
        for version in ("", "1"):
            answer = self.infer(model_version=version)
            self.assertEqual((answer.model_name, answer.model_version), ("add_sub", "1"))

    def test_outputs_come_raw_and_aligned(self):
        answer = self.infer()
        self.assertEqual(len(answer.raw_output_contents), len(answer.outputs))
        for output in answer.outputs:
            self.assertFalse(output.HasField("contents"))

    def test_only_the_requested_outputs_come(self):
        for names in (["OUTPUT__1"], ["OUTPUT__0"], ["OUTPUT__1", "OUTPUT__0"]):
            with self.subTest(names):
                result = self.client.infer(
                    "add_sub",
                    pair_inputs(self.first, self.second),
                    outputs=[InferRequestedOutput(name) for name in names],
                )
                self.assertEqual({output.name for output in result.get_response().outputs}, set(names))
                expected = {"OUTPUT__0": self.first + self.second, "OUTPUT__1": self.first - self.second}
                for name in names:
                    np.testing.assert_array_equal(result.as_numpy(name), expected[name])

    def test_only_the_requested_outputs_of_a_dict_come(self):
        values = np.array([2, 4], np.float32)
        result = self.client.infer("dict_stats", [tensor("values", values)], outputs=[InferRequestedOutput("total")])
        self.assertEqual([output.name for output in result.get_response().outputs], ["total"])
        self.assertEqual(list(result.as_numpy("total")), [6])

    def test_compression(self):
        for algorithm in ("gzip", "deflate"):
            with self.subTest(algorithm):
                self.infer(compression_algorithm=algorithm)
                values = np.zeros(500_000, np.float32)
                result = self.client.infer("dict_stats", [tensor("values", values)], compression_algorithm=algorithm)
                np.testing.assert_array_equal(result.as_numpy("weighted"), values)

    def test_parameters_are_taken(self):
        self.infer(parameters={"text": "x", "flag": True, "count": 3, "ratio": 0.5})

    def test_priority_and_timeout_are_taken(self):
        self.infer(priority=1)
        self.infer(timeout=10_000_000)  # microseconds
        self.infer(priority=2, timeout=10_000_000, client_timeout=WAIT, headers={"x-test": "1"})

    def test_a_deadline_that_has_passed(self):
        values = np.ones(8_000_000, np.float32)  # 32 MB take longer than this
        with self.refused(DEADLINE_EXCEEDED, "Deadline Exceeded"):
            self.client.infer("dict_stats", [tensor("values", values)], client_timeout=0.001)
        self.check_alive()

    def test_classification(self):
        image = digit_image()
        result = self.client.infer(
            "digits", [tensor("image", image)], outputs=[InferRequestedOutput("scores", class_count=3)]
        )
        self.assertEqual(result.get_output("scores").datatype, "BYTES")
        rows = result.as_numpy("scores")
        self.assertEqual(rows.shape, (1, 3))
        best = [entry.decode().split(":") for entry in rows[0]]
        expected = digit_scores(image)[0]
        order = np.argsort(-expected)[:3]
        self.assertEqual([int(index) for _, index, _ in best], list(order))
        self.assertEqual([label for _, _, label in best], ["seven", "two", "three"])
        np.testing.assert_allclose([float(value) for value, _, _ in best], expected[order], rtol=1e-3, atol=1e-5)

    def test_classification_of_a_batch(self):
        images = digit_images(4, seed=21)
        result = self.client.infer(
            "digits", [tensor("image", images)], outputs=[InferRequestedOutput("scores", class_count=1)]
        )
        best = [entry.decode().split(":") for entry in result.as_numpy("scores").reshape(4)]
        self.assertEqual([int(index) for _, index, _ in best], list(digit_scores(images).argmax(axis=1)))

    def test_classification_with_more_classes_than_there_are(self):
        result = self.client.infer(
            "digits", [tensor("image", digit_image())], outputs=[InferRequestedOutput("scores", class_count=99)]
        )
        self.assertEqual(result.as_numpy("scores").shape, (1, 10))

    def test_classification_without_labels(self):
        first = np.arange(16, dtype=np.float32)[np.newaxis]
        result = self.client.infer(
            "add_sub",
            pair_inputs(first, np.zeros_like(first)),
            outputs=[InferRequestedOutput("OUTPUT__0", class_count=2), InferRequestedOutput("OUTPUT__1")],
        )
        best = [entry.decode().split(":") for entry in result.as_numpy("OUTPUT__0")[0]]
        self.assertEqual([(float(value), int(index)) for value, index in best], [(15, 15), (14, 14)])
        np.testing.assert_array_equal(result.as_numpy("OUTPUT__1"), first)


if __name__ == "__main__":
    unittest.main()
