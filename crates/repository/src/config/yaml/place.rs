//! Where in a `config.yaml` a value stands that turned out to be wrong when all of it had been read.
//!
//! The parser tells the place of a value only in an error, and only while it reads. So the text is read again
//! on the way that the path of keys names, to fail at its end.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::escape::one_line;

/// Line and column of the value at this path of keys, such as `inputs[0].shape[1]`; where it has been left out,
/// of what it is missing in.
pub(super) fn find(text: &str, key: &str) -> Option<(usize, usize)> {
    let around = &key[..key.rfind(['.', '[']).unwrap_or(0)];
    [key, around].into_iter().find_map(|key| find_exactly(text, key))
}

fn find_exactly(text: &str, key: &str) -> Option<(usize, usize)> {
    let found = Cell::new(false);
    let seek = Seek { key, found: &found };
    let error = seek.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    let location = error.location().filter(|_| found.get() && !key.is_empty())?;
    Some((location.line(), location.column()))
}

/// Fails at the value to which the rest of the path leads.
#[derive(Clone, Copy)]
struct Seek<'a> {
    key: &'a str,
    found: &'a Cell<bool>,
}

impl<'a> Seek<'a> {
    /// Goes on in the field of this name, if it is on the way. It may be no more than the beginning of the one
    /// that is meant, because tensors may have dots in their names.
    fn step(self, name: &str) -> Option<Self> {
        let rest = self.key.strip_prefix(&one_line(name))?;
        let key = if rest.is_empty() || rest.starts_with('[') { rest } else { rest.strip_prefix('.')? };
        Some(Self { key, ..self })
    }

    /// As [`Self::step`], into a list: to which of its elements.
    fn index(self) -> Option<(usize, Self)> {
        let (index, rest) = self.key.strip_prefix('[')?.split_once(']')?;
        Some((index.parse().ok()?, Self { key: rest.strip_prefix('.').unwrap_or(rest), ..self }))
    }
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // From here on whatever is read is an error.
        self.found.set(self.key.is_empty());
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a way to go on")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.key.is_empty() {
            return Err(A::Error::custom("here"));
        }
        while let Some(name) = map.next_key::<String>()? {
            match self.step(&name) {
                Some(seek) => map.next_value_seed(seek)?,
                None => map.next_value().map(|IgnoredAny| ())?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((index, seek)) = self.index() else { return Err(A::Error::custom("here")) };
        for _ in 0..index {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(seek)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
max_batch_size: 8
inputs:
- {name: x, dtype: FP32, shape: [-1, 0]}
queue:
  levels:
    '2':
      max_size: 0
warmup:
- inputs:
    a: {dtype: FP32, data: zero}
    a.b: {data: random, shape: [3]}
    ? [odd]
    : {}
";

    #[test]
    fn a_path_of_keys_leads_to_its_value() {
        for (key, place) in [
            ("max_batch_size", (1, 17)),
            ("inputs", (3, 1)),
            ("inputs[0]", (3, 3)),
            ("inputs[0].name", (3, 10)),
            ("inputs[0].shape", (3, 33)),
            ("inputs[0].shape[1]", (3, 38)),
            ("queue.levels.2", (7, 7)),
            ("queue.levels.2.max_size", (7, 17)),
            ("warmup[0].inputs.a.data", (10, 28)),
            ("warmup[0].inputs.a.b.shape", (11, 32)),
        ] {
            assert_eq!(find(TEXT, key), Some(place), "{key}");
        }
    }

    #[test]
    fn what_is_missing_is_missing_somewhere() {
        assert_eq!(find(TEXT, "warmup[0].inputs.a.shape"), Some((10, 8)));
        assert_eq!(find(TEXT, "queue.levels.2.timeout"), Some((7, 7)));
        for key in ["", "batching", "batching.max_delay", "queue.levels.3.timeout", "inputs[1].name"] {
            assert_eq!(find(TEXT, key), None, "{key}");
        }
    }
}
