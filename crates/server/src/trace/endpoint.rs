//! Where spans go: the flags, or else the environment as OpenTelemetry has it.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use http::Uri;
use serde::Deserialize;

use super::environment::Environment;

/// Where the HTTP API of a collector takes spans.
const PATH: &str = "/v1/traces";
/// Nobody waits for spans, but a second is as long as one likes to look for one that has just ended.
const DELAY: Duration = Duration::from_secs(1);
/// Whoever says that spans do not wait means this.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);
const TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Some thousand requests that are traced.
const QUEUE: usize = 8192;
/// So that a mistyped number does not take all memory.
const LARGEST_QUEUE: usize = 1 << 20;

/// How spans are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TraceProtocol {
    /// OTLP over gRPC, port 4317 of most collectors
    #[default]
    Grpc,
    /// OTLP over HTTP, as protobuf, port 4318 of most collectors
    Http,
}

/// A collector, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    pub(crate) protocol: TraceProtocol,
    /// How long spans may wait for others.
    pub(crate) delay: Duration,
    /// How long the collector may take.
    pub(crate) timeout: Duration,
    /// How many spans may wait.
    pub(crate) queue: usize,
    /// What the environment says in vain, for the log.
    pub(crate) in_vain: Vec<String>,
}

impl Endpoint {
    /// What the flags say, or else the environment; none if neither names a collector, or `off` was said.
    ///
    /// # Errors
    /// One sentence on what cannot be a collector.
    pub(crate) fn chosen(
        url: Option<&str>,
        protocol: Option<TraceProtocol>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Option<Self>> {
        let environment = Environment(environment);
        let named = match url {
            Some("off") => return Ok(None),
            Some(url) => Some(("--trace-endpoint", url.to_owned())),
            None => environment
                .get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
                .or_else(|| environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")),
        };
        let Some((source, address)) = named else { return Ok(None) };
        if url.is_none() && environment.is_off() {
            return Ok(None);
        }
        environment.check()?;
        let protocol = match protocol {
            Some(protocol) => protocol,
            None => {
                let names = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
                match environment.word(&names, &["grpc", "http/protobuf"])? {
                    Some("http/protobuf") => TraceProtocol::Http,
                    Some(_) | None => TraceProtocol::Grpc,
                }
            }
        };
        let url = checked(source, &address, protocol)?;
        let mut in_vain = environment.in_vain();
        if parts(&url).1.contains('@') {
            in_vain.push(format!(
                "the user in {source} has no effect here: say who you are in OTEL_EXPORTER_OTLP_HEADERS"
            ));
        }
        let millis =
            |name, least| Ok::<_, anyhow::Error>(environment.number(name, least)?.map(Duration::from_millis));
        let timeout = millis("OTEL_EXPORTER_OTLP_TIMEOUT", 0)?;
        let timeout = millis("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", 0)?.or(timeout).unwrap_or(TIMEOUT);
        let queue = environment.number("OTEL_BSP_MAX_QUEUE_SIZE", 1)?.map(usize::try_from);
        Ok(Some(Self {
            url,
            protocol,
            delay: millis("OTEL_BSP_SCHEDULE_DELAY", 0)?.unwrap_or(DELAY).max(SHORTEST_DELAY),
            // By the specification, none is as long as it takes.
            timeout: if timeout.is_zero() { LONGEST } else { timeout },
            queue: queue.map_or(QUEUE, |size| size.unwrap_or(LARGEST_QUEUE).min(LARGEST_QUEUE)),
            in_vain,
        }))
    }

    /// Its host and port, for logs: nothing of the rest has to be seen there.
    pub(crate) fn authority(&self) -> &str {
        let (_, authority, _) = parts(&self.url);
        authority.rsplit('@').next().unwrap_or_default()
    }
}

/// A URL's scheme with what ends it, what stands between that and its path, and all from there on.
fn parts(url: &str) -> (&str, &str, &str) {
    let (scheme, rest) = url.split_at(url.find("://").map_or(0, |end| end + "://".len()));
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    (scheme, authority, behind)
}

/// A URL without the secrets that may stand in front of its host or behind it.
fn shown(url: &str) -> String {
    let (scheme, authority, behind) = parts(url);
    if behind.contains('@') {
        // It may be a part of either.
        return "...".to_owned();
    }
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(_, host)| ("...@", host));
    let behind = if matches!(behind, "" | "/") { behind } else { "/..." };
    format!("{scheme}{user}{host}{behind}")
}

/// The URL that spans are sent to.
fn checked(source: &str, url: &str, protocol: TraceProtocol) -> anyhow::Result<String> {
    let uri: Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => {
            bail!("{source} {:?}: {error}; a URL such as http://127.0.0.1:4317 is expected", shown(url))
        }
    };
    ensure!(
        uri.scheme_str() != Some("https"),
        "{source} {:?}: spans are not sent over TLS; name a collector on this host or in this pod, with http://",
        shown(url)
    );
    // A port that is none is not there, but is more than the host.
    let has_port = |authority: &http::uri::Authority| {
        authority.port().is_some() || authority.as_str().len() == authority.host().len()
    };
    ensure!(
        uri.scheme_str() == Some("http")
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.authority().is_some_and(has_port),
        "{source} {:?}: a URL such as http://127.0.0.1:4317 is expected",
        shown(url)
    );
    let url = url.trim_end_matches('/');
    let is_base = source == "OTEL_EXPORTER_OTLP_ENDPOINT" || matches!(uri.path(), "" | "/");
    let whole = source == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    Ok(match protocol {
        TraceProtocol::Http if is_base && !whole => format!("{url}{PATH}"),
        TraceProtocol::Http | TraceProtocol::Grpc => url.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Endpoint, TraceProtocol};

    fn chosen(
        url: Option<&str>,
        protocol: Option<TraceProtocol>,
        variables: Variables<'_>,
    ) -> Result<Option<Endpoint>, String> {
        let environment = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        };
        Endpoint::chosen(url, protocol, environment).map_err(|error| error.to_string())
    }

    type Variables<'a> = &'a [(&'a str, &'a str)];
    /// The flags and the environment, and what they choose.
    type Chosen<'a> =
        (Option<&'a str>, Option<TraceProtocol>, Variables<'a>, Option<(&'a str, TraceProtocol)>);
    /// A flag and the environment, and two parts of what is said.
    type Wrong<'a> = (Option<&'a str>, Variables<'a>, [&'a str; 2]);

    const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

    #[test]
    fn flags_come_before_the_environment_and_neither_means_none() {
        use TraceProtocol::{Grpc, Http};

        let http = (PROTOCOL, "http/protobuf");
        let cases: &[Chosen<'_>] = &[
            (None, None, &[], None),
            (None, Some(Http), &[], None),
            (None, None, &[(BASE, "")], None),
            (Some("off"), None, &[(BASE, "http://a:1")], None),
            (Some("http://a:1"), None, &[], Some(("http://a:1", Grpc))),
            (Some("http://a:1/"), Some(Http), &[], Some(("http://a:1/v1/traces", Http))),
            (Some("http://a:1/x"), Some(Http), &[], Some(("http://a:1/x", Http))),
            (Some("http://a:1"), None, &[(BASE, "http://b:2"), http], Some(("http://a:1/v1/traces", Http))),
            (None, None, &[(BASE, "http://b:2")], Some(("http://b:2", Grpc))),
            (None, None, &[(BASE, "http://b:2/x/"), http], Some(("http://b:2/x/v1/traces", Http))),
            (
                None,
                None,
                &[(BASE, "http://b:2"), (TRACES, "http://c:3/y"), http],
                Some(("http://c:3/y", Http)),
            ),
            (None, Some(Grpc), &[(BASE, "http://b:2"), http], Some(("http://b:2", Grpc))),
            (None, None, &[(BASE, "http://b:2"), ("OTEL_SDK_DISABLED", "TRUE")], None),
            (None, None, &[(BASE, "http://b:2"), ("OTEL_TRACES_EXPORTER", "none")], None),
        ];
        for (url, protocol, variables, expected) in cases {
            let endpoint = chosen(*url, *protocol, variables).expect("a choice");
            let got = endpoint.as_ref().map(|endpoint| (&*endpoint.url, endpoint.protocol));
            assert_eq!(got, *expected, "{url:?} {protocol:?} {variables:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_collector_is_refused_by_where_it_was_said() {
        let cases: &[Wrong<'_>] = &[
            (Some("https://a:1"), &[], ["--trace-endpoint", "not sent over TLS"]),
            (Some("a:1"), &[], ["--trace-endpoint", "http://127.0.0.1:4317 is expected"]),
            (Some(""), &[], ["--trace-endpoint", "http://127.0.0.1:4317 is expected"]),
            (Some("https://me:secret@a"), &[], ["--trace-endpoint \"https://...@a\"", "not sent over TLS"]),
            (Some("ftp://a"), &[], ["--trace-endpoint", "http://127.0.0.1:4317 is expected"]),
            (Some("http://a:99999"), &[], ["--trace-endpoint", "http://127.0.0.1:4317 is expected"]),
            (None, &[(BASE, "https://a")], [BASE, "not sent over TLS"]),
            (
                Some("https://a?token=secret"),
                &[],
                ["--trace-endpoint \"https://a/...\"", "not sent over TLS"],
            ),
            (Some("https://a/otlp/secret"), &[], ["--trace-endpoint \"https://a/...\"", "not sent over TLS"]),
            (Some("https://me:a?secret@a"), &[], ["--trace-endpoint \"...\"", "not sent over TLS"]),
            (None, &[(BASE, "http://a"), (PROTOCOL, "http/json")], [PROTOCOL, "grpc or http/protobuf"]),
            (Some("http://a"), &[("OTEL_BSP_MAX_QUEUE_SIZE", "0")], ["OTEL_BSP_MAX_QUEUE_SIZE", "from 1"]),
            (
                Some("http://a"),
                &[("OTEL_EXPORTER_OTLP_HEADERS", "secret")],
                ["OTEL_EXPORTER_OTLP_HEADERS", "header"],
            ),
        ];
        for (url, variables, expected) in cases {
            let refused = chosen(*url, None, variables).expect_err("a refusal");
            for part in expected {
                assert!(refused.contains(part), "{refused}");
            }
            assert!(!refused.contains("secret"), "{refused}");
        }
    }

    #[test]
    fn the_environment_says_how_long_and_how_much_within_bounds() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "99999999999"),
        ];
        let endpoint =
            chosen(Some("http://me:secret@a:1?x=secret"), None, &variables).expect("one").expect("one");
        assert_eq!(endpoint.timeout, Duration::from_millis(250));
        assert_eq!(endpoint.delay, Duration::from_millis(1));
        assert_eq!(endpoint.queue, 1 << 20);
        assert_eq!(endpoint.authority(), "a:1");
    }
}
