//! Shapes: which are valid, and which can be taken for one another.

use super::error::Fault;

/// Checks a shape: every dimension is -1 (any size) or at least 1, and the elements can be counted.
pub(super) fn check(shape: &[i64], key: &str) -> Result<(), Fault> {
    if let Some((index, dim)) = shape.iter().enumerate().find(|(_, dim)| **dim != -1 && **dim < 1) {
        let zero = if *dim == 0 { "; a dimension that can be empty is written -1" } else { "" };
        return Err(Fault::at(
            format!("{key}[{index}]"),
            format!("a dimension is -1 for any size, or 1 and more, not {dim}{zero}"),
        ));
    }
    let count = shape.iter().filter(|dim| **dim != -1).try_fold(1_i64, |count, dim| count.checked_mul(*dim));
    match count {
        Some(_) => Ok(()),
        None => Err(Fault::at(key, format!("{shape:?} has more elements than 64 bits can count"))),
    }
}

/// Checks that a tensor of one shape can be taken for one of the other, whatever its variable sizes.
///
/// As Triton: with variable dimensions, both shapes must have as many, and what stands between them
/// must have as many elements.
pub(super) fn check_reshape(
    shape: &[i64],
    reshape: &[i64],
    key: &str,
    shape_word: &str,
) -> Result<(), Fault> {
    let (between, rebetween) = (counts(shape), counts(reshape));
    if between == rebetween {
        return Ok(());
    }
    let difference = if between.len() != rebetween.len() {
        let (here, there) = (rebetween.len() - 1, between.len() - 1);
        format!("it has {here} variable dimensions (-1) and `{shape_word}` has {there}")
    } else if between.len() > 1 {
        format!(
            "the fixed dimensions around each -1 make {} elements and those of `{shape_word}` {}",
            joined(&rebetween),
            joined(&between)
        )
    } else {
        format!("it has {} elements and `{shape_word}` has {}", joined(&rebetween), joined(&between))
    };
    Err(Fault::at(
        key,
        format!(
            "{reshape:?} cannot be {shape:?} with other dimensions: {difference}, but they must be equal"
        ),
    ))
}

/// The elements in the fixed parts of a shape, which its variable dimensions separate.
fn counts(shape: &[i64]) -> Vec<i64> {
    shape.split(|dim| *dim == -1).map(|part| part.iter().product()).collect()
}

fn joined(counts: &[i64]) -> String {
    counts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(shape: &[i64], reshape: &[i64]) -> bool {
        check_reshape(shape, reshape, "reshape", "shape").is_ok()
    }

    #[test]
    fn a_dimension_is_variable_or_positive() {
        assert!(check(&[], "shape").is_ok());
        assert!(check(&[-1, 1, 3], "shape").is_ok());
        let zero = check(&[3, 0], "shape").expect_err("zero");
        assert_eq!(zero.place.key, "shape[1]");
        assert!(zero.message.contains("written -1"), "{}", zero.message);
        assert!(check(&[-2], "shape").is_err());
        assert!(check(&[i64::MAX, 2], "shape").is_err());
        assert!(check(&[i64::MIN], "shape").is_err());
    }

    #[test]
    fn a_reshape_keeps_the_number_of_elements() {
        assert!(fits(&[4, 3], &[12]));
        assert!(fits(&[1], &[]));
        assert!(fits(&[], &[1, 1]));
        assert!(!fits(&[2], &[]));
        assert!(!fits(&[4, 3], &[4, 4]));
    }

    #[test]
    fn variable_dimensions_keep_their_places() {
        assert!(fits(&[-1, 4], &[-1, 2, 2]));
        assert!(fits(&[2, 2, -1], &[4, -1]));
        assert!(!fits(&[-1, 4], &[4, -1]));
        assert!(!fits(&[-1, -1], &[-1]));
        assert!(!fits(&[4], &[-1]));
    }

    #[test]
    fn the_difference_is_told() {
        let message = check_reshape(&[4, 3], &[6], "reshape", "dims").expect_err("differs").message;
        assert_eq!(
            message,
            "[6] cannot be [4, 3] with other dimensions: it has 6 elements and `dims` has 12, but \
             they must be equal"
        );
    }
}
