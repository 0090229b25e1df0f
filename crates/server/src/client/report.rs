//! A whole answer: for people, or as one line of JSON.

use std::{fmt::Write as _, time::Duration};

use super::{
    answer::{Output, Values},
    classes,
    print::{exact, tensor},
    text::{plain, quoted},
};

/// What was answered, and what had been asked for.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) version: String,
    pub(super) id: String,
    pub(super) took: Duration,
    pub(super) outputs: Vec<Output>,
    /// The outputs that were asked for as classes.
    pub(super) classified: Vec<String>,
}

impl Report {
    /// For people: a heading, then each output.
    pub(super) fn text(&self) -> String {
        let mut text = plain(&self.model);
        if !self.version.is_empty() {
            text.push_str(&format!(" version {}", plain(&self.version)));
        }
        text.push_str(&format!(", {}", took(self.took)));
        if !self.id.is_empty() {
            text.push_str(&format!(", id {}", quoted(self.id.as_bytes())));
        }
        text.push('\n');
        for output in &self.outputs {
            text.push('\n');
            text.push_str(&plain(&output.name));
            match self.classes(output) {
                Some(rows) => {
                    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
                    let best =
                        if count == 1 { "best class".to_owned() } else { format!("{count} best classes") };
                    text.push_str(&format!(": {best}\n{}", classes::tables(&rows)));
                }
                None => {
                    text.push_str(&format!(" {} {:?}\n{}", output.data_type, output.shape, tensor(output)));
                }
            }
        }
        text
    }

    /// One line of JSON, in the form of the protocol's HTTP answers: `data` is flat, in row-major
    /// order. What JSON has no word for is the string `NaN`, `Infinity` or `-Infinity`; BYTES that are
    /// not UTF-8 are lists of numbers. Outputs with labels have `classes`, a list for each row.
    pub(super) fn json(&self) -> String {
        let outputs: Vec<String> = self
            .outputs
            .iter()
            .map(|output| match self.classes(output) {
                Some(rows) => {
                    format!("{{\"name\":{},\"classes\":{}}}", string(&output.name), json_rows(&rows))
                }
                None => format!(
                    "{{\"name\":{},\"datatype\":\"{}\",\"shape\":[{}],\"data\":[{}]}}",
                    string(&output.name),
                    output.data_type,
                    output.shape.iter().map(i64::to_string).collect::<Vec<_>>().join(","),
                    data(output)
                ),
            })
            .collect();
        let id = if self.id.is_empty() { String::new() } else { format!("\"id\":{},", string(&self.id)) };
        format!(
            "{{\"model_name\":{},\"model_version\":{},{id}\"outputs\":[{}]}}\n",
            string(&self.model),
            string(&self.version),
            outputs.join(",")
        )
    }

    fn classes(&self, output: &Output) -> Option<Vec<Vec<classes::Class>>> {
        if !self.classified.contains(&output.name) || !matches!(output.values, Values::Strings(_)) {
            return None;
        }
        classes::rows(output)
    }
}

fn took(took: Duration) -> String {
    let milliseconds = took.as_secs_f64() * 1e3;
    match milliseconds {
        _ if milliseconds < 10.0 => format!("{milliseconds:.2} ms"),
        _ if milliseconds < 1000.0 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.2} s", milliseconds / 1e3),
    }
}

fn json_rows(rows: &[Vec<classes::Class>]) -> String {
    let row = |row: &Vec<classes::Class>| {
        let classes: Vec<String> = row
            .iter()
            .map(|class| {
                let label = class.label.as_deref().map(|label| format!(",\"label\":{}", string(label)));
                // `nan` is a number to the server, but not to JSON.
                let number = serde_json::from_str::<serde_json::Number>(&class.score);
                let score = number.map_or_else(|_| string(&class.score), |_| class.score.clone());
                format!("{{\"index\":{},\"score\":{score}{}}}", class.index, label.unwrap_or_default())
            })
            .collect();
        format!("[{}]", classes.join(","))
    };
    format!("[{}]", rows.iter().map(row).collect::<Vec<_>>().join(","))
}

/// The elements, with commas between them.
fn data(output: &Output) -> String {
    let mut text = String::new();
    for at in 0..output.count() {
        if at > 0 {
            text.push(',');
        }
        let element = output.element(at);
        match &output.values {
            Values::Strings(_) => match std::str::from_utf8(element) {
                Ok(element) => text.push_str(&string(element)),
                Err(_) => {
                    let bytes: Vec<String> = element.iter().map(u8::to_string).collect();
                    text.push_str(&format!("[{}]", bytes.join(",")));
                }
            },
            Values::Numbers(_) => {
                let number = exact(output.data_type, element);
                // Only what is not finite begins with a capital letter.
                let word =
                    number.trim_start_matches('-').starts_with(|first: char| first.is_ascii_uppercase());
                // Writing to a String does not fail.
                let _ = if word { write!(text, "\"{number}\"") } else { write!(text, "{number}") };
            }
        }
    }
    text
}

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            answer::{outputs, tests::response},
            array::push_string,
        },
        *,
    };

    fn report(datatype: &str, shape: &[i64], data: &[u8], classified: &[&str]) -> Report {
        Report {
            model: "m".to_owned(),
            version: "3".to_owned(),
            id: String::new(),
            took: Duration::from_micros(1234),
            outputs: outputs(response("x", datatype, shape, data)).unwrap(),
            classified: classified.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn people_get_names_types_shapes_and_values() {
        let text = report("INT8", &[1, 2], &[1, 2], &[]).text();
        assert_eq!(text, "m version 3, 1.23 ms\n\nx INT8 [1, 2]\n  [[1, 2]]\n");
        let mut class = Vec::new();
        push_string(&mut class, b"0.5:1:one").unwrap();
        let text = report("BYTES", &[1], &class, &["x"]).text();
        assert_eq!(text, "m version 3, 1.23 ms\n\nx: best class\n  1  one  0.5  ████████████\n");
        assert!(
            report("BYTES", &[1], &class, &[]).text().contains("[\"0.5:1:one\"]"),
            "nobody asked for classes"
        );
    }

    #[test]
    fn machines_get_json() {
        let data: Vec<u8> =
            [0.1_f32, f32::NAN, 1e20, f32::NEG_INFINITY].into_iter().flat_map(f32::to_le_bytes).collect();
        let line = report("FP32", &[2, 2], &data, &[]).json();
        assert_eq!(
            line,
            "{\"model_name\":\"m\",\"model_version\":\"3\",\"outputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\
             \"shape\":[2,2],\"data\":[0.1,\"NaN\",1e20,\"-Infinity\"]}]}\n"
        );
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
        let line = report("BYTES", &[2], b"\x02\0\0\0\"\n\x01\0\0\0\xff", &[]).json();
        assert!(line.contains("\"data\":[\"\\\"\\n\",[255]]"), "{line}");
        let mut class = Vec::new();
        push_string(&mut class, b"nan:1:one").unwrap();
        let line = report("BYTES", &[1, 1], &class, &["x"]).json();
        assert!(line.contains("\"classes\":[[{\"index\":1,\"score\":\"nan\",\"label\":\"one\"}]]"), "{line}");
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }

    #[test]
    fn times_have_a_fitting_unit() {
        assert_eq!(took(Duration::from_micros(84)), "0.08 ms");
        assert_eq!(took(Duration::from_millis(123)), "123 ms");
        assert_eq!(took(Duration::from_millis(2500)), "2.50 s");
    }
}
