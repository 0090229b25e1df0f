//! Data for warming up, read from files.

use std::fs;

use tempfile::TempDir;

use super::*;

fn input(dir: &TempDir, data_type: DataType, dims: &[i64], bytes: &[u8]) -> WarmupInput {
    let path = dir.path().join("x.bin");
    fs::write(&path, bytes).unwrap();
    WarmupInput { data_type, dims: dims.to_vec(), data: WarmupData::File(path) }
}

#[test]
fn a_file_holds_one_row_or_all_of_them() {
    let dir = TempDir::new().unwrap();
    let row = input(&dir, DataType::Int16, &[2], &[1, 2, 3, 4]);
    assert_eq!(row.read(0).unwrap(), Some(vec![1, 2, 3, 4]));
    assert_eq!(row.read(2).unwrap(), Some(vec![1, 2, 3, 4, 1, 2, 3, 4]));
    assert_eq!((row.shape(0), row.shape(2)), (vec![2], vec![2, 2]));
    let all = input(&dir, DataType::Int16, &[2], &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(all.read(2).unwrap(), Some(vec![1, 2, 3, 4, 5, 6, 7, 8]));
    let error = all.read(3).expect_err("neither one row nor three");
    assert!(error.ends_with("it has 8 bytes, but its data type and shape take 4, or 12 for the whole batch"));
}

#[test]
fn strings_are_counted() {
    let dir = TempDir::new().unwrap();
    let bytes = [&[1, 0, 0, 0][..], b"a", &[0, 0, 0, 0]].concat();
    let both = input(&dir, DataType::Bytes, &[2], &bytes);
    assert_eq!(both.read(0).unwrap(), Some(bytes.clone()));
    assert_eq!(both.read(3).unwrap(), Some(bytes.repeat(3)));
    let rows = input(&dir, DataType::Bytes, &[1], &bytes);
    assert_eq!(rows.read(2).unwrap(), Some(bytes.clone()));
    assert!(rows.read(0).unwrap_err().ends_with("it has 2 strings, but its shape takes 1"));
    for cut in [1, 3, 4, 6, 8] {
        let error = input(&dir, DataType::Bytes, &[2], &bytes[..cut]).read(0).unwrap_err();
        assert!(error.contains("ends too early"), "{cut}: {error}");
    }
}

#[test]
fn what_is_made_up_is_not_read() {
    let made_up = WarmupInput { data_type: DataType::Fp32, dims: vec![4], data: WarmupData::Random };
    assert_eq!(made_up.read(2), Ok(None));
}

#[test]
fn a_file_that_went_away_is_one_sentence() {
    let dir = TempDir::new().unwrap();
    let gone = input(&dir, DataType::Fp32, &[1], &[0; 4]);
    fs::remove_file(dir.path().join("x.bin")).unwrap();
    let error = gone.read(0).expect_err("there is no file");
    assert!(
        error.starts_with("cannot use the data in ") && error.ends_with("there is no such file"),
        "{error}"
    );
    let large = input(&dir, DataType::Uint8, &[1], &[0]);
    assert!(large.read(u32::MAX).unwrap_err().contains("are more than 1073741824 bytes"));
}
