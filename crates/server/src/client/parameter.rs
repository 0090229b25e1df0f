//! `NAME=VALUE` to a parameter of the request: its type is that of the value.

use sconce_proto::inference::{InferParameter, infer_parameter::ParameterChoice};

/// `true` and `false`, whole numbers, numbers, and any other text.
pub(super) fn parse(text: &str) -> Result<(String, InferParameter), String> {
    let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err("write NAME=VALUE, such as priority=1".to_owned());
    };
    let choice = match value {
        "true" => ParameterChoice::BoolParam(true),
        "false" => ParameterChoice::BoolParam(false),
        text => match (text.parse(), text.parse(), text.parse::<f64>()) {
            (Ok(number), ..) => ParameterChoice::Int64Param(number),
            (_, Ok(number), _) => ParameterChoice::Uint64Param(number),
            (_, _, Ok(number)) if number.is_finite() => ParameterChoice::DoubleParam(number),
            _ => ParameterChoice::StringParam(text.to_owned()),
        },
    };
    Ok((name.to_owned(), InferParameter { parameter_choice: Some(choice) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_says_the_type() {
        let choice = |text: &str| parse(text).unwrap().1.parameter_choice.unwrap();
        assert_eq!(choice("a=true"), ParameterChoice::BoolParam(true));
        assert_eq!(choice("a=-1"), ParameterChoice::Int64Param(-1));
        assert_eq!(choice("a=18446744073709551615"), ParameterChoice::Uint64Param(u64::MAX));
        assert_eq!(choice("a=0.5"), ParameterChoice::DoubleParam(0.5));
        assert_eq!(choice("a=b=c"), ParameterChoice::StringParam("b=c".to_owned()));
        assert_eq!(choice("a="), ParameterChoice::StringParam(String::new()));
        assert!(parse("a").is_err() && parse("=1").is_err());
    }
}
