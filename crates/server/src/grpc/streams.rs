//! ModelStreamInfer: messages of a stream, each answered like one of ModelInfer, or with as many answers as its model makes.

use std::{pin::Pin, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::Response;
use hyper::body::Incoming;
use sconce_engine::{
    generate::{self, Answers},
    model::LiveVersion,
};
use sconce_proto::inference::ModelInferRequest;

use super::{Answer, Service, keep, refuse, watch_of};
use crate::{
    conversation::{Conversation, Said, closing},
    observe::MessageEnding,
    to_proto,
    wire::{self, Body, Encoding, Messages},
};

/// The header by which clients of Triton ask for real statuses on a stream.
const REAL_ERRORS: &str = "triton_grpc_error";

/// How the messages of a stream are answered.
struct Streaming {
    deadline: Option<Instant>,
    encoding: Option<Encoding>,
    real_errors: bool,
    ending: MessageEnding,
}

impl Service {
    /// Answers requests as they come, each like one of ModelInfer, in their order.
    pub(super) fn stream(self: &Arc<Self>, request: http::Request<Incoming>) -> Response<Body> {
        let watch = watch_of(&request);
        let (head, body) = request.into_parts();
        let begin = || Answer::Ok((Encoding::of_request(&head.headers)?, wire::deadline(&head.headers)?));
        let (packed, deadline) = match begin() {
            Ok(begun) => begun,
            Err(status) => return refuse(watch.as_ref(), &status),
        };
        let encoding = Encoding::of_response(self.compression, packed, &head.headers);
        let real_errors = head.headers.get(REAL_ERRORS).is_some_and(|value| value == "true");
        let messages = futures_util::stream::unfold(
            Messages::new(body, packed, &self.limits),
            |mut messages| async move { messages.next().await.transpose().map(|message| (message, messages)) },
        );
        let this = Arc::clone(self);
        let answer = move |data: Bytes| {
            let watch = watch.as_ref().map(|watch| watch.message(data.len()));
            let streaming =
                Streaming { deadline, encoding, real_errors, ending: MessageEnding(watch, deadline) };
            Arc::clone(&this).answer_streamed(data, streaming)
        };
        wire::stream(
            Conversation::new(messages, answer, deadline, closing(self.stop.clone(), self.max_stream_age)),
            encoding,
        )
    }

    /// One message of a stream. An error ends the stream; what is wrong with a request alone is an answer,
    /// unless the caller wants the stream to end with it.
    async fn answer_streamed(self: Arc<Self>, data: Bytes, streaming: Streaming) -> Answer<Said> {
        let Streaming { deadline, encoding, real_errors, mut ending } = streaming;
        let held = data.clone();
        let request = wire::check_infer_request(&data).and_then(|()| wire::decode::<ModelInferRequest>(data));
        let mut request = request.inspect_err(|status| ending.end(Some(status)))?;
        let id = std::mem::take(&mut request.id);
        let answer = async {
            let watch = ending.0.as_deref();
            let (live, mut request) = self.find(request, &id, deadline, watch)?;
            let _held = keep(&live, &mut request, held);
            if live.generates() {
                let answers = live.generate(request).map_err(|error| self.refusal(&error, watch))?;
                return Ok(Err((live, answers)));
            }
            let mut run = None;
            let outcome = live.infer_seen(request, &mut run).await;
            let outputs = self.told(outcome, run, watch)?;
            let response = to_proto::infer_response(&live.model, live.version, id.clone(), outputs);
            let response = to_proto::stream_response(response, true);
            Answer::Ok(Ok(wire::encode(&response, encoding, &self.limits.answers)?))
        };
        match answer.await {
            Ok(Err((live, answers))) => {
                let streaming = Streaming { deadline, encoding, real_errors, ending };
                Ok(Said::Many(self.generated(&live, id, answers, streaming)))
            }
            Ok(Ok(answer)) => {
                ending.answered(answer.len());
                ending.end(None);
                Ok(Said::One(answer))
            }
            Err(status) => {
                ending.end(Some(&status));
                if real_errors {
                    return Err(status);
                }
                let response = to_proto::stream_error(id, &status);
                Ok(Said::One(wire::encode(&response, encoding, &self.limits.answers)?))
            }
        }
    }

    /// The answers to one message, as they are made.
    fn generated(
        self: &Arc<Self>,
        live: &LiveVersion,
        id: String,
        answers: Answers,
        streaming: Streaming,
    ) -> Pin<Box<dyn Stream<Item = Answer<Bytes>> + Send>> {
        // Not the version itself: who does not read would hold its weights.
        let (this, model, version) = (Arc::clone(self), Arc::clone(&live.model), live.version);
        let Streaming { encoding, real_errors, mut ending, .. } = streaming;
        let encode = move |(answer, last): generate::Answer| {
            let response = match answer {
                Ok(outputs) => {
                    let response = to_proto::infer_response(&model, version, id.clone(), outputs);
                    to_proto::stream_response(response, last)
                }
                Err(error) => {
                    let status = this.refusal(&error, ending.0.as_deref());
                    ending.end(Some(&status));
                    if real_errors {
                        return Err(status);
                    }
                    to_proto::stream_error(id.clone(), &status)
                }
            };
            let answer = wire::encode(&response, encoding, &this.limits.answers);
            let answer = answer.inspect_err(|status| ending.end(Some(status)))?;
            ending.answered(answer.len());
            if last {
                ending.end(None);
            }
            Ok(answer)
        };
        let answers = futures_util::stream::unfold(answers, |mut answers| async move {
            answers.next().await.map(|answer| (answer, answers))
        });
        Box::pin(answers.map(encode))
    }
}
