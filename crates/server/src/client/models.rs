//! `sconce models`: what a running server tells of its models, for people.

use std::{io::Write, time::Duration};

use anyhow::{Context, anyhow};
use sconce_engine::text::quote;
use serde::Deserialize;
use serde_json::Value;

use super::{connection::duration, http, overview, print};

/// How many names a refusal lists.
const NAMED: usize = 10;

/// Print the models of a running server: versions, states, reasons, and what is going on.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ModelsArgs {
    /// Everything about this model alone.
    pub(crate) model: Option<String>,
    /// Where the server tells of its models: its --metrics-address.
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_METRICS_ADDRESS", default_value = "127.0.0.1:8002")]
    pub(crate) metrics_address: String,
    /// Print JSON, as the server sends it.
    #[arg(long)]
    pub(crate) json: bool,
    /// How long the server may take, such as 500ms or 10s.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// What `/models` tells, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    pub(super) devices: Vec<Device>,
    pub(super) models: Vec<Model>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) unloaded: bool,
    pub(super) problem: Option<String>,
    pub(super) versions: Vec<Version>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Version {
    pub(super) version: String,
    pub(super) state: String,
    pub(super) reason: String,
    pub(super) step: Option<String>,
    pub(super) attempts: u64,
    pub(super) last_failure: Option<String>,
    pub(super) next_attempt: Option<String>,
    pub(super) sha256: Option<String>,
    pub(super) loaded_at: Option<String>,
    pub(super) load_seconds: Option<f64>,
    pub(super) devices: Vec<String>,
    pub(super) instances: u64,
    pub(super) queued: u64,
    pub(super) queued_bytes: Option<u64>,
    pub(super) sequences: Option<u64>,
    pub(super) generations: Option<u64>,
    pub(super) running: u64,
    pub(super) hung: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) healthy: bool,
    pub(super) in_flight: u64,
    pub(super) cores: Option<u64>,
    pub(super) cores_used: u64,
    pub(super) workers: Vec<Worker>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) running: Option<Run>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Run {
    pub(super) model: String,
    pub(super) version: String,
    pub(super) seconds: f64,
    pub(super) hung: bool,
}

/// Asks the server and prints what it tells.
///
/// # Errors
/// One sentence: no such server is there, or it has no such model.
pub(crate) async fn models(args: ModelsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let text = http::get(&args.metrics_address, "/models", args.timeout).await?;
    let foreign = || {
        format!(
            "{} does not tell of models: give the address of a server's metrics with --metrics-address",
            quote(&args.metrics_address)
        )
    };
    let value: Value = serde_json::from_str(&text).with_context(foreign)?;
    let told = Told::deserialize(&value).with_context(foreign)?;
    let shown = match &args.model {
        None if args.json => text,
        None => overview::all(&told),
        Some(name) => {
            let at = told.models.iter().position(|model| model.name == *name);
            let at = at.ok_or_else(|| unknown(name, &told.models))?;
            match value["models"].get(at) {
                Some(model) if args.json => format!("{model:#}\n"),
                _ => overview::one(&told.models[at], &told.devices),
            }
        }
    };
    print(&shown, out)?;
    Ok(())
}

fn unknown(name: &str, models: &[Model]) -> anyhow::Error {
    let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    let lower = name.to_lowercase();
    let mut near: Vec<&str> = sconce_repository::nearest(name, &names).into_iter().collect();
    let like = names.iter().filter(|there| {
        let there = there.to_lowercase();
        !lower.is_empty() && (there.contains(&lower) || lower.contains(&there))
    });
    near.extend(like);
    near.sort_unstable();
    near.dedup();
    let name = quote(name);
    match (&near[..], &names[..]) {
        ([], []) => anyhow!("the server has no model named '{name}', nor any other"),
        ([], there) => anyhow!("the server has no model named '{name}'; it has {}", list(there)),
        (near, _) => anyhow!("the server has no model named '{name}'; it has {}", list(near)),
    }
}

fn list(names: &[&str]) -> String {
    let mut quoted: Vec<String> = names.iter().take(NAMED).map(|name| quote(name)).collect();
    if names.len() > NAMED {
        quoted.push(format!("and {} more", names.len() - NAMED));
    }
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_not_there_is_told_with_those_that_are_like_it() {
        let models = |names: &[&str]| -> Vec<Model> {
            names.iter().map(|name| Model { name: (*name).to_owned(), ..Model::default() }).collect()
        };
        let said = |name, names: &[&str]| unknown(name, &models(names)).to_string();
        let there = ["digits", "digits_large", "add_sub"];
        assert_eq!(
            said("digit", &there),
            "the server has no model named 'digit'; it has digits, digits_large"
        );
        assert_eq!(said("dgits", &there), "the server has no model named 'dgits'; it has digits");
        assert_eq!(
            said("x\n", &there),
            "the server has no model named 'x\\n'; it has digits, digits_large, add_sub"
        );
        assert_eq!(said("x", &[]), "the server has no model named 'x', nor any other");
        let many: Vec<String> = (0..30).map(|number| format!("m{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(said("other", &many).ends_with("m8, m9, and 20 more"));
    }
}
