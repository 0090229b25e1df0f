//! Reads numpy's `.npy` files, versions 1 to 3. What a file claims is checked against the bytes that
//! it has before anything is allocated.

use bytes::Bytes;
use sconce_repository::DataType;

use super::array::{Array, count, push_string};

/// Headers are a line of text; numpy itself refuses more than 10000 bytes.
const MAX_HEADER: usize = 64 << 10;

/// As in numpy.
const MAX_RANK: usize = 64;

/// What the header's dtype stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Element {
    Number(DataType),
    /// `|S`: bytes, filled up with zeros to this width.
    Bytes(usize),
    /// `<U`: UTF-32, filled up with zeros to this width in bytes.
    Unicode(usize),
}

impl Element {
    fn size(self) -> usize {
        match self {
            Self::Number(data_type) => data_type.size().unwrap_or(0),
            Self::Bytes(width) | Self::Unicode(width) => width,
        }
    }
}

/// A file's contents as a tensor of the dtype that the file has; strings become BYTES.
///
/// # Errors
/// One phrase that says what about the file cannot be served.
pub(super) fn array(file: &Bytes) -> Result<Array, String> {
    let (header, data) = split(file)?;
    let Header { descr, fortran_order, shape } = Header::parse(header)?;
    let element = element(&descr)?;
    if fortran_order && shape.len() > 1 {
        return Err("it is in Fortran order; save it with numpy.ascontiguousarray".to_owned());
    }
    if shape.len() > MAX_RANK {
        return Err(format!("its shape has {} dimensions", shape.len()));
    }
    let wanted = count(&shape).and_then(|count| count.checked_mul(element.size()));
    if wanted != Some(data.len()) {
        return Err(format!(
            "its header says shape {shape:?} of '{descr}', but it has {} bytes of data",
            data.len()
        ));
    }
    match element {
        Element::Number(data_type) => Ok(Array { data_type, shape, data }),
        Element::Bytes(_) | Element::Unicode(_) => {
            let mut texts = Vec::with_capacity(data.len());
            for item in data.chunks_exact(element.size()) {
                push_string(&mut texts, &text(element, item)?)?;
            }
            Ok(Array { data_type: DataType::Bytes, shape, data: texts.into() })
        }
    }
}

/// The header's text, and the data behind it.
fn split(file: &Bytes) -> Result<(&str, Bytes), String> {
    let short = || "it ends within its header".to_owned();
    let rest = file.strip_prefix(b"\x93NUMPY").ok_or_else(|| "it is not a .npy file".to_owned())?;
    let (&[major, _minor], rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (length, rest) = match major {
        1 => {
            let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
            (usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX), rest)
        }
        _ => return Err(format!("it is version {major} of the format; 1, 2 and 3 are understood")),
    };
    if length > MAX_HEADER {
        return Err(format!("its header claims {length} bytes, which is too long"));
    }
    let header = rest.get(..length).ok_or_else(short)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text".to_owned())?;
    Ok((header, file.slice(file.len() - rest.len() + length..)))
}

fn element(descr: &str) -> Result<Element, String> {
    let unserved = || Err(format!("its dtype {} cannot be sent", short(descr)));
    let (order, kind) = match descr.split_at_checked(1) {
        Some((order @ ("<" | ">" | "|" | "="), kind)) => (order, kind),
        Some(_) | None => ("|", descr),
    };
    if order == ">" {
        return Err(format!("its dtype {} is big-endian; save it as little-endian", short(descr)));
    }
    if let Some(width) = kind.strip_prefix('S').or_else(|| kind.strip_prefix('U')) {
        let characters: usize =
            width.parse().map_err(|_| format!("its dtype {} is not understood", short(descr)))?;
        let bytes = if kind.starts_with('U') { characters.checked_mul(4) } else { Some(characters) };
        return match bytes {
            None | Some(0) => unserved(),
            Some(width) if kind.starts_with('U') => Ok(Element::Unicode(width)),
            Some(width) => Ok(Element::Bytes(width)),
        };
    }
    let data_type = match kind {
        "b1" | "?" => DataType::Bool,
        "u1" => DataType::Uint8,
        "u2" => DataType::Uint16,
        "u4" => DataType::Uint32,
        "u8" => DataType::Uint64,
        "i1" => DataType::Int8,
        "i2" => DataType::Int16,
        "i4" => DataType::Int32,
        "i8" => DataType::Int64,
        "f2" => DataType::Fp16,
        "f4" => DataType::Fp32,
        "f8" => DataType::Fp64,
        "O" => return Err("it holds Python objects; save it with a dtype of numbers or strings".to_owned()),
        _ => return unserved(),
    };
    Ok(Element::Number(data_type))
}

/// A string without the zeros that fill it up.
fn text(element: Element, item: &[u8]) -> Result<Vec<u8>, String> {
    if let Element::Unicode(_) = element {
        let mut text = String::new();
        for point in item.chunks_exact(4) {
            let point = u32::from_le_bytes(point.try_into().unwrap_or([0; 4]));
            text.push(
                char::from_u32(point)
                    .ok_or_else(|| format!("it has {point:#x} where a character should be"))?,
            );
        }
        return Ok(text.trim_end_matches('\0').as_bytes().to_vec());
    }
    let end = item.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    Ok(item[..end].to_vec())
}

/// The header: a Python dict literal with three keys.
#[derive(Debug, PartialEq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<i64>,
}

impl Header {
    fn parse(text: &str) -> Result<Self, String> {
        let odd = || format!("its header is not understood: {}", short(text));
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut rest =
            text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or_else(odd)?;
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                break;
            }
            let (key, after) = string(rest).ok_or_else(odd)?;
            let value = after.trim_start().strip_prefix(':').ok_or_else(odd)?.trim_start();
            match key {
                "descr" if value.starts_with('[') => {
                    return Err("it is a structured array; save one field of it".to_owned());
                }
                "descr" => {
                    let (value, after) = string(value).ok_or_else(odd)?;
                    (descr, rest) = (Some(value.to_owned()), after);
                }
                "fortran_order" => {
                    let (value, after) = match (value.strip_prefix("True"), value.strip_prefix("False")) {
                        (Some(after), _) => (true, after),
                        (None, Some(after)) => (false, after),
                        (None, None) => return Err(odd()),
                    };
                    (fortran_order, rest) = (Some(value), after);
                }
                "shape" => {
                    let (inner, after) =
                        value.strip_prefix('(').and_then(|value| value.split_once(')')).ok_or_else(odd)?;
                    (shape, rest) = (Some(tuple(inner).ok_or_else(odd)?), after);
                }
                _ => return Err(odd()),
            }
            rest = rest.trim_start();
            match rest.strip_prefix(',') {
                Some(after) => rest = after,
                None if rest.is_empty() => break,
                None => return Err(odd()),
            }
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Self { descr, fortran_order, shape }),
            _ => Err(odd()),
        }
    }
}

/// A Python string at the start, and what follows it.
fn string(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let (inner, after) = text[1..].split_once(quote)?;
    (!inner.contains('\\')).then_some((inner, after))
}

/// `3, 4`, `3,` or nothing. Python 2 wrote `3L`.
fn tuple(text: &str) -> Option<Vec<i64>> {
    let text = text.trim();
    let text = text.strip_suffix(',').unwrap_or(text);
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|size| {
            let size = size.trim();
            size.strip_suffix('L').unwrap_or(size).parse().ok().filter(|&size: &i64| size >= 0)
        })
        .collect()
}

fn short(text: &str) -> String {
    let cut: String = text.trim().chars().take(80).collect();
    format!("{cut:?}")
}

#[cfg(test)]
#[path = "npy_tests.rs"]
mod tests;
