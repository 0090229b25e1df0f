//! A tensor as it goes over the wire, and the values in it: what every kind of input becomes.

use bytes::Bytes;
use half::{bf16, f16};
use sconce_repository::DataType;

/// A tensor in the protocol's raw form: little-endian, row-major, BYTES with a length before each.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub(super) data_type: DataType,
    pub(super) shape: Vec<i64>,
    pub(super) data: Bytes,
}

impl Array {
    /// The same values as another dtype.
    ///
    /// # Errors
    /// One phrase that names the first element that the other dtype cannot hold.
    pub(super) fn convert(self, to: DataType) -> Result<Self, String> {
        // Bytes of a BOOL that are neither 0 nor 1 are set right on the way.
        let clean = self.data_type != DataType::Bool || self.data.iter().all(|&byte| byte <= 1);
        if self.data_type == to && clean {
            return Ok(self);
        }
        let (Some(from_size), Some(to_size)) = (self.data_type.size(), to.size()) else {
            return Err(format!("its elements are {}, but {to} is wanted", self.data_type));
        };
        let count = self.data.len() / from_size;
        let mut data = Vec::with_capacity(count.saturating_mul(to_size));
        for (at, element) in self.data.chunks_exact(from_size).enumerate() {
            let number = Number::read(self.data_type, element);
            number.write(to, &mut data).map_err(|why| format!("{} {why}", place(at, &self.shape)))?;
        }
        Ok(Self { data_type: to, shape: self.shape, data: data.into() })
    }

    /// Adds the dimensions that people leave out where only one reading makes sense: the batch
    /// dimension, and for a single value all of them. Otherwise the shape stays, for the server to judge.
    pub(super) fn fit(&mut self, expected: &[i64], batched: Option<bool>) {
        let matches = |dims: &[i64], shape: &[i64]| {
            dims.len() == shape.len() && dims.iter().zip(shape).all(|(&dim, &size)| dim == -1 || dim == size)
        };
        if self.shape.is_empty() && expected.iter().all(|dim| matches!(dim, -1 | 1)) {
            self.shape = vec![1; expected.len()];
        } else if let Some((-1, dims)) = expected.split_first()
            && batched != Some(false)
            && matches(dims, &self.shape)
        {
            self.shape.insert(0, 1);
        }
    }
}

/// A number on its way from one dtype, or from JSON, to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Integer(i128),
    Float(f64),
}

impl Number {
    /// Reads one element, whose bytes are as many as its dtype has; a BYTES reads as 0.
    pub(super) fn read(data_type: DataType, bytes: &[u8]) -> Self {
        // Exactly the wanted bytes, or zeros; the callers cut tensors into elements of the right size.
        fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().unwrap_or([0; N])
        }
        match data_type {
            DataType::Bool => Self::Integer(i128::from(bytes.iter().any(|&byte| byte != 0))),
            DataType::Uint8 => Self::Integer(u8::from_le_bytes(fixed(bytes)).into()),
            DataType::Uint16 => Self::Integer(u16::from_le_bytes(fixed(bytes)).into()),
            DataType::Uint32 => Self::Integer(u32::from_le_bytes(fixed(bytes)).into()),
            DataType::Uint64 => Self::Integer(u64::from_le_bytes(fixed(bytes)).into()),
            DataType::Int8 => Self::Integer(i8::from_le_bytes(fixed(bytes)).into()),
            DataType::Int16 => Self::Integer(i16::from_le_bytes(fixed(bytes)).into()),
            DataType::Int32 => Self::Integer(i32::from_le_bytes(fixed(bytes)).into()),
            DataType::Int64 => Self::Integer(i64::from_le_bytes(fixed(bytes)).into()),
            DataType::Fp16 => Self::Float(f16::from_le_bytes(fixed(bytes)).into()),
            DataType::Bf16 => Self::Float(bf16::from_le_bytes(fixed(bytes)).into()),
            DataType::Fp32 => Self::Float(f32::from_le_bytes(fixed(bytes)).into()),
            DataType::Fp64 => Self::Float(f64::from_le_bytes(fixed(bytes))),
            DataType::Bytes => Self::Integer(0),
        }
    }

    /// Appends it as an element of a dtype. Floating point may round, but not a finite number to
    /// infinity; integers and BOOL hold exactly what they are given.
    ///
    /// # Errors
    /// A phrase that goes on from the element's name: `is 300, which UINT8 (0 to 255) cannot hold`.
    pub(super) fn write(self, to: DataType, data: &mut Vec<u8>) -> Result<(), String> {
        // Beyond 2^100 there is nothing that an integer dtype holds, and below it the cast is exact.
        let whole = match self {
            Self::Integer(value) => Some(value),
            Self::Float(value) if value.fract() == 0.0 && value.abs() < 1e30 => Some(value as i128),
            Self::Float(_) => None,
        };
        let float = match self {
            Self::Integer(value) => value as f64,
            Self::Float(value) => value,
        };
        macro_rules! integer {
            ($type:ty) => {
                whole
                    .and_then(|value| <$type>::try_from(value).ok())
                    .map(|value| data.extend_from_slice(&value.to_le_bytes()))
            };
        }
        macro_rules! floating {
            ($value:expr) => {{
                let value = $value;
                (value.is_finite() || !float.is_finite())
                    .then(|| data.extend_from_slice(&value.to_le_bytes()))
            }};
        }
        let written = match to {
            DataType::Bool => whole
                .and_then(|value| u8::try_from(value).ok())
                .filter(|&value| value < 2)
                .map(|value| data.push(value)),
            DataType::Uint8 => integer!(u8),
            DataType::Uint16 => integer!(u16),
            DataType::Uint32 => integer!(u32),
            DataType::Uint64 => integer!(u64),
            DataType::Int8 => integer!(i8),
            DataType::Int16 => integer!(i16),
            DataType::Int32 => integer!(i32),
            DataType::Int64 => integer!(i64),
            DataType::Fp16 => floating!(f16::from_f64(float)),
            DataType::Bf16 => floating!(bf16::from_f64(float)),
            // An integer is rounded once, not to FP64 first.
            DataType::Fp32 => floating!(match self {
                Self::Integer(value) => value as f32,
                Self::Float(value) => value as f32,
            }),
            DataType::Fp64 => floating!(float),
            DataType::Bytes => return Err("is a number, but BYTES is wanted; put it in quotes".to_owned()),
        };
        written.ok_or_else(|| format!("is {}, which {to} ({}) cannot hold", self.text(), limits(to)))
    }

    fn text(self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => format!("{value:?}"),
        }
    }
}

fn limits(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Bool => "false, true, 0 or 1",
        DataType::Uint8 => "0 to 255",
        DataType::Uint16 => "0 to 65535",
        DataType::Uint32 => "0 to 4294967295",
        DataType::Uint64 => "0 to 18446744073709551615",
        DataType::Int8 => "-128 to 127",
        DataType::Int16 => "-32768 to 32767",
        DataType::Int32 => "-2147483648 to 2147483647",
        DataType::Int64 => "-9223372036854775808 to 9223372036854775807",
        DataType::Fp16 => "up to 65504",
        DataType::Bf16 | DataType::Fp32 => "up to 3.4e38",
        DataType::Fp64 => "up to 1.8e308",
        DataType::Bytes => "strings",
    }
}

/// Appends one element of a BYTES tensor.
///
/// # Errors
/// Its length does not fit the four bytes that the protocol has for it.
pub(super) fn push_string(data: &mut Vec<u8>, text: &[u8]) -> Result<(), String> {
    let length = u32::try_from(text.len()).map_err(|_| "is a string of more than 4 GiB".to_owned())?;
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(text);
    Ok(())
}

/// How many elements a shape has; `None` for negative dimensions and numbers beyond `usize`.
pub(super) fn count(shape: &[i64]) -> Option<usize> {
    let sizes: Vec<usize> = shape.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    if sizes.contains(&0) {
        return Some(0);
    }
    sizes.into_iter().try_fold(1, usize::checked_mul)
}

/// What an element is called: `element [1, 0]`, or `the value` where there is only one.
pub(super) fn place(flat: usize, shape: &[i64]) -> String {
    if shape.is_empty() {
        return "the value".to_owned();
    }
    let mut rest = flat;
    let mut index: Vec<usize> = Vec::with_capacity(shape.len());
    for &dim in shape.iter().rev() {
        let size = usize::try_from(dim).unwrap_or(1).max(1);
        index.push(rest % size);
        rest /= size;
    }
    index.reverse();
    format!("element {index:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(number: Number, to: DataType) -> Result<Vec<u8>, String> {
        let mut data = Vec::new();
        number.write(to, &mut data).map(|()| data)
    }

    #[test]
    fn every_type_reads_what_it_wrote() {
        for data_type in DataType::ALL.into_iter().filter(|data_type| data_type.size().is_some()) {
            for value in [0_i128, 1] {
                let bytes = written(Number::Integer(value), data_type).unwrap();
                assert_eq!(Some(bytes.len()), data_type.size());
                match Number::read(data_type, &bytes) {
                    Number::Integer(read) => assert_eq!(read, value, "{data_type}"),
                    Number::Float(read) => assert_eq!(read, value as f64, "{data_type}"),
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (number, to) in [
            (Number::Integer(256), DataType::Uint8),
            (Number::Integer(-1), DataType::Uint64),
            (Number::Integer(2), DataType::Bool),
            (Number::Float(1.5), DataType::Int64),
            (Number::Float(18_446_744_073_709_551_616.0), DataType::Uint64),
            (Number::Float(f64::NAN), DataType::Int8),
            (Number::Float(f64::INFINITY), DataType::Int64),
            (Number::Float(1e39), DataType::Fp32),
            (Number::Integer(65520), DataType::Fp16),
        ] {
            assert!(written(number, to).is_err(), "{number:?} {to}");
        }
        assert_eq!(
            written(Number::Integer(300), DataType::Uint8).unwrap_err(),
            "is 300, which UINT8 (0 to 255) cannot hold"
        );
    }

    #[test]
    fn infinity_and_whole_floats_are_kept() {
        assert_eq!(
            written(Number::Float(f64::INFINITY), DataType::Fp32).unwrap(),
            f32::INFINITY.to_le_bytes()
        );
        assert_eq!(written(Number::Float(-3.0), DataType::Int16).unwrap(), (-3_i16).to_le_bytes());
        assert_eq!(
            written(Number::Integer(i128::from(u64::MAX)), DataType::Uint64).unwrap(),
            u64::MAX.to_le_bytes()
        );
    }

    #[test]
    fn conversion_names_the_element() {
        let data: Vec<u8> = [1_i64, 2, 3, 300].iter().flat_map(|value| value.to_le_bytes()).collect();
        let array = Array { data_type: DataType::Int64, shape: vec![2, 2], data: data.into() };
        let why = array.clone().convert(DataType::Uint8).unwrap_err();
        assert_eq!(why, "element [1, 1] is 300, which UINT8 (0 to 255) cannot hold");
        assert_eq!(array.convert(DataType::Fp16).unwrap().data.len(), 8);
    }

    #[test]
    fn only_a_missing_batch_dimension_is_added() {
        let fit = |shape: &[i64], expected: &[i64], batched| {
            let mut array = Array { data_type: DataType::Fp32, shape: shape.to_vec(), data: Bytes::new() };
            array.fit(expected, batched);
            array.shape
        };
        assert_eq!(fit(&[16], &[-1, 16], Some(true)), [1, 16]);
        assert_eq!(fit(&[16], &[-1, 16], None), [1, 16]);
        assert_eq!(fit(&[16], &[-1, 16], Some(false)), [16]);
        assert_eq!(fit(&[16], &[4, 16], None), [16]);
        assert_eq!(fit(&[15], &[-1, 16], Some(true)), [15]);
        assert_eq!(fit(&[2, 16], &[-1, 16], Some(true)), [2, 16]);
        assert_eq!(fit(&[], &[-1, 1], Some(true)), [1, 1]);
        assert_eq!(fit(&[], &[-1], Some(false)), [1]);
        assert_eq!(fit(&[], &[16], Some(false)), Vec::<i64>::new());
    }

    #[test]
    fn counts_do_not_overflow() {
        assert_eq!(count(&[]), Some(1));
        assert_eq!(count(&[i64::MAX, i64::MAX]), None);
        assert_eq!(count(&[i64::MAX, i64::MAX, 0]), Some(0));
        assert_eq!(count(&[-1]), None);
    }
}
