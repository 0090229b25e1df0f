//! What a server tells of its models, as tables and paragraphs that fit a terminal.

use std::fmt::Write as _;

use bytesize::ByteSize;
use sconce_engine::text::quote;

use super::models::{Device, Model, Run, Told, Version};
use crate::columns::{Table, WIDTH, wrapped};

/// A longer name has a line for itself, where it does not push everything else away.
const NAME: usize = 24;
/// Where the second column of a paragraph begins.
const INDENT: usize = 14;

/// All models, a row for each version, and the devices.
pub(super) fn all(told: &Told) -> String {
    let heading = ["MODEL", "VERSION", "STATE", "DEVICES", "RUNNING", "QUEUED", "LOADED"];
    let mut table = Table::new(&heading);
    for model in &told.models {
        let mut name = quote(&model.name);
        if name.chars().count() > NAME || model.versions.is_empty() {
            table.row(vec![std::mem::take(&mut name)], None);
        }
        for version in &model.versions {
            table.row(row(name.clone(), version), note(version));
        }
        if let Some(problem) = &model.problem {
            table.note(problem);
        }
    }
    let mut text = if told.models.is_empty() { "no models\n".to_owned() } else { table.text() };
    if !told.devices.is_empty() {
        let _ = write!(text, "\n{}", devices(&told.devices));
    }
    text
}

fn row(name: String, version: &Version) -> Vec<String> {
    vec![
        name,
        quote(&version.version),
        quote(&version.state),
        or_dash(&version.devices.iter().map(|device| quote(device)).collect::<Vec<_>>().join(",")),
        match version.instances {
            0 => version.running.to_string(),
            instances => format!("{} of {instances}", version.running),
        },
        version.queued.to_string(),
        or_dash(&quote(version.loaded_at.as_deref().unwrap_or_default())),
    ]
}

/// Why a version is not as it should be.
fn note(version: &Version) -> Option<String> {
    let hung = match version.hung {
        0 => None,
        1 => Some("1 run is not expected to end".to_owned()),
        more => Some(format!("{more} runs are not expected to end")),
    };
    let parts: Vec<String> =
        hung.into_iter().chain((!version.reason.is_empty()).then(|| version.reason.clone())).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn devices(devices: &[Device]) -> String {
    let mut table = Table::new(&["DEVICE", "STATE", "IN FLIGHT", "CORES", "WORKERS"]);
    for device in devices {
        let busy = device.workers.iter().filter(|worker| worker.running.is_some()).count();
        let row = vec![
            quote(&device.name),
            if device.healthy { "healthy" } else { "failed" }.to_owned(),
            device.in_flight.to_string(),
            match device.cores {
                Some(cores) => format!("{} of {cores}", device.cores_used),
                None => "-".to_owned(),
            },
            format!("{busy} of {} busy", device.workers.len()),
        ];
        table.row(row, None);
        for worker in &device.workers {
            if let Some(run) = &worker.running {
                let of = format!("{} version {}", quote(&run.model), quote(&run.version));
                table.note(&format!("{} runs {of} {}", quote(&worker.name), since(run)));
            }
        }
    }
    table.text()
}

fn since(run: &Run) -> String {
    let hung = if run.hung { ", and is not expected to end" } else { "" };
    format!("for {}{hung}", seconds(run.seconds))
}

/// Everything about one model.
pub(super) fn one(model: &Model, devices: &[Device]) -> String {
    let state = match (model.ready, model.unloaded) {
        (true, _) => "ready",
        (false, true) => "unloaded",
        (false, false) => "not ready",
    };
    let mut text = format!("{}: {state}\n", quote(&model.name));
    if let Some(problem) = &model.problem {
        entry(&mut text, "problem", problem);
    }
    for version in &model.versions {
        let _ = writeln!(text, "\nversion {}: {}", quote(&version.version), quote(&version.state));
        if !version.reason.is_empty() {
            entry(&mut text, "reason", &version.reason);
        }
        if version.attempts > 0 {
            entry(&mut text, "attempts", &attempts(version));
        }
        if let Some(digest) = &version.sha256 {
            entry(&mut text, "sha256", digest);
        }
        if let Some(at) = &version.loaded_at {
            let took = version.load_seconds.map(|took| format!(", which took {}", seconds(took)));
            entry(&mut text, "loaded", &format!("{at}{}", took.unwrap_or_default()));
        }
        if !version.devices.is_empty() {
            let runs = if version.instances == 1 { "run" } else { "runs" };
            let on = version.devices.join(", ");
            entry(&mut text, "devices", &format!("{on}; {} {runs} at once", version.instances));
        }
        entry(&mut text, "running", &running(model, version, devices));
        let bytes = version.queued_bytes.map(|bytes| format!(", {}", ByteSize::b(bytes).display().iec()));
        entry(&mut text, "queued", &format!("{}{}", version.queued, bytes.unwrap_or_default()));
        for (name, count) in [("sequences", version.sequences), ("generations", version.generations)] {
            if let Some(count) = count {
                entry(&mut text, name, &count.to_string());
            }
        }
    }
    text
}

fn attempts(version: &Version) -> String {
    let mut text = format!("{} failed", version.attempts);
    if let Some(last) = &version.last_failure {
        let step = version.step.as_deref().map(|step| format!(" in the step {step}"));
        let _ = write!(text, ", the last{} at {last}", step.unwrap_or_default());
    }
    if let Some(next) = &version.next_attempt {
        let _ = write!(text, "; the next at {next}");
    }
    text
}

/// How many runs, and on which workers.
fn running(model: &Model, version: &Version, devices: &[Device]) -> String {
    let workers = devices.iter().flat_map(|device| &device.workers);
    let on = workers.filter_map(|worker| {
        let run = worker.running.as_ref()?;
        (run.model == model.name && run.version == version.version)
            .then(|| format!("{} {}", worker.name, since(run)))
    });
    let on: Vec<String> = on.collect();
    let mut text = version.running.to_string();
    if version.hung > 0 {
        let _ = write!(text, ", {} of them not expected to end", version.hung);
    }
    if !on.is_empty() {
        let _ = write!(text, ": {}", on.join("; "));
    }
    text
}

fn seconds(seconds: f64) -> String {
    match seconds {
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 100.0 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.0} s"),
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `key   text`, where the text may take several lines.
fn entry(text: &mut String, key: &str, value: &str) {
    let lines = wrapped(value, WIDTH - INDENT);
    for (number, line) in lines.iter().enumerate() {
        let key = if number == 0 { key } else { "" };
        let _ = writeln!(text, "  {key:<width$}{line}", width = INDENT - 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Told {
        let text = r#"{
            "devices": [{
                "name": "cpu", "healthy": true, "in_flight": 3, "cores": 8, "cores_used": 2,
                "workers": [
                    {"name": "cpu-0", "runs": 7, "running":
                        {"model": "digits", "version": "1", "seconds": 0.0123, "hung": false}},
                    {"name": "cpu-1", "runs": 2, "running": null}
                ]
            }],
            "models": [
                {"name": "digits", "ready": true, "unloaded": false, "problem": null, "versions": [
                    {"version": "1", "state": "READY", "reason": "", "attempts": 0, "sha256": "0123abcd",
                     "loaded_at": "2026-08-08T12:00:01Z", "load_seconds": 0.3125, "devices": ["cpu"],
                     "instances": 2, "queued": 12, "queued_bytes": 3072, "running": 1, "hung": 0,
                     "sequences": 4, "generations": null},
                    {"version": "2", "state": "UNAVAILABLE", "reason": "a file is\u001b[31m no archive",
                     "step": "load", "attempts": 2, "last_failure": "2026-08-08T12:00:05Z",
                     "next_attempt": "2026-08-08T12:00:09Z", "devices": [], "instances": 0}
                ]},
                {"name": "empty", "ready": false, "unloaded": true, "problem": "there is no version"}
            ]
        }"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn all_models_are_an_aligned_table() {
        assert_eq!(
            all(&told()),
            "\
MODEL   VERSION  STATE        DEVICES  RUNNING  QUEUED  LOADED
digits  1        READY        cpu      1 of 2   12      2026-08-08T12:00:01Z
digits  2        UNAVAILABLE  -        0        0       -
    a file is\\u{1b}[31m no archive
empty
    there is no version

DEVICE  STATE    IN FLIGHT  CORES   WORKERS
cpu     healthy  3          2 of 8  1 of 2 busy
    cpu-0 runs digits version 1 for 12 ms
"
        );
        assert_eq!(all(&Told::default()), "no models\n");
    }

    #[test]
    fn one_model_is_told_entirely() {
        let Told { devices, models } = told();
        assert_eq!(
            one(&models[0], &devices),
            "\
digits: ready

version 1: READY
  sha256      0123abcd
  loaded      2026-08-08T12:00:01Z, which took 312 ms
  devices     cpu; 2 runs at once
  running     1: cpu-0 for 12 ms
  queued      12, 3.0 KiB
  sequences   4

version 2: UNAVAILABLE
  reason      a file is\\u{1b}[31m no archive
  attempts    2 failed, the last in the step load at 2026-08-08T12:00:05Z; the next at
              2026-08-08T12:00:09Z
  running     0
  queued      0
"
        );
        assert!(one(&models[1], &[]).starts_with("empty: unloaded\n  problem     there is no version\n"));
    }

    #[test]
    fn no_line_is_longer_than_a_terminal() {
        let mut told = told();
        told.models[0].name = "n".repeat(WIDTH);
        told.models[1].name = "n".repeat(NAME);
        told.models[1].versions = vec![told.models[0].versions.remove(0)];
        told.models[0].versions[0].reason = "words and words ".repeat(100);
        told.models[0].versions[0].hung = 2;
        let text = all(&told);
        assert!(text.contains("n\n                          2        UNAVAILABLE  -"), "{text}");
        assert!(text.contains("2 runs are not expected to end; words and"), "{text}");
        for line in text.lines().chain(one(&told.models[0], &told.devices).lines().skip(1)) {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }
}
