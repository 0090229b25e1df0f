//! Tensors as people read them: nested like numpy's, in aligned columns, long ones cut in the middle.
//! What is printed entirely is JSON, so it can be given back as an input (floats with six
//! digits), unless it has a NaN or an infinity.

use half::{bf16, f16};
use sconce_repository::DataType;

use super::{answer::Output, array::Number, text::quoted};

/// Tensors with more elements show only the first and last of every dimension.
const MAX_ELEMENTS: usize = 200;
/// How many at each end.
const EDGE: usize = 3;
/// Lines are broken before they get longer.
const WIDTH: usize = 96;
/// A shape of more dimensions is not nested on the screen: its ends alone would fill pages.
const MAX_RANK: usize = 6;

/// What stands in the place of an element, a gap or a list of them.
enum Node {
    Element,
    Gap,
    List(Vec<Node>),
}

/// The values of an output, with each line indented by two.
pub(super) fn tensor(output: &Output) -> String {
    let shape: Vec<usize> = output.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
    let shape = if shape.len() > MAX_RANK { vec![output.count()] } else { shape };
    if output.count() == 0 {
        return "  []\n".to_owned();
    }
    let mut shown = Vec::new();
    let tree = tree(&shape, 0, output.count() > MAX_ELEMENTS, &mut shown);
    let texts = texts(output, &shown);
    let mut rendered = String::from("  ");
    render(&tree, &mut texts.iter(), 3, &mut rendered);
    rendered.push('\n');
    rendered
}

/// The part of the tensor below `shape`, whose first element is number `start`.
fn tree(shape: &[usize], start: usize, cut: bool, shown: &mut Vec<usize>) -> Node {
    let Some((&size, below)) = shape.split_first() else {
        shown.push(start);
        return Node::Element;
    };
    let step: usize = below.iter().product();
    let mut items = Vec::new();
    let mut at = 0;
    while at < size {
        if cut && at == EDGE && size > 2 * EDGE {
            items.push(Node::Gap);
            at = size - EDGE;
        }
        items.push(tree(below, start + at * step, cut, shown));
        at += 1;
    }
    Node::List(items)
}

fn render<'a>(node: &Node, texts: &mut impl Iterator<Item = &'a String>, indent: usize, out: &mut String) {
    let items = match node {
        Node::Element => return out.push_str(texts.next().map_or("", |text| text)),
        Node::Gap => return out.push_str("..."),
        Node::List(items) => items,
    };
    let rows = items.iter().any(|item| matches!(item, Node::List(_)));
    let mut column = indent;
    out.push('[');
    for (position, item) in items.iter().enumerate() {
        let mut piece = String::new();
        render(item, texts, indent + 1, &mut piece);
        let length = piece.chars().count();
        if position > 0 {
            out.push(',');
            if rows || column + 2 + length > WIDTH {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                column = indent;
            } else {
                out.push(' ');
                column += 2;
            }
        }
        column += length;
        out.push_str(&piece);
    }
    out.push(']');
}

/// The elements that are shown, numbers all of one width.
fn texts(output: &Output, shown: &[usize]) -> Vec<String> {
    let mut texts: Vec<String> = match output.data_type {
        DataType::Bytes => return shown.iter().map(|&at| quoted(output.element(at))).collect(),
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => {
            let bytes: Vec<&[u8]> = shown.iter().map(|&at| output.element(at)).collect();
            floats(output.data_type, &bytes)
        }
        DataType::Bool
        | DataType::Uint8
        | DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64 => shown.iter().map(|&at| exact(output.data_type, output.element(at))).collect(),
    };
    let width = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    for text in &mut texts {
        *text = format!("{text:>width$}");
    }
    texts
}

/// Floats with as many decimals as the one that needs most, up to six; very large and very small ones
/// with exponents.
fn floats(data_type: DataType, elements: &[&[u8]]) -> Vec<String> {
    let values: Vec<f64> = elements
        .iter()
        .map(|bytes| match Number::read(data_type, bytes) {
            Number::Float(value) => value,
            Number::Integer(value) => value as f64,
        })
        .collect();
    let largest =
        values.iter().filter(|value| value.is_finite()).fold(0.0_f64, |most, value| most.max(value.abs()));
    let exponents = largest >= 1e8 || (largest > 0.0 && largest < 1e-3);
    let decimals = elements
        .iter()
        .map(|bytes| exact(data_type, bytes))
        .map(|text| match text.split_once('.') {
            Some((_, decimals)) if !text.contains('e') => decimals.len(),
            Some(_) | None => {
                if text.contains('e') {
                    usize::MAX
                } else {
                    1
                }
            }
        })
        .max()
        .unwrap_or(1)
        .clamp(1, 6);
    values
        .into_iter()
        .map(|value| match value {
            _ if !value.is_finite() => word(value).to_owned(),
            _ if exponents => format!("{value:.5e}"),
            _ => format!("{value:.decimals$}"),
        })
        .collect()
}

/// A number with all its digits, the shortest text that reads back as the same value; BOOL as a word.
/// What is not finite is a word without quotes.
pub(super) fn exact(data_type: DataType, bytes: &[u8]) -> String {
    let float = match (data_type, Number::read(data_type, bytes)) {
        (DataType::Bool, number) => return (number != Number::Integer(0)).to_string(),
        (_, Number::Integer(value)) => return value.to_string(),
        (_, Number::Float(value)) => value,
    };
    match data_type {
        _ if !float.is_finite() => word(float).to_owned(),
        // Shortest in the type itself: 0.1 in FP32 is not 0.10000000149011612.
        DataType::Fp32 => format!("{:?}", float as f32),
        DataType::Fp16 => shortest(float, |value| f16::from_f64(value).to_f64()),
        DataType::Bf16 => shortest(float, |value| bf16::from_f64(value).to_f64()),
        _ => format!("{float:?}"),
    }
}

/// The fewest digits that round to the same value of a small type.
fn shortest(value: f64, round: impl Fn(f64) -> f64) -> String {
    (0..8)
        .map(|digits| format!("{value:.digits$e}"))
        .filter_map(|text| text.parse::<f64>().ok())
        .find(|&read| round(read) == value)
        .map_or_else(|| format!("{value:?}"), |read| format!("{read:?}"))
}

fn word(value: f64) -> &'static str {
    match value {
        _ if value.is_nan() => "NaN",
        _ if value > 0.0 => "Infinity",
        _ => "-Infinity",
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::answer::{outputs, tests::response},
        *,
    };

    fn shown(datatype: &str, shape: &[i64], data: &[u8]) -> String {
        tensor(&outputs(response("x", datatype, shape, data)).unwrap()[0])
    }

    fn fp32(shape: &[i64], values: &[f32]) -> String {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        shown("FP32", shape, &data)
    }

    #[test]
    fn columns_are_aligned() {
        assert_eq!(fp32(&[2, 2], &[1.0, -2.5, 10.25, 0.0]), "  [[ 1.00, -2.50],\n   [10.25,  0.00]]\n");
        assert_eq!(fp32(&[3], &[1.0, 2.0, 3.0]), "  [1.0, 2.0, 3.0]\n");
        assert_eq!(fp32(&[], &[0.1]), "  0.1\n");
        assert_eq!(fp32(&[2], &[1e-9, 0.5]), "  [0.000000, 0.500000]\n");
        assert_eq!(fp32(&[2], &[1e20, f32::NAN]), "  [1.00000e20,        NaN]\n");
        assert_eq!(fp32(&[1], &[2e-5]), "  [2.00000e-5]\n");
        assert_eq!(shown("BOOL", &[2], &[0, 1]), "  [false,  true]\n");
        assert_eq!(shown("INT8", &[1, 1, 2], &[255, 7]), "  [[[-1,  7]]]\n");
        assert_eq!(shown("FP32", &[3, 0], &[]), "  []\n");
    }

    #[test]
    fn strings_are_quoted() {
        assert_eq!(shown("BYTES", &[2], b"\x02\0\0\0hi\x01\0\0\0\x1b"), "  [\"hi\", \"\\u{1b}\"]\n");
    }

    #[test]
    fn long_lines_are_broken_and_large_tensors_are_cut() {
        let data: Vec<u8> = (0..100).collect();
        let text = shown("UINT8", &[100], &data);
        assert!(text.lines().count() > 3 && text.lines().all(|line| line.len() <= WIDTH + 2), "{text}");
        let data: Vec<u8> = (0..1000_u32).map(|value| (value % 256) as u8).collect();
        assert_eq!(shown("UINT8", &[1000], &data), "  [  0,   1,   2, ..., 229, 230, 231]\n");
        let text = shown("UINT8", &[100, 10], &data);
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(text.starts_with("  [[  0,   1,   2, ...,   7,   8,   9],\n"), "{text}");
        assert_eq!(text.lines().nth(3), Some("   ...,"));
    }

    #[test]
    fn hostile_shapes_are_printed() {
        assert_eq!(shown("UINT8", &[1; 1000], &[7]), "  [7]\n");
        assert_eq!(shown("UINT8", &[i64::MAX, 0], &[]), "  []\n");
    }

    #[test]
    fn exact_numbers_are_short() {
        assert_eq!(exact(DataType::Fp32, &0.1_f32.to_le_bytes()), "0.1");
        assert_eq!(exact(DataType::Fp16, &f16::from_f64(0.1).to_le_bytes()), "0.1");
        assert_eq!(exact(DataType::Bf16, &bf16::from_f64(3.0).to_le_bytes()), "3.0");
        assert_eq!(exact(DataType::Fp64, &f64::NEG_INFINITY.to_le_bytes()), "-Infinity");
        assert_eq!(exact(DataType::Uint64, &u64::MAX.to_le_bytes()), "18446744073709551615");
    }
}
