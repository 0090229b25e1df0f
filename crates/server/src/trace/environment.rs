//! What the environment says of traces, beside where they go. What an exporter would pass over in silence is refused
//! when the server starts, as a flag is that means nothing.

use anyhow::{bail, ensure};
use http::{HeaderName, HeaderValue};

/// Variables of OpenTelemetry that others obey, what they may say because it is so, and what is so instead.
const WITHOUT_EFFECT: [(&str, &str, &str); 9] = [
    ("OTEL_TRACES_SAMPLER", "parentbased_always_on", "callers and --trace-ratio decide what is traced"),
    ("OTEL_TRACES_SAMPLER_ARG", "", "--trace-ratio says how many are traced"),
    ("OTEL_PROPAGATORS", "tracecontext", "traces are joined by W3C's traceparent alone"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "", "spans are not sent over TLS"),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "", "spans are not sent over TLS"),
    ("OTEL_EXPORTER_OTLP_INSECURE", "true", "spans are not sent over TLS"),
    ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "true", "spans are not sent over TLS"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512", "512 spans are sent at once"),
    ("OTEL_BSP_EXPORT_TIMEOUT", "", "OTEL_EXPORTER_OTLP_TIMEOUT says how long the collector may take"),
];
/// Headers that a call has of its own.
const TAKEN: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];
const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";

/// The variables, as a function of their names.
pub(super) struct Environment<F>(pub(super) F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    /// A variable that says something.
    pub(super) fn get(&self, name: &'static str) -> Option<(&'static str, String)> {
        (self.0)(name).filter(|value| !value.is_empty()).map(|value| (name, value))
    }

    /// The one of these words that the first of these variables says.
    ///
    /// # Errors
    /// It says another.
    pub(super) fn word(
        &self,
        names: &[&'static str],
        words: &[&'static str],
    ) -> anyhow::Result<Option<&'static str>> {
        let Some((name, said)) = names.iter().find_map(|name| self.get(name)) else { return Ok(None) };
        let word = words.iter().find(|word| said.eq_ignore_ascii_case(word));
        ensure!(word.is_some(), "{name} is {said:?}: {} is expected", words.join(" or "));
        Ok(word.copied())
    }

    /// The number that a variable says, from the least that means anything up to a day of milliseconds: more means
    /// nothing else, and that can be added to a point in time.
    ///
    /// # Errors
    /// It says none, or less.
    pub(super) fn number(&self, name: &'static str, least: u64) -> anyhow::Result<Option<u64>> {
        let Some((name, said)) = self.get(name) else { return Ok(None) };
        match said.parse() {
            Ok(number) if number >= least => Ok(Some(u64::min(number, 86_400_000))),
            Ok(0_u64..) | Err(_) => bail!("{name} is {said:?}: a whole number from {least} is expected"),
        }
    }

    /// Whether nothing is to be traced. By the specification, whatever is not `true` is `false`.
    pub(super) fn is_off(&self) -> bool {
        let disabled = self.get(DISABLED).is_some_and(|(_, said)| said.eq_ignore_ascii_case("true"));
        disabled || self.exporters().is_some_and(|said| !said.contains(&"otlp".to_owned()))
    }

    fn exporters(&self) -> Option<Vec<String>> {
        let (_, said) = self.get(EXPORTER)?;
        Some(said.split(',').map(|name| name.trim().to_ascii_lowercase()).collect())
    }

    /// Looks at what only the exporter reads.
    ///
    /// # Errors
    /// One sentence on what means nothing.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let compression = ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"];
        self.word(&compression, &["gzip", "none"])?;
        for name in ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"] {
            let Some((_, said)) = self.get(name) else { continue };
            // What they are may be secret: only their place is told.
            for (index, entry) in entries(&said).enumerate() {
                let is_header = pair(entry).is_some_and(|(name, value)| {
                    let value = decoded(value).unwrap_or_else(|| value.to_owned());
                    let is_free =
                        HeaderName::try_from(name).is_ok_and(|name| !TAKEN.contains(&name.as_str()));
                    is_free && HeaderValue::try_from(&value).is_ok() && !value.is_empty()
                });
                ensure!(
                    is_header,
                    "{name}: number {} of its entries is no header that can be added: NAME=VALUE,NAME=VALUE is expected",
                    index + 1
                );
            }
        }
        if let Some((name, said)) = self.get("OTEL_RESOURCE_ATTRIBUTES") {
            let wrong = entries(&said).find(|entry| pair(entry).is_none());
            ensure!(
                wrong.is_none(),
                "{name}: {:?} is no attribute: NAME=VALUE,NAME=VALUE is expected",
                wrong.unwrap_or_default()
            );
        }
        Ok(())
    }

    /// What is said in vain: a line for each.
    pub(super) fn in_vain(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, so, instead) in WITHOUT_EFFECT {
            if self.get(name).is_some_and(|(_, said)| !said.eq_ignore_ascii_case(so)) {
                lines.push(format!("{name} has no effect here: {instead}"));
            }
        }
        if let Some((_, said)) = self.get(DISABLED)
            && !["true", "false"].iter().any(|word| said.eq_ignore_ascii_case(word))
        {
            lines.push(format!("{DISABLED} is {said:?} and taken for false: true or false is expected"));
        }
        lines.extend(self.other_exporters());
        lines
    }

    /// A line on the exporters that are asked for and not here.
    pub(super) fn other_exporters(&self) -> Option<String> {
        let others = self.exporters().unwrap_or_default().into_iter();
        let others: Vec<String> = others.filter(|name| !matches!(&**name, "otlp" | "none")).collect();
        let said = || format!("{EXPORTER}: there is no {:?} here, only otlp and none", others.join(", "));
        (!others.is_empty()).then(said)
    }
}

/// What stands between commas; nothing need stand behind the last one.
fn entries(said: &str) -> impl Iterator<Item = &str> {
    said.split_terminator(',').map(str::trim)
}

/// A name, which there is, and a value.
fn pair(entry: &str) -> Option<(&str, &str)> {
    let (name, value) = entry.split_once('=')?;
    Some((name.trim(), value.trim())).filter(|(name, _)| !name.is_empty())
}

/// Without the percent signs of a URL; nothing if they mean nothing.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first == b'%' {
            let (digits, behind) = behind.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = behind;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::{Environment, decoded};

    /// Of one variable.
    fn says<'a>(name: &'a str, value: &'a str) -> Environment<impl Fn(&str) -> Option<String> + 'a> {
        Environment(move |asked: &str| (asked == name).then(|| value.to_owned()))
    }

    #[test]
    fn what_an_exporter_would_pass_over_is_refused_in_a_sentence() {
        for (name, value, part) in [
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli", "\"brotli\": gzip or none is expected"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", "\"zstd\": gzip or none is expected"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", "\"c\" is no attribute"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b, =c", "\"=c\" is no attribute"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,,c=d", "\"\" is no attribute"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "number 1 of its entries is no header"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,c d=hunter2", "number 2 of its entries is no header"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,c=", "number 2 of its entries is no header"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Content-Length=5", "number 1 of its entries is no header"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=hunter2%0Ab", "number 1 of its entries is no header"),
        ] {
            let refused = says(name, value).check().expect_err(value).to_string();
            assert!(refused.starts_with(name) && refused.contains(part), "{refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", ""),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b, c = d=e ,f=,"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a%2Cb, x-tenant = 7 ,"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=100%"),
        ] {
            assert!(says(name, value).check().is_ok(), "{name}={value}");
        }
    }

    #[test]
    fn what_switches_traces_off_is_what_the_specification_says_and_the_rest_is_told() {
        for (name, value, off, told) in [
            ("OTEL_SDK_DISABLED", "TRUE", true, None),
            ("OTEL_SDK_DISABLED", "false", false, None),
            ("OTEL_SDK_DISABLED", "", false, None),
            ("OTEL_SDK_DISABLED", "1", false, Some("\"1\" and taken for false")),
            ("OTEL_TRACES_EXPORTER", "none", true, None),
            ("OTEL_TRACES_EXPORTER", "otlp", false, None),
            ("OTEL_TRACES_EXPORTER", "console, otlp", false, Some("no \"console\" here")),
            ("OTEL_TRACES_EXPORTER", "zipkin", true, Some("no \"zipkin\" here")),
        ] {
            let says = says(name, value);
            assert_eq!(says.is_off(), off, "{name}={value}");
            let lines = says.in_vain();
            assert_eq!(lines.len(), usize::from(told.is_some()), "{lines:?}");
            assert!(
                told.is_none_or(|told| lines[0].starts_with(name) && lines[0].contains(told)),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn a_number_is_one_and_no_less_than_means_anything() {
        let number = |value: &str, least| says("N", value).number("N", least).ok();
        assert_eq!(number("7", 1), Some(Some(7)));
        assert_eq!(number("", 1), Some(None));
        assert_eq!(number("0", 0), Some(Some(0)));
        assert_eq!(number("99999999999", 1), Some(Some(86_400_000)));
        for wrong in ["0", "-1", "1s", "1.5", " 1", "99999999999999999999"] {
            assert_eq!(number(wrong, 1), None, "{wrong}");
        }
    }

    #[test]
    fn what_has_no_effect_is_said_so_unless_it_is_so_anyway() {
        let lines = |name, value| says(name, value).in_vain();
        let line = lines("OTEL_TRACES_SAMPLER", "traceidratio");
        assert_eq!(line.len(), 1);
        assert!(line[0].contains("OTEL_TRACES_SAMPLER has no effect") && line[0].contains("--trace-ratio"));
        assert_eq!(lines("OTEL_BSP_EXPORT_TIMEOUT", "soon").len(), 1);
        assert_eq!(lines("OTEL_TRACES_SAMPLER", "parentbased_always_on").len(), 0);
        assert_eq!(lines("OTEL_TRACES_SAMPLER", "").len(), 0);
        assert_eq!(lines("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512").len(), 0);
        assert_eq!(lines("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100").len(), 1);
        assert_eq!(lines("OTEL_PROPAGATORS", "b3").len(), 1);
    }

    #[test]
    fn percent_signs_are_those_of_urls() {
        assert_eq!(decoded("Basic%20AAA%c3%a4").as_deref(), Some("Basic AAAä"));
        for wrong in ["%", "%2", "%XX", "%ff", "%é1"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }
}
