//! The command as a whole, as far as it goes without a server; whole-server tests do the rest.

use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use super::{model::tests::model, *};

#[derive(Parser, Debug)]
#[command(version = "1")]
struct Line {
    #[command(flatten)]
    args: InferArgs,
}

#[derive(Parser, Debug)]
#[command(version = "1")]
enum Sub {
    Infer(InferArgs),
}

pub(super) fn parsed(line: &[&str]) -> InferArgs {
    Line::parse_from([&["infer"], line].concat()).args
}

#[test]
fn the_command_line_is_sound() {
    Sub::command().debug_assert();
    let matches =
        Sub::command().get_matches_from(["sconce", "infer", "m", "--version", "2", "-i", "x=1", "-i", "y=2"]);
    let Sub::Infer(args) = Sub::from_arg_matches(&matches).unwrap();
    assert_eq!((args.version.as_deref(), args.inputs.len(), args.top), (Some("2"), 2, 3));
    assert_eq!(args.timeout, Duration::from_secs(30));
    assert!(Sub::try_parse_from(["sconce", "infer", "m", "--timeout", "5"]).is_err());
}

#[test]
fn labelled_outputs_are_asked_for_as_classes() {
    let model = model("x", "FP32", &[-1, 1], 8);
    let ask = |line: &[&str]| request(&parsed(line), String::new(), &model).unwrap();

    let (all, classified) = ask(&["m", "-i", "x=1", "--top", "5", "--id", "a"]);
    assert_eq!(
        (&all.inputs[0].shape[..], &all.raw_input_contents[0][..]),
        (&[1, 1][..], &1_f32.to_le_bytes()[..])
    );
    assert_eq!((all.model_name.as_str(), all.id.as_str()), ("m", "a"));
    let names: Vec<&str> = all.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!((names, classified), (vec!["scores", "other"], vec!["scores".to_owned()]));
    let top = &all.outputs[0].parameters["classification"];
    assert_eq!(top.parameter_choice, Some(ParameterChoice::Int64Param(5)));
    assert!(all.outputs[1].parameters.is_empty());

    let (one, classified) = ask(&["m", "--output", "other"]);
    assert_eq!((one.outputs.len(), classified.len()), (1, 0));
    let (plain, classified) = ask(&["m", "--top", "0"]);
    assert_eq!((plain.outputs.len(), classified.len()), (0, 0));
}

#[tokio::test]
async fn where_nobody_listens_the_error_says_what_to_do() {
    // A port that was just free.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = infer(parsed(&["m", "--address", &address]), &mut io::sink()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no server answers at {address}: start one with `sconce serve` or give --address")
    );
}
