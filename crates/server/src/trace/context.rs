//! Where the caller's trace is: `traceparent` and `tracestate` of W3C Trace Context, from the metadata of a
//! call.

use http::HeaderValue;
use opentelemetry::trace::TraceState;
use sconce_engine::observe::TraceContext;

/// As much as every vendor has to pass on; longer ones are left out.
const LONGEST_STATE: usize = 512;

/// The span of the caller that a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) at: TraceContext,
    /// Whether the caller records his part of the trace.
    pub(crate) sampled: bool,
}

impl Caller {
    /// Who calls, as `traceparent` says. What cannot be understood is as if it were not there.
    pub(crate) fn of(parent: &HeaderValue) -> Option<Self> {
        parse(parent.as_bytes())
    }
}

/// `VERSION-TRACE-SPAN-FLAGS`, in lowercase hexadecimal digits. Later versions may have more behind it.
fn parse(text: &[u8]) -> Option<Caller> {
    let version = u8::try_from(number(text.get(..2)?)?).ok()?;
    let as_long_as_it_may_be = match version {
        0 => text.len() == 55,
        0xff => false,
        _ => text.get(55).is_none_or(|next| *next == b'-'),
    };
    if !as_long_as_it_may_be || [2, 35, 52].iter().any(|at| text.get(*at) != Some(&b'-')) {
        return None;
    }
    let trace_id = number(text.get(3..35)?)?;
    let span_id = u64::try_from(number(text.get(36..52)?)?).ok()?;
    let flags = number(text.get(53..55)?)?;
    let at = TraceContext { trace_id, span_id };
    (trace_id != 0 && span_id != 0).then_some(Caller { at, sampled: flags & 1 == 1 })
}

fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// Whether it is worth keeping.
pub(crate) fn is_short(said: &HeaderValue) -> bool {
    said.len() <= LONGEST_STATE
}

/// What `tracestate` says; nothing, if it is none.
pub(crate) fn state(said: &HeaderValue) -> TraceState {
    let text = said.to_str().ok().filter(|_| is_short(said));
    text.and_then(|text| text.parse().ok()).unwrap_or(TraceState::NONE)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::{Caller, parse, state};

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn caller(text: &str) -> Option<Caller> {
        Caller::of(&HeaderValue::from_str(text).expect("a value"))
    }

    #[test]
    fn a_caller_is_who_he_says() {
        let good = caller(GOOD).expect("a caller");
        assert_eq!(good.at.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(good.at.span_id, 0x00f0_67aa_0ba9_02b7);
        assert!(good.sampled);
        assert!(!caller(&GOOD.replace("-01", "-00")).expect("a caller").sampled);
        // Other flags mean nothing yet, and later versions may say more.
        assert!(!caller(&GOOD.replace("-01", "-fe")).expect("a caller").sampled);
        assert!(caller(&GOOD.replace("00-4", "01-4")).is_some());
        assert!(caller(&GOOD.replace("00-4", "cc-4").replace("-01", "-01-what")).is_some());
    }

    #[test]
    fn what_is_malformed_is_as_if_it_were_not_there() {
        let bad = [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ];
        for text in bad {
            assert_eq!(caller(text), None, "{text}");
        }
    }

    #[test]
    fn the_state_of_a_trace_is_passed_on_if_it_is_one() {
        let long = format!("a={}", "x".repeat(600));
        let cases =
            [("rojo=00f0,congo=t61", "rojo=00f0,congo=t61"), ("no state", ""), ("UPPER=1", ""), (&long, "")];
        for (said, expected) in cases {
            assert_eq!(state(&HeaderValue::from_str(said).expect("a value")).header(), expected, "{said:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = (Caller::of(&value), state(&value));
            }
        }

        #[test]
        fn what_is_nearly_one_breaks_nothing(text in "[0-9a-f-]{2}-[0-9a-fA-F-]{30,34}-[0-9a-f]{15,17}-[0-9a-f]{1,3}(-.*)?") {
            if let Some(Caller { at, .. }) = parse(text.as_bytes()) {
                let written = format!("-{:032x}-{:016x}-", at.trace_id, at.span_id);
                prop_assert!(text[2..].starts_with(&written));
            }
        }
    }
}
