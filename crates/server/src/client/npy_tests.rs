//! Files as numpy writes them, and files as nobody should.

use proptest::prelude::*;

use super::*;

/// A file as numpy writes it: the header is filled up with spaces to a multiple of 64.
fn file(major: u8, header: &str, data: &[u8]) -> Bytes {
    let prefix = if major == 1 { 10 } else { 12 };
    let padding = 63 - (prefix + header.len()) % 64;
    let header = format!("{header}{}\n", " ".repeat(padding));
    let mut file = b"\x93NUMPY".to_vec();
    file.extend_from_slice(&[major, 0]);
    if major == 1 {
        file.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
    } else {
        file.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
    }
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file.into()
}

fn header(descr: &str, shape: &[usize]) -> String {
    let inner = match shape {
        [only] => format!("{only},"),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({inner}), }}")
}

const NUMBERS: [(&str, DataType); 12] = [
    ("|b1", DataType::Bool),
    ("|u1", DataType::Uint8),
    ("<u2", DataType::Uint16),
    ("<u4", DataType::Uint32),
    ("<u8", DataType::Uint64),
    ("|i1", DataType::Int8),
    ("<i2", DataType::Int16),
    ("<i4", DataType::Int32),
    ("<i8", DataType::Int64),
    ("<f2", DataType::Fp16),
    ("<f4", DataType::Fp32),
    ("<f8", DataType::Fp64),
];

proptest! {
    #[test]
    fn what_was_written_is_read(
        kind in 0..NUMBERS.len(),
        major in 1_u8..=3,
        shape in prop::collection::vec(0_usize..5, 0..5),
        fill in any::<u8>(),
    ) {
        let (descr, data_type) = NUMBERS[kind];
        let count: usize = shape.iter().product();
        let data: Vec<u8> =
            (0..count * data_type.size().unwrap()).map(|at| fill.wrapping_add((at % 251) as u8)).collect();
        let read = array(&file(major, &header(descr, &shape), &data)).unwrap();
        prop_assert_eq!(read.data_type, data_type);
        prop_assert_eq!(read.shape, shape.iter().map(|&size| size as i64).collect::<Vec<_>>());
        prop_assert_eq!(&read.data[..], &data[..]);
    }

    #[test]
    fn any_strings_are_read(texts in prop::collection::vec("[^\0]{0,5}", 1..6)) {
        let data: Vec<u8> = texts
            .iter()
            .flat_map(|text| {
                let mut points: Vec<u32> = text.chars().map(u32::from).collect();
                points.resize(5, 0);
                points.into_iter().flat_map(u32::to_le_bytes)
            })
            .collect();
        let read = array(&file(1, &header("<U5", &[texts.len()]), &data)).unwrap();
        let mut expected = Vec::new();
        for text in &texts {
            push_string(&mut expected, text.as_bytes()).unwrap();
        }
        prop_assert_eq!(read.data_type, DataType::Bytes);
        prop_assert_eq!(&read.data[..], &expected[..]);
    }

    #[test]
    fn no_bytes_break_it(major in 0_u8..5, header in ".{0,200}", data in prop::collection::vec(any::<u8>(), 0..50)) {
        let _ = array(&file(major, &header, &data));
        let _ = array(&Bytes::from(data));
    }

    #[test]
    fn no_damaged_header_breaks_it(at in 0_usize..140, byte in any::<u8>(), end in 0_usize..140) {
        let mut whole = file(1, &header("<f4", &[2, 3]), &[0; 24]).to_vec();
        whole[at] = byte;
        let _ = array(&Bytes::from(whole.clone()));
        whole.truncate(end);
        prop_assert!(array(&Bytes::from(whole)).is_err());
    }
}

fn refused(file: &Bytes, why: &str) {
    let refused = array(file).unwrap_err();
    assert!(refused.contains(why), "{refused}");
}

#[test]
fn fixed_length_bytes_lose_their_filling() {
    let read = array(&file(1, &header("|S3", &[2]), b"ab\0\0\0\0")).unwrap();
    assert_eq!(read.data[..], [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]);
}

#[test]
fn claims_beyond_the_data_are_refused_before_memory_is_taken() {
    refused(&file(1, &header("<f4", &[1 << 60]), &[0; 4]), "4 bytes of data");
    refused(&file(1, &header("<f8", &[1 << 40, 1 << 40]), &[0; 8]), "8 bytes of data");
    refused(&file(1, &header("<f4", &[3]), &[0; 16]), "16 bytes of data");
    refused(&file(1, &header("|S99999999999999999", &[1 << 20]), &[0; 4]), "4 bytes of data");
    refused(&file(1, &header("<U9223372036854775807", &[1]), &[]), "cannot be sent");
    refused(&file(1, &header("|S0", &[1 << 50]), &[]), "cannot be sent");
    refused(&file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", &[]), "not understood");
    refused(
        &file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", &[]),
        "not understood",
    );
    refused(&file(1, &header("<f4", &[1; 1000]), &[0; 4]), "1000 dimensions");
    let mut huge = b"\x93NUMPY\x02\x00".to_vec();
    huge.extend_from_slice(&u32::MAX.to_le_bytes());
    refused(&huge.into(), "too long");
    refused(&Bytes::from_static(b"\x93NUMPY\x01\x00\xff\xff{"), "ends within its header");
    refused(&Bytes::from_static(b"PK"), "not a .npy file");
}

#[test]
fn what_is_not_served_says_so() {
    refused(&file(1, &header(">f4", &[1]), &[0; 4]), "big-endian");
    refused(&file(1, &header("<c8", &[1]), &[0; 8]), "\"<c8\" cannot be sent");
    refused(&file(1, &header("|O", &[1]), &[0; 8]), "Python objects");
    refused(&file(1, &header("<M8[ns]", &[1]), &[0; 8]), "cannot be sent");
    refused(&file(4, &header("<f4", &[1]), &[0; 4]), "version 4");
    refused(
        &file(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", &[0; 4]),
        "structured",
    );
    let fortran = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': True, 'shape': {shape}, }}");
    refused(&file(1, &fortran("(1, 1)"), &[0; 4]), "Fortran order");
    assert_eq!(array(&file(1, &fortran("(1,)"), &[0; 4])).unwrap().shape, [1]);
    refused(&file(1, &header("<U1", &[1]), &0xd800_u32.to_le_bytes()), "0xd800");
}

#[test]
fn keys_may_come_in_any_order_and_python_2_too() {
    let read = Header::parse("{\"shape\": (3L, 4L), 'fortran_order': False, 'descr': '<i8'}").unwrap();
    assert_eq!(read, Header { descr: "<i8".to_owned(), fortran_order: false, shape: vec![3, 4] });
}
