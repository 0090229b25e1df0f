//! What the environment says of traces, beside where they go. What an exporter would pass over in silence is refused
//! when the server starts, as a flag is that means nothing.

use anyhow::{bail, ensure};
use http::{HeaderName, HeaderValue};

/// Variables of OpenTelemetry that others obey, and what says the same here.
const WITHOUT_EFFECT: [(&str, &str); 3] = [
    ("OTEL_TRACES_SAMPLER", "callers and --trace-ratio decide what is traced"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512 spans are sent at once"),
    ("OTEL_BSP_EXPORT_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT says how long the collector may take"),
];
/// What the sampler is that everybody has unless told otherwise, and so are we.
const DEFAULT_SAMPLER: &str = "parentbased_always_on";

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

    /// Whether nothing is to be traced.
    ///
    /// # Errors
    /// That cannot be told.
    pub(super) fn is_off(&self) -> anyhow::Result<bool> {
        let disabled = self.word(&["OTEL_SDK_DISABLED"], &["true", "false"])? == Some("true");
        Ok(self.word(&["OTEL_TRACES_EXPORTER"], &["otlp", "none"])? == Some("none") || disabled)
    }

    /// Looks at what only the exporter reads.
    ///
    /// # Errors
    /// One sentence on what means nothing.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for name in ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"] {
            self.word(&[name], &["gzip", "none"])?;
        }
        for name in ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"] {
            let Some((_, said)) = self.get(name) else { continue };
            // What they are may be secret: only their place is told.
            for (index, entry) in entries(&said).enumerate() {
                let is_header = pair(entry).is_some_and(|(name, value)| {
                    let value = decoded(value).unwrap_or_else(|| value.to_owned());
                    let taken = HeaderName::try_from(name).is_ok() && HeaderValue::try_from(&value).is_ok();
                    taken && !value.is_empty()
                });
                ensure!(
                    is_header,
                    "{name}: number {} of its entries is no header: NAME=VALUE,NAME=VALUE is expected",
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
    pub(super) fn in_vain(&self) -> impl Iterator<Item = String> {
        let said = WITHOUT_EFFECT.iter().filter_map(|(name, instead)| Some((self.get(name)?, instead)));
        said.filter(|((_, said), _)| said != DEFAULT_SAMPLER)
            .map(|((name, _), instead)| format!("{name} has no effect here: {instead}"))
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
    fn what_switches_traces_off_is_one_of_its_words() {
        for (name, value, off) in [
            ("OTEL_SDK_DISABLED", "TRUE", Some(true)),
            ("OTEL_SDK_DISABLED", "false", Some(false)),
            ("OTEL_SDK_DISABLED", "banana", None),
            ("OTEL_TRACES_EXPORTER", "none", Some(true)),
            ("OTEL_TRACES_EXPORTER", "otlp", Some(false)),
            ("OTEL_TRACES_EXPORTER", "zipkin", None),
            ("OTEL_SDK_DISABLED", "", Some(false)),
        ] {
            assert_eq!(says(name, value).is_off().ok(), off, "{name}={value}");
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
        let lines = |name, value| says(name, value).in_vain().collect::<Vec<_>>();
        let line = lines("OTEL_TRACES_SAMPLER", "traceidratio");
        assert_eq!(line.len(), 1);
        assert!(line[0].contains("OTEL_TRACES_SAMPLER has no effect") && line[0].contains("--trace-ratio"));
        assert_eq!(lines("OTEL_BSP_EXPORT_TIMEOUT", "soon").len(), 1);
        assert_eq!(lines("OTEL_TRACES_SAMPLER", "parentbased_always_on").len(), 0);
        assert_eq!(lines("OTEL_TRACES_SAMPLER", "").len(), 0);
    }

    #[test]
    fn percent_signs_are_those_of_urls() {
        assert_eq!(decoded("Basic%20AAA%c3%a4").as_deref(), Some("Basic AAAä"));
        for wrong in ["%", "%2", "%XX", "%ff", "%é1"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }
}
