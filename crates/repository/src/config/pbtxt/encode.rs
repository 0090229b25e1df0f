//! A message in protobuf's encoding, with the same bytes each time.
//!
//! The library writes the entries of a map in an order that differs from one reading of a file to the
//! next, and a configuration that did not change must be equal to what it was.

use prost::{Message, encode_length_delimiter};
use prost_reflect::{DynamicMessage, FieldDescriptor, Value};

/// The type of a field on the wire whose length stands before it.
const LENGTH_DELIMITED: usize = 2;

/// Encodes the message, its maps in the order of their keys.
pub(super) fn encode(message: &DynamicMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (field, value) in message.fields() {
        match value {
            Value::Message(inner) => nested(&field, inner, &mut bytes),
            Value::List(items) if field.kind().as_message().is_some() => {
                for inner in items.iter().filter_map(Value::as_message) {
                    nested(&field, inner, &mut bytes);
                }
            }
            Value::Map(_) => entries(&field, value, &mut bytes),
            _ => {
                let mut single = DynamicMessage::new(field.parent_message().clone());
                single.set_field(&field, value.clone());
                bytes.extend(single.encode_to_vec());
            }
        }
    }
    bytes
}

/// On the wire, a map is a list of messages with a key and a value.
fn entries(field: &FieldDescriptor, map: &Value, bytes: &mut Vec<u8>) {
    let (Some(map), kind) = (map.as_map(), field.kind()) else { return };
    let Some(descriptor) = kind.as_message() else { return };
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    for (key, value) in entries {
        let mut entry = DynamicMessage::new(descriptor.clone());
        entry.set_field(&descriptor.map_entry_key_field(), key.clone().into());
        entry.set_field(&descriptor.map_entry_value_field(), value.clone());
        nested(field, &entry, bytes);
    }
}

fn nested(field: &FieldDescriptor, message: &DynamicMessage, bytes: &mut Vec<u8>) {
    let inner = encode(message);
    // A tag is a variable-length number, as a length is.
    for number in [(field.number() as usize) << 3 | LENGTH_DELIMITED, inner.len()] {
        encode_length_delimiter(number, bytes).expect("a vector has room for ten bytes more");
    }
    bytes.extend(inner);
}

#[cfg(test)]
mod tests {
    use super::{
        super::{text, warmup},
        *,
    };
    use crate::config::raw::RawWarmup;

    #[test]
    fn equal_texts_have_equal_bytes_that_say_the_same() {
        let text = r#"name: "m" max_batch_size: -1
            input [ { name: "x" dims: [ 1, -1 ] reshape { } } , { optional: true } ]
            metric_tags { key: "a" value: "1" } metric_tags { key: "b" value: "" } metric_tags { key: "" value: "3" }
            metric_tags { key: "c" value: "4" } metric_tags { key: "d" value: "5" }
            model_warmup { batch_size: 1
                inputs { key: "x" value { zero_data: false } } inputs { key: "y" value { random_data: true } }
                inputs { key: "z" value { input_data_file: "z" } } inputs { key: "empty" value { } } }
            model_metrics { metric_control { histogram_options { buckets: [ 0.5, 1 ] } } }"#;
        let message = text::parse(text).expect("the text is right");
        let bytes = encode(&message);
        // A map in memory has another order each time it is made.
        for _ in 0..20 {
            assert_eq!(encode(&text::parse(text).expect("the text is right")), bytes);
        }
        let decoded = DynamicMessage::decode(text::model_config(), &*bytes).expect("it is a message");
        assert_eq!(decoded, message);
        assert!(
            matches!(warmup::warmup(&decoded, &mut Vec::new()), Err(fault) if fault.place.key.ends_with("empty"))
        );
        assert!(matches!(
            warmup::warmup(&DynamicMessage::new(text::model_config()), &mut Vec::new()),
            Ok(RawWarmup::Auto)
        ));
    }
}
