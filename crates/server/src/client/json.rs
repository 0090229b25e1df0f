//! Inputs written as JSON: nested lists give the shape, the values become the wanted dtype.

use sconce_repository::DataType;
use serde_json::Value;

use super::array::{Array, Number, place, push_string};

/// JSON as a tensor. Without a wanted dtype numbers become FP32, `true` and `false` BOOL, strings BYTES.
///
/// # Errors
/// One phrase: lists of different lengths, objects, values that are not of one kind, or an element
/// that the dtype cannot hold.
pub(super) fn array(value: &Value, wanted: Option<DataType>) -> Result<Array, String> {
    let mut shape = Vec::new();
    let mut first = value;
    while let Value::Array(items) = first {
        shape.push(i64::try_from(items.len()).map_err(|_| "it is too long".to_owned())?);
        match items.first() {
            Some(item) => first = item,
            None => break,
        }
    }
    let data_type = match (wanted, first) {
        (Some(wanted), _) => wanted,
        (None, Value::String(_)) => DataType::Bytes,
        (None, Value::Bool(_)) => DataType::Bool,
        (None, Value::Number(_) | Value::Null | Value::Array(_) | Value::Object(_)) => DataType::Fp32,
    };
    let mut flat = Flat { data_type, shape: &shape, data: Vec::new(), elements: 0 };
    flat.add(value, &mut Vec::new())?;
    let data = flat.data.into();
    Ok(Array { data_type, shape, data })
}

struct Flat<'a> {
    data_type: DataType,
    shape: &'a [i64],
    data: Vec<u8>,
    elements: usize,
}

impl Flat<'_> {
    /// Adds what is at `path`. The JSON parser bounds the depth.
    fn add(&mut self, value: &Value, path: &mut Vec<usize>) -> Result<(), String> {
        let Some(&wanted) = self.shape.get(path.len()) else {
            return self.element(value);
        };
        let Value::Array(items) = value else {
            return Err(format!("its lists are ragged: {} is not a list, others beside it are", at(path)));
        };
        if i64::try_from(items.len()) != Ok(wanted) {
            return Err(format!(
                "its lists are ragged: {} has {} elements, the first beside it has {wanted}",
                at(path),
                items.len()
            ));
        }
        for (index, item) in items.iter().enumerate() {
            path.push(index);
            self.add(item, path)?;
            path.pop();
        }
        Ok(())
    }

    fn element(&mut self, value: &Value) -> Result<(), String> {
        let here = place(self.elements, self.shape);
        self.elements += 1;
        let number = match value {
            Value::String(text) if self.data_type == DataType::Bytes => {
                return push_string(&mut self.data, text.as_bytes()).map_err(|why| format!("{here} {why}"));
            }
            // JSON has no words for these; the answers of `--json` use the same.
            Value::String(text) => match text.as_str() {
                "NaN" => Number::Float(f64::NAN),
                "Infinity" => Number::Float(f64::INFINITY),
                "-Infinity" => Number::Float(f64::NEG_INFINITY),
                _ => return Err(format!("{here} is a string, but {} is wanted", self.data_type)),
            },
            Value::Bool(_) if self.data_type == DataType::Bytes => {
                return Err(format!("{here} is {value}, but BYTES is wanted; put it in quotes"));
            }
            Value::Bool(value) => Number::Integer(i128::from(*value)),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), _, _) => Number::Integer(value.into()),
                (None, Some(value), _) => Number::Integer(value.into()),
                (None, None, Some(value)) => Number::Float(value),
                (None, None, None) => return Err(format!("{here} is {number}, which is too large")),
            },
            Value::Null => return Err(format!("{here} is null, which no tensor holds")),
            Value::Array(_) => {
                return Err(format!("its lists are ragged: {here} is a list, the first beside it is not"));
            }
            Value::Object(_) => return Err(format!("{here} is an object, which no tensor holds")),
        };
        number.write(self.data_type, &mut self.data).map_err(|why| format!("{here} {why}"))
    }
}

fn at(path: &[usize]) -> String {
    if path.is_empty() { "the whole".to_owned() } else { format!("element {path:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, wanted: Option<DataType>) -> Result<Array, String> {
        array(&serde_json::from_str(text).unwrap(), wanted)
    }

    #[test]
    fn nesting_is_the_shape() {
        for (text, shape) in [
            ("3", &[][..]),
            ("[]", &[0]),
            ("[1, 2, 3]", &[3]),
            ("[[1, 2], [3, 4], [5, 6]]", &[3, 2]),
            ("[[], []]", &[2, 0]),
            ("[[[7]]]", &[1, 1, 1]),
        ] {
            assert_eq!(parse(text, None).unwrap().shape, shape, "{text}");
        }
    }

    #[test]
    fn kinds_of_values_choose_the_type() {
        assert_eq!(parse("[1, 2.5]", None).unwrap().data_type, DataType::Fp32);
        assert_eq!(parse("[true, false]", None).unwrap().data[..], [1, 0]);
        let texts = parse(r#"["a", ""]"#, None).unwrap();
        assert_eq!(
            (texts.data_type, &texts.data[..]),
            (DataType::Bytes, &[1, 0, 0, 0, b'a', 0, 0, 0, 0][..])
        );
    }

    #[test]
    fn ragged_lists_are_named() {
        for (text, why) in [
            ("[[1, 2], [3]]", "element [1] has 1 elements, the first beside it has 2"),
            ("[[1], 2]", "element [1] is not a list"),
            ("[1, [2]]", "element [1] is a list"),
            ("[[], [1]]", "element [1] has 1 elements, the first beside it has 0"),
            ("[[[1], [2]], [[1], [2, 3]]]", "element [1, 1] has 2 elements"),
        ] {
            let refused = parse(text, None).unwrap_err();
            assert!(refused.contains("ragged") && refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn values_of_another_kind_are_named() {
        for (text, wanted, why) in [
            ("[1, 300]", DataType::Uint8, "element [1] is 300, which UINT8 (0 to 255) cannot hold"),
            ("[[1.5]]", DataType::Int32, "element [0, 0] is 1.5"),
            ("[1, \"a\"]", DataType::Fp32, "element [1] is a string"),
            ("[\"a\", 1]", DataType::Bytes, "element [1] is a number, but BYTES is wanted"),
            ("[true]", DataType::Bytes, "element [0] is true"),
            ("[null]", DataType::Fp32, "element [0] is null"),
            ("{}", DataType::Fp32, "the value is an object"),
            ("18446744073709551616", DataType::Uint64, "the value is 1.8446744073709552e19"),
        ] {
            let refused = parse(text, Some(wanted)).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn large_integers_stay_exact() {
        let array = parse("[9007199254740993, -9223372036854775808]", Some(DataType::Int64)).unwrap();
        assert_eq!(array.data[..8], 9_007_199_254_740_993_i64.to_le_bytes());
        assert_eq!(array.data[8..], i64::MIN.to_le_bytes());
        let array = parse("18446744073709551615", Some(DataType::Uint64)).unwrap();
        assert_eq!(array.data[..], u64::MAX.to_le_bytes());
    }

    #[test]
    fn floats_have_words_for_what_json_lacks() {
        let array = parse(r#"["NaN", "-Infinity"]"#, Some(DataType::Fp32)).unwrap();
        assert!(f32::from_le_bytes(array.data[..4].try_into().unwrap()).is_nan());
        assert_eq!(array.data[4..], f32::NEG_INFINITY.to_le_bytes());
        assert!(parse(r#"["NaN"]"#, Some(DataType::Int32)).is_err());
    }
}
