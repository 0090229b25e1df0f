//! What asks a running server from a terminal: `sconce infer` for one inference, `sconce models` for what
//! its models are doing.
//!
//! The parts, in reading order:
//! - `connection`: one deadline for everything, and errors as one sentence
//! - `model`: what the server says about the model
//! - `input`: `NAME=VALUE` to a tensor, with `json`, `npy` and `picture` for the forms of values
//! - `array`: tensors in the protocol's form, and their elements
//! - `parameter`: `NAME=VALUE` to a parameter of the request
//! - `answer`: the response, checked
//! - `report`: the answer for people, with `print` and `classes`, or for machines
//! - `stream`: answers as they come
//! - `text`: what others wrote, made harmless
//! - `models`: `sconce models`, with `http` for the question and `overview` for people
//!
//! `sconce infer` knows the protocol only, nothing of this server's inside, so it works with every server
//! that speaks the Open Inference Protocol.

mod answer;
mod array;
mod classes;
mod connection;
mod http;
mod input;
mod json;
mod model;
mod models;
mod npy;
mod overview;
mod parameter;
mod picture;
mod print;
mod report;
mod stream;
mod text;

use std::{
    collections::HashMap,
    io::{self, Write},
    time::{Duration, Instant},
};

use sconce_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};

use connection::{Connection, duration};
use model::Model;
use report::Report;

pub(crate) use models::{ModelsArgs, models};

/// Send one inference request to a running server and print the answer.
///
/// The server's metadata says what each input must be, so values need no dtype.
#[derive(clap::Args, Clone, Debug)]
// `--version` is the model's.
#[command(disable_version_flag = true, after_help = EXAMPLES)]
pub(crate) struct InferArgs {
    /// The model's name.
    pub(crate) model: String,
    /// An input, as often as the model has inputs: NAME=JSON, NAME=TEXT or NAME=@FILE.
    ///
    /// Nested lists give the shape; a missing batch dimension is added. For BYTES any other text is
    /// one element. Files: .npy; .png and .jpg, resized to the model's height and width, floats 0 to
    /// 1, integers 0 to 255; .json; .txt, each line an element of BYTES; any file as one element of
    /// BYTES. NAME:DTYPE=VALUE chooses another dtype than the metadata's.
    #[arg(short, long = "input", value_name = "NAME=VALUE")]
    pub(crate) inputs: Vec<String>,
    /// The model's version; without it the server chooses.
    #[arg(long, value_name = "V")]
    pub(crate) version: Option<String>,
    /// Where the server listens.
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_ADDRESS", default_value = "127.0.0.1:8001")]
    pub(crate) address: String,
    /// Only this output; may be repeated.
    #[arg(short, long = "output", value_name = "NAME")]
    pub(crate) outputs: Vec<String>,
    /// How many classes to show of outputs that have labels; 0 shows the values.
    #[arg(long, value_name = "K", default_value_t = 3)]
    pub(crate) top: u32,
    /// Print the answer as one line of JSON; with --stream each answer.
    #[arg(long)]
    pub(crate) json: bool,
    /// Send it on a stream and print answers as they come, of a model that makes many of them. Text is printed as it
    /// is.
    #[arg(long)]
    pub(crate) stream: bool,
    /// A parameter of the request, such as priority=1, max_steps=20 or sequence_id=7; may be repeated.
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = parameter::parse)]
    pub(crate) parameters: Vec<(String, InferParameter)>,
    /// The deadline of each call, such as 500ms or 10s.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// An identifier for the request, which the answer repeats.
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
}

const EXAMPLES: &str = "Examples:
  sconce infer digits -i image=@seven.png
  sconce infer add_sub -i INPUT0=@a.npy -i INPUT1=@b.npy --output OUTPUT__0
  sconce infer text_stats -i 'text=[\"Hello, world!\", \"again\"]' --json
  sconce infer dict_stats -i 'values=[1, 2, 3]' -i 'weights=[1, 1, 2]'
  sconce infer char_lm --stream -i prompt='The '
  sconce infer running_sum -i value=1 -p sequence_id=7 -p sequence_start=true";

/// Asks the server and prints what it answers.
///
/// # Errors
/// One sentence: the server cannot be reached, an input cannot be built, or what the server refused,
/// as `CODE: message`.
pub(crate) async fn infer(args: InferArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut connection = Connection::open(&args.address, args.timeout).await?;
    let version = args.version.clone().unwrap_or_default();
    let model = connection.describe(&args.model, &version).await?;
    let (request, classified) = request(&args, version, &model)?;
    let started = Instant::now();
    if args.stream {
        let answers = connection.stream(request).await?;
        return stream::print(answers, &connection, &classified, args.json, out).await;
    }
    let response = connection.infer(request).await?;
    let report = report(response, started.elapsed(), classified)?;
    print(&if args.json { report.json() } else { report.text() }, out)?;
    Ok(())
}

fn report(response: ModelInferResponse, took: Duration, classified: Vec<String>) -> anyhow::Result<Report> {
    Ok(Report {
        model: response.model_name.clone(),
        version: response.model_version.clone(),
        id: response.id.clone(),
        took,
        outputs: answer::outputs(response)?,
        classified,
    })
}

/// Prints at once; whether anybody reads.
fn print(text: &str, out: &mut dyn Write) -> io::Result<bool> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Who reads through `head` has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// The request, and the outputs that it asks for as classes.
fn request(
    args: &InferArgs,
    version: String,
    model: &Model,
) -> anyhow::Result<(ModelInferRequest, Vec<String>)> {
    let mut request = ModelInferRequest {
        model_name: args.model.clone(),
        model_version: version,
        id: args.id.clone().unwrap_or_default(),
        parameters: args.parameters.iter().cloned().collect(),
        ..Default::default()
    };
    for argument in &args.inputs {
        let (name, array) = input::build(argument, model)?;
        request.inputs.push(InferInputTensor {
            name,
            datatype: array.data_type.name().to_owned(),
            shape: array.shape,
            ..Default::default()
        });
        request.raw_input_contents.push(array.data);
    }
    let labelled = if args.top == 0 { Vec::new() } else { model.labelled() };
    // To name one output is to name all that are wanted.
    let wanted: Vec<&str> = match &args.outputs[..] {
        [] if labelled.is_empty() => Vec::new(),
        [] => model.metadata.outputs.iter().map(|output| output.name.as_str()).collect(),
        named => named.iter().map(String::as_str).collect(),
    };
    let mut classified = Vec::new();
    for name in wanted {
        let mut parameters = HashMap::new();
        if labelled.contains(&name) {
            let top = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(args.top.into())) };
            parameters.insert("classification".to_owned(), top);
            classified.push(name.to_owned());
        }
        request.outputs.push(InferRequestedOutputTensor { name: name.to_owned(), parameters });
    }
    Ok((request, classified))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "roundtrip_tests.rs"]
mod roundtrip_tests;
