//! Answers as they come: text as it is, everything else as a single answer is printed.

use std::{io::Write, time::Instant};

use anyhow::bail;
use sconce_proto::inference::ModelStreamInferResponse;
use tonic::Streaming;

use super::{
    answer::{Output, Values},
    connection::Connection,
    print as print_now, report,
    text::plain,
};

/// Prints until there are no more, or nobody reads.
///
/// # Errors
/// What the server said in the place of an answer, or that the stream broke.
pub(super) async fn print(
    mut answers: Streaming<ModelStreamInferResponse>,
    connection: &Connection,
    classified: &[String],
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut line_is_open = false;
    loop {
        let before = Instant::now();
        let answer = answers.message().await.map_err(|status| connection.refusal(&status));
        let said = match answer {
            Ok(Some(said)) if said.error_message.is_empty() => said,
            ended => {
                if line_is_open {
                    print_now("\n", out)?;
                }
                return match ended? {
                    Some(said) => bail!("{}", plain(&said.error_message)),
                    None => Ok(()),
                };
            }
        };
        let Some(response) = said.infer_response else { continue };
        // An empty answer may be there only to say that it is the last.
        if response.outputs.is_empty() {
            continue;
        }
        let report = report(response, before.elapsed(), classified.to_vec())?;
        let text = match text(&report.outputs, classified) {
            Some(text) if !json => {
                line_is_open = !text.ends_with('\n');
                text
            }
            _ if json => report.json(),
            _ => report.text(),
        };
        if !print_now(&text, out)? {
            return Ok(());
        }
    }
}

/// The text, where an answer is nothing but one.
fn text(outputs: &[Output], classified: &[String]) -> Option<String> {
    let [Output { name, values: Values::Strings(items), .. }] = outputs else { return None };
    let [item] = &items[..] else { return None };
    if classified.contains(name) {
        return None;
    }
    let text = String::from_utf8_lossy(item);
    // What a terminal would obey is shown; lines and tabs are meant.
    let shown = |character: char| match character {
        '\n' | '\t' => character.to_string(),
        control if control.is_control() => control.escape_default().to_string(),
        other => other.to_string(),
    };
    Some(text.chars().map(shown).collect())
}
