"""Requests that are wrong, each in one way, through tritonclient and through the bare stub."""

import unittest

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from case import WAIT, Case
from samples import (
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNIMPLEMENTED,
    address,
    digit_image,
    pair,
    pair_inputs,
    tensor,
    texts,
)


class Refusals(Case):
    """A wrong request is refused with a code and a text that help, and harms nobody."""

    def setUp(self):
        super().setUp()
        self.first, self.second = pair(1, seed=31)
        channel = grpc.insecure_channel(address())
        self.addCleanup(channel.close)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def tearDown(self):
        self.check_alive()

    def request(self):
        """A right request, to be made wrong."""
        request = service_pb2.ModelInferRequest(model_name="add_sub")
        for name, values in (("INPUT0", self.first), ("INPUT1", self.second)):
            request.inputs.add(name=name, datatype="FP32", shape=values.shape)
            request.raw_input_contents.append(values.tobytes())
        return request

    def send(self, request):
        return self.stub.ModelInfer(request, timeout=WAIT)

    def test_the_request_is_right_otherwise(self):
        self.assertEqual(len(self.send(self.request()).outputs), 2)

    def test_unknown_model(self):
        with self.refused(NOT_FOUND, "Request for unknown model: 'no_such_model' is not found"):
            self.client.infer("no_such_model", pair_inputs(self.first, self.second))

    def test_model_name_that_tries_to_escape(self):
        for name in ("", "../model_repository/digits", "digits/1", "a\nb", "x" * 100_000):
            with self.subTest(name[:40]), self.assertRaises(InferenceServerException) as caught:
                self.client.infer(name, pair_inputs(self.first, self.second))
            self.assertIn(caught.exception.status(), (NOT_FOUND, INVALID_ARGUMENT))
            self.assertLess(len(caught.exception.message()), 1000)
            self.assertNotIn("\n", caught.exception.message())

    def test_unknown_version(self):
        with self.refused(NOT_FOUND, "'add_sub' version 9 is not found"):
            self.client.infer("add_sub", pair_inputs(self.first, self.second), model_version="9")

    def test_version_that_is_no_number(self):
        for version in ("abc", "-1", "1.0", "99999999999999999999999"):
            with self.subTest(version), self.refused(INVALID_ARGUMENT, version):
                self.client.infer("add_sub", pair_inputs(self.first, self.second), model_version=version)

    def test_wrong_shape(self):
        with self.refused(INVALID_ARGUMENT, "unexpected shape for input 'INPUT0'", "[-1,16]", "[1,15]"):
            self.client.infer("add_sub", pair_inputs(self.first[:, :15].copy(), self.second))

    def test_wrong_number_of_dimensions(self):
        image = digit_image()
        for wrong in (image[0], image[np.newaxis], image.reshape(1, 64)):
            with self.subTest(wrong.shape), self.refused(INVALID_ARGUMENT, "'image'", "[-1,1,8,8]"):
                self.client.infer("digits", [tensor("image", wrong)])

    def test_batches_that_disagree(self):
        with self.refused(INVALID_ARGUMENT, "INPUT"):
            self.client.infer("add_sub", [tensor("INPUT0", pair(2, 1)[0]), tensor("INPUT1", pair(3, 1)[1])])

    def test_batch_too_large(self):
        with self.refused(INVALID_ARGUMENT, "batch-size must be <= 8"):
            self.client.infer("add_sub", pair_inputs(*pair(9, seed=1)))

    def test_batch_of_zero(self):
        with self.refused(INVALID_ARGUMENT):
            self.client.infer("add_sub", pair_inputs(*pair(0, seed=1)))

    def test_negative_shape(self):
        request = self.request()
        request.inputs[0].shape[0] = -1
        with self.refused(INVALID_ARGUMENT, "INPUT0"):
            self.send(request)

    def test_shape_that_overflows(self):
        request = service_pb2.ModelInferRequest(model_name="dict_stats")
        request.inputs.add(name="values", datatype="FP32", shape=[2**62, 2**62, 4])
        request.raw_input_contents.append(b"\0" * 4)
        with self.refused(INVALID_ARGUMENT, "values"):
            self.send(request)

    def test_wrong_datatype(self):
        text = "inference input 'INPUT0' data-type is 'INT32', but model 'add_sub' expects 'FP32'"
        with self.refused(INVALID_ARGUMENT, text):
            self.client.infer("add_sub", pair_inputs(self.first.astype(np.int32), self.second))

    def test_datatype_that_does_not_exist(self):
        request = self.request()
        request.inputs[1].datatype = "FP31"
        with self.refused(INVALID_ARGUMENT, "INPUT1", "FP31"):
            self.send(request)

    def test_missing_input(self):
        with self.refused(INVALID_ARGUMENT, "expected 2 inputs but got 1", "missing required input(s) ['INPUT1']"):
            self.client.infer("add_sub", [tensor("INPUT0", self.first)])

    def test_no_input_at_all(self):
        with self.refused(INVALID_ARGUMENT, "INPUT0", "INPUT1"):
            self.client.infer("add_sub", [])

    def test_extra_input(self):
        with self.refused(INVALID_ARGUMENT, "INPUT2"):
            self.client.infer("add_sub", [*pair_inputs(self.first, self.second), tensor("INPUT2", self.first)])

    def test_input_of_another_name(self):
        with self.refused(INVALID_ARGUMENT, "INPUT1"):
            self.client.infer("add_sub", [tensor("INPUT0", self.first), tensor("input1", self.second)])

    def test_input_twice(self):
        twice = [*pair_inputs(self.first, self.second), tensor("INPUT0", self.first)]
        with self.refused(INVALID_ARGUMENT, "INPUT0"):
            self.client.infer("add_sub", twice)
        with self.refused(INVALID_ARGUMENT, "INPUT0"):
            self.client.infer("add_sub", [tensor("INPUT0", self.first), tensor("INPUT0", self.first)])

    def test_unknown_output(self):
        with self.refused(INVALID_ARGUMENT, "OUTPUT__7"):
            self.client.infer(
                "add_sub", pair_inputs(self.first, self.second), outputs=[InferRequestedOutput("OUTPUT__7")]
            )

    def test_output_twice(self):
        with self.refused(INVALID_ARGUMENT, "OUTPUT__0"):
            self.client.infer(
                "add_sub", pair_inputs(self.first, self.second), outputs=[InferRequestedOutput("OUTPUT__0")] * 2
            )

    def test_too_few_and_too_many_bytes(self):
        for data in (b"", b"\0" * 63, b"\0" * 65, b"\0" * 128):
            request = self.request()
            request.raw_input_contents[0] = data
            with self.subTest(len(data)), self.refused(INVALID_ARGUMENT, "INPUT0", "64"):
                self.send(request)

    def test_more_and_fewer_raw_contents_than_inputs(self):
        request = self.request()
        request.raw_input_contents.append(b"\0" * 64)
        with self.refused(INVALID_ARGUMENT):
            self.send(request)
        del request.raw_input_contents[1:]
        with self.refused(INVALID_ARGUMENT):
            self.send(request)

    def test_raw_and_typed_contents_together(self):
        request = self.request()
        request.inputs[0].contents.fp32_contents.extend(self.first[0].tolist())
        with self.refused(INVALID_ARGUMENT, "INPUT0"):
            self.send(request)

    def test_typed_contents_of_another_type_or_length(self):
        request = self.request()
        del request.raw_input_contents[:]
        request.inputs[0].contents.fp32_contents.extend([0.0] * 15)
        request.inputs[1].contents.fp32_contents.extend([0.0] * 16)
        with self.refused(INVALID_ARGUMENT, "INPUT0"):
            self.send(request)
        request.inputs[0].contents.Clear()
        request.inputs[0].contents.int64_contents.extend([0] * 16)
        with self.refused(INVALID_ARGUMENT, "INPUT0"):
            self.send(request)

    def test_texts_cut_short(self):
        for data in (b"\1\0\0", b"\5\0\0\0abc", b"\xff\xff\xff\xffabc", b"\1\0\0\0a\1\0\0\0b"):
            request = service_pb2.ModelInferRequest(model_name="text_stats")
            request.inputs.add(name="text", datatype="BYTES", shape=[1])
            request.raw_input_contents.append(data)
            with self.subTest(data), self.refused(INVALID_ARGUMENT, "text"):
                self.send(request)

    def test_shared_memory_that_is_not_served(self):
        inside = InferInput("INPUT0", [1, 16], "FP32")
        inside.set_shared_memory("region", 64)
        with self.refused(UNIMPLEMENTED, "INPUT0", "shared memory"):
            self.client.infer("add_sub", [inside, tensor("INPUT1", self.second)])
        output = InferRequestedOutput("OUTPUT__0")
        output.set_shared_memory("region", 64)
        with self.refused(UNIMPLEMENTED, "OUTPUT__0", "shared memory"):
            self.client.infer("add_sub", pair_inputs(self.first, self.second), outputs=[output])

    def test_unknown_parameter_of_tritons_own(self):
        request = self.request()
        request.parameters["triton_unheard_of"].bool_param = True
        with self.refused(INVALID_ARGUMENT, "triton_unheard_of"):
            self.send(request)

    def test_wrong_type_of_a_known_parameter(self):
        request = self.request()
        request.parameters["timeout"].string_param = "soon"
        with self.refused(INVALID_ARGUMENT, "timeout"):
            self.send(request)

    def test_classification_that_makes_no_sense(self):
        outputs = [InferRequestedOutput("scores", class_count=-1)]
        with self.refused(INVALID_ARGUMENT, "scores"):
            self.client.infer("digits", [tensor("image", digit_image())], outputs=outputs)

    def test_classification_of_texts(self):
        outputs = [InferRequestedOutput("clean", class_count=1)]
        with self.refused(INVALID_ARGUMENT, "clean"):
            self.client.infer("text_stats", [tensor("text", texts("a"))], outputs=outputs)

    def test_what_the_model_refuses(self):
        values, weights = np.ones(4, np.float32), np.ones(3, np.float32)
        with self.refused(INTERNAL, "dict_stats needs 'values' and 'weights' of one shape"):
            self.client.infer("dict_stats", [tensor("values", values), tensor("weights", weights)])

    def test_key_that_the_model_misses(self):
        with self.refused(INTERNAL, "dict_stats needs the input 'values'"):
            self.client.infer("dict_stats", [tensor("weights", np.ones(3, np.float32))])

    def test_key_that_the_model_does_not_know(self):
        inputs = [tensor("values", np.ones(3, np.float32)), tensor("weight", np.ones(3, np.float32))]
        with self.refused(INTERNAL, "dict_stats knows the inputs 'values' and 'weights', not 'weight'"):
            self.client.infer("dict_stats", inputs)


if __name__ == "__main__":
    unittest.main()
