//! What the server's log tells of loading: how long each step of each version took.

use std::{
    io::{BufRead, BufReader},
    process::ChildStderr,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use serde_json::Value;

use crate::support::report::Spread;

/// The steps of a load, as the log names them.
const STEPS: [&str; 3] = ["verify_ms", "load_ms", "warm_ms"];

/// The log of a server, read as it comes. Warnings are passed on.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Mutex<Vec<[f64; STEPS.len()]>>>);

impl Log {
    pub(crate) fn read(stderr: ChildStderr) -> Self {
        let log = Self(Arc::default());
        let loads = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                loads.take(&line);
            }
        });
        log
    }

    fn take(&self, line: &str) {
        let fields: Value = serde_json::from_str(line).unwrap_or_default();
        match fields["level"].as_str() {
            Some("INFO" | "DEBUG") => {}
            _ => eprintln!("the server says: {line}"),
        }
        if fields["message"] == "loaded" {
            let steps = STEPS.map(|step| fields[step].as_f64().unwrap_or(f64::NAN));
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(steps);
        }
    }

    /// Median milliseconds of each step since this was last asked.
    pub(crate) fn steps(&self) -> String {
        let loads = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let median = |step: usize| Spread::of(loads.iter().map(|steps| steps[step])).median;
        format!("verify {:.0}, load {:.0}, warm {:.0} ms", median(0), median(1), median(2))
    }
}
