//! Every error has its code, Triton's where they are asked for, and a refusal says when to come back.

use std::time::Duration;

use prost::Message;
use sconce_engine::Version;
use tonic_types::StatusExt;

use super::*;
use crate::wire;

const OURS: Codes = Codes { triton: false };
const TRITONS: Codes = Codes { triton: true };

fn model() -> String {
    "m".to_owned()
}

fn full(retry_after: Option<Duration>) -> Error {
    Error::QueueFull { model: model(), limit: 4, priority: None, retry_after }
}

fn text() -> String {
    "why".to_owned()
}

#[test]
fn errors_have_the_codes_of_the_readme() {
    let version = Version::from_dir_name("3").unwrap();
    let both = |code| (code, code);
    let cases = [
        (Error::ModelNotFound { model: model() }, both(Code::NotFound)),
        (Error::VersionNotFound { model: model(), version }, both(Code::NotFound)),
        (Error::NoVersion { model: model(), why: text() }, both(Code::NotFound)),
        (Error::NotReady { model: model(), version: text(), why: text() }, both(Code::Unavailable)),
        (Error::DeviceLost { model: model(), message: text() }, both(Code::Unavailable)),
        (Error::invalid("wrong"), both(Code::InvalidArgument)),
        (full(None), (Code::ResourceExhausted, Code::Unavailable)),
        (full(Some(Duration::from_millis(3))), (Code::ResourceExhausted, Code::Unavailable)),
        (
            Error::QueuesFull { limit: 4, size: 5, retry_after: None },
            (Code::ResourceExhausted, Code::Unavailable),
        ),
        (
            Error::QueueTimeout { model: model(), waited: Duration::from_millis(3) },
            (Code::DeadlineExceeded, Code::Unavailable),
        ),
        (Error::DeadlineExceeded { stage: "while it waited" }, both(Code::DeadlineExceeded)),
        (Error::Model { model: model(), message: text() }, both(Code::Internal)),
        (Error::Output { model: model(), message: text() }, (Code::Internal, Code::InvalidArgument)),
        (Error::WorkerLost { model: model() }, both(Code::Internal)),
    ];
    for (error, (ours, tritons)) in cases {
        for (codes, code) in [(OURS, ours), (TRITONS, tritons)] {
            let status = codes.of_error(&error);
            assert_eq!((status.code(), status.message()), (code, &*error.to_string()));
        }
    }
    let cases = [
        (Refused::NotFound(text()), (Code::NotFound, Code::Internal)),
        (Refused::Failed(text()), both(Code::InvalidArgument)),
        (Refused::NotNow(text()), both(Code::Unavailable)),
        (Refused::NoSpace(text()), both(Code::ResourceExhausted)),
        (Refused::Unwritten(text()), both(Code::Internal)),
    ];
    for (refused, (ours, tritons)) in cases {
        for (codes, code) in [(OURS, ours), (TRITONS, tritons)] {
            let status = codes.of_refused(&refused);
            assert_eq!((status.code(), status.message()), (code, "why"));
        }
    }
}

/// The status as its caller reads it, and the trailer.
fn received(error: &Error, codes: Codes) -> (Status, Option<String>) {
    let response = wire::status(&codes.of_error(error));
    let status = Status::from_header_map(response.headers()).expect("a status");
    let pushback = response.headers().get(PUSHBACK).map(|value| value.to_str().unwrap().to_owned());
    (status, pushback)
}

#[test]
fn a_hint_of_when_to_retry_reaches_the_caller_in_both_forms() {
    let cases = [
        (Duration::ZERO, 0),
        (Duration::from_nanos(1), 1),
        (Duration::from_micros(1500), 2),
        (Duration::from_secs(2), 2000),
        (Duration::MAX, i32::MAX),
    ];
    for (after, millis) in cases {
        let queues = Error::QueuesFull { limit: 4, size: 5, retry_after: Some(after) };
        for (error, codes) in [(full(Some(after)), OURS), (full(Some(after)), TRITONS), (queues, OURS)] {
            let (status, pushback) = received(&error, codes);
            assert_eq!(pushback, Some(millis.to_string()));
            let info = status.get_details_retry_info().expect("details");
            let told = Duration::from_millis(millis.unsigned_abs().into());
            assert_eq!(info.retry_delay, Some(told));
            // Some clients take code and message from the details.
            let details = tonic_types::pb::Status::decode(status.details()).unwrap();
            assert_eq!((details.code, &*details.message), (status.code().into(), status.message()));
            assert_eq!(status.code(), codes.of_error(&error).code());
        }
    }
}

#[test]
fn without_a_hint_there_is_none() {
    for error in [full(None), Error::invalid("wrong")] {
        let (status, pushback) = received(&error, OURS);
        assert_eq!((pushback, status.details()), (None, &[][..]));
    }
}
