//! How tensors of different lengths become one: what a short one is filled up with, and what undoes it.

use std::fmt;

use half::{bf16, f16};

use crate::DataType;

/// How an input or output takes part when requests of different lengths run in one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Padding {
    /// An input whose variable dimensions are filled up with this to the largest of the batch.
    Fill(Filler),
    /// An input that the server makes: 1 where this input has an element, 0 where it was filled up. A
    /// client that sends its own has it filled up with 0.
    MaskOf(String),
    /// An output whose variable dimensions are cut back to those of this input.
    CutTo(String),
    /// An input that the model gets in one dimension, request behind request.
    Ragged,
    /// An output of which each request gets as many elements as it takes for the shape of this input: its
    /// variable dimensions are those at the same places there.
    ScatterLike(String),
}

impl Padding {
    /// What fills up, where it is an input that is filled up with a value of its own.
    pub fn filler(&self) -> Option<&Filler> {
        match self {
            Self::Fill(filler) => Some(filler),
            Self::MaskOf(_) | Self::CutTo(_) | Self::Ragged | Self::ScatterLike(_) => None,
        }
    }
}

/// One element that tensors are filled up with. It is shown as it can be written.
#[derive(Clone, PartialEq, Eq)]
pub struct Filler {
    data_type: DataType,
    element: Vec<u8>,
}

/// A number as it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Bool(bool),
    Integer(i128),
    Float(f64),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            // With a point, so that it is seen why it is no whole number.
            Self::Float(value) => write!(f, "{value:?}"),
        }
    }
}

impl Filler {
    /// 1 or true, or else 0 or false; `None` for strings.
    pub fn flag(data_type: DataType, set: bool) -> Option<Self> {
        let number =
            if data_type == DataType::Bool { Number::Bool(set) } else { Number::Integer(i128::from(set)) };
        Self::new(data_type, number).ok()
    }

    /// The number as an element of this type; the error says what is expected instead.
    pub(super) fn new(data_type: DataType, number: Number) -> Result<Self, String> {
        let whole = || match number {
            Number::Integer(value) => Some(value),
            Number::Bool(_) | Number::Float(_) => None,
        };
        let real = || match number {
            Number::Integer(value) => Some(value as f64),
            Number::Float(value) if !value.is_nan() => Some(value),
            Number::Bool(_) | Number::Float(_) => None,
        };
        // What is finite must not become infinite by being rounded.
        let fits = |wide: &f64, narrow: f64| wide.is_infinite() || narrow.is_finite();
        macro_rules! integer {
            ($kind:ty) => {
                whole()
                    .and_then(|value| <$kind>::try_from(value).ok())
                    .map(|value| value.to_le_bytes().to_vec())
                    .ok_or_else(|| format!("a whole number from {} to {}", <$kind>::MIN, <$kind>::MAX))
            };
        }
        macro_rules! float {
            ($narrow:expr, $most:expr) => {
                real()
                    .map(|value| (value, $narrow(value)))
                    .filter(|(value, narrow)| fits(value, f64::from(*narrow)))
                    .map(|(_, narrow)| narrow.to_le_bytes().to_vec())
                    .ok_or_else(|| format!("a number from -{0} to {0}", $most))
            };
        }
        let element = match data_type {
            DataType::Bool => match number {
                Number::Bool(value) => Ok(vec![u8::from(value)]),
                Number::Integer(_) | Number::Float(_) => Err("true or false".to_owned()),
            },
            DataType::Uint8 => integer!(u8),
            DataType::Uint16 => integer!(u16),
            DataType::Uint32 => integer!(u32),
            DataType::Uint64 => integer!(u64),
            DataType::Int8 => integer!(i8),
            DataType::Int16 => integer!(i16),
            DataType::Int32 => integer!(i32),
            DataType::Int64 => integer!(i64),
            DataType::Fp16 => float!(f16::from_f64, f16::MAX),
            DataType::Bf16 => float!(bf16::from_f64, "3.39e38"),
            DataType::Fp32 => float!(|value| value as f32, "3.4e38"),
            DataType::Fp64 => float!(|value: f64| value, "1.7e308"),
            DataType::Bytes => Err("no number".to_owned()),
        };
        let element = element
            .map_err(|expected| format!("{expected} is expected for {}, not {number}", data_type.name()))?;
        Ok(Self { data_type, element })
    }

    /// The element that the protocol carries so; `None` where these are not the bytes of one.
    pub fn from_bytes(data_type: DataType, bytes: &[u8]) -> Option<Self> {
        (data_type.size() == Some(bytes.len())).then(|| Self { data_type, element: bytes.to_vec() })
    }

    /// The type of the element.
    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// The element as the protocol carries it: little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.element
    }

    fn wide(&self) -> [u8; 8] {
        let negative = self.element.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        wide.iter_mut().zip(&self.element).for_each(|(to, from)| *to = *from);
        wide
    }
}

impl fmt::Display for Filler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut low = [0; 8];
        low.iter_mut().zip(&self.element).for_each(|(to, from)| *to = *from);
        let [a, b, c, d, ..] = low;
        match self.data_type {
            DataType::Bool => write!(f, "{}", low[0] != 0),
            DataType::Uint8 | DataType::Uint16 | DataType::Uint32 | DataType::Uint64 => {
                write!(f, "{}", u64::from_le_bytes(low))
            }
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                write!(f, "{}", i64::from_le_bytes(self.wide()))
            }
            DataType::Fp16 => write!(f, "{}", f16::from_le_bytes([a, b])),
            DataType::Bf16 => write!(f, "{}", bf16::from_le_bytes([a, b])),
            DataType::Fp32 => write!(f, "{}", f32::from_le_bytes([a, b, c, d])),
            DataType::Fp64 => write!(f, "{}", f64::from_le_bytes(low)),
            DataType::Bytes => Ok(()),
        }
    }
}

impl fmt::Debug for Filler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {self}", self.data_type.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_an_element_where_it_fits() {
        use Number::{Bool, Float, Integer};
        for (data_type, number, bytes, shown) in [
            (DataType::Int64, Integer(-1), &[0xff; 8][..], "-1"),
            (DataType::Int8, Integer(-128), &[0x80], "-128"),
            (DataType::Uint16, Integer(258), &[2, 1], "258"),
            (DataType::Uint64, Integer(u64::MAX.into()), &[0xff; 8], "18446744073709551615"),
            (DataType::Bool, Bool(true), &[1], "true"),
            (DataType::Fp32, Integer(0), &[0; 4], "0"),
            (DataType::Fp32, Float(-0.5), &[0, 0, 0, 0xbf], "-0.5"),
            (DataType::Fp64, Float(1.5), &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f], "1.5"),
            (DataType::Fp16, Float(f64::NEG_INFINITY), &[0, 0xfc], "-inf"),
            (DataType::Bf16, Float(1.0), &[0x80, 0x3f], "1"),
        ] {
            let filler = Filler::new(data_type, number).expect(shown);
            assert_eq!((filler.bytes(), filler.to_string()), (bytes, shown.to_owned()));
        }
    }

    #[test]
    fn what_does_not_fit_is_told_what_does() {
        use Number::{Bool, Float, Integer};
        for (data_type, number, message) in [
            (DataType::Uint8, Integer(256), "a whole number from 0 to 255 is expected for UINT8, not 256"),
            (DataType::Int8, Integer(-129), "a whole number from -128 to 127 is expected for INT8, not -129"),
            (DataType::Int32, Float(0.0), "to 2147483647 is expected for INT32, not 0.0"),
            (DataType::Int64, Bool(false), "is expected for INT64, not false"),
            (DataType::Bool, Integer(0), "true or false is expected for BOOL, not 0"),
            (DataType::Fp16, Integer(70_000), "a number from -65504 to 65504 is expected for FP16"),
            (DataType::Fp32, Float(1e39), "is expected for FP32, not 1e39"),
            (DataType::Fp64, Float(f64::NAN), "is expected for FP64, not NaN"),
            (DataType::Bytes, Integer(0), "no number is expected for BYTES"),
        ] {
            let error = Filler::new(data_type, number).expect_err(message);
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn flags_are_there_for_all_but_strings() {
        for data_type in DataType::ALL {
            let flags = [false, true].map(|set| Filler::flag(data_type, set));
            assert_eq!(flags[0].is_none(), data_type == DataType::Bytes);
            assert_eq!(flags[1].is_none(), data_type == DataType::Bytes);
        }
    }
}
