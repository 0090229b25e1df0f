"""grpc.health.v1 and server reflection, through grpc's own packages."""

import unittest

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from samples import MODELS, address

WAIT = 30
SERVICE = "inference.GRPCInferenceService"


class Case(unittest.TestCase):
    def setUp(self):
        self.channel = grpc.insecure_channel(address())
        self.addCleanup(self.channel.close)


class Health(Case):
    def setUp(self):
        super().setUp()
        self.stub = health_pb2_grpc.HealthStub(self.channel)

    def check(self, service):
        return self.stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT).status

    def first_of_watch(self, service):
        call = self.stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
        try:
            return next(call).status
        finally:
            call.cancel()

    def test_the_server_and_its_models_serve(self):
        for service in ["", *MODELS]:
            with self.subTest(service):
                self.assertEqual(self.check(service), health_pb2.HealthCheckResponse.SERVING)
                self.assertEqual(self.first_of_watch(service), health_pb2.HealthCheckResponse.SERVING)

    def test_a_name_that_does_not_exist(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.check("no_such_model")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        # To watch for it is allowed: it may come.
        self.assertEqual(self.first_of_watch("no_such_model"), health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class Reflection(Case):
    def test_services_are_listed(self):
        services = ProtoReflectionDescriptorDatabase(self.channel).get_services()
        self.assertLessEqual({SERVICE, "grpc.health.v1.Health"}, set(services))

    def test_a_client_can_be_made_from_nothing(self):
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        service = pool.FindServiceByName(SERVICE)
        self.assertEqual(len(service.methods), 20)
        method = service.FindMethodByName("ModelMetadata")
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        told = call(GetMessageClass(method.input_type)(name="digits"), timeout=WAIT)
        self.assertEqual([one.name for one in told.inputs], ["image"])

    def test_version_1_is_served_too(self):
        call = self.channel.stream_stream(  # the messages are those of v1alpha
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answers = call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=WAIT)
        names = {service.name for service in next(answers).list_services_response.service}
        self.assertIn(SERVICE, names)


if __name__ == "__main__":
    unittest.main()
