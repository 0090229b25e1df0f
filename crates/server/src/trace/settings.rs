//! What is traced, of all models and of each, as the RPC TraceSetting tells and changes it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use sconce_engine::text::quote;

use super::sampler::{Count, Rate};

/// How many models may have settings of their own.
const MODELS: usize = 4096;
/// The settings that can be changed.
const CHANGEABLE: [&str; 3] = ["trace_level", "trace_rate", "trace_count"];

/// Settings as they are on the wire: names and lists of values, of which an empty one clears.
pub(crate) type Values = HashMap<String, Vec<String>>;

/// What is traced. Every request reads it without a lock.
#[derive(Debug)]
pub(crate) struct Settings {
    now: ArcSwap<Now>,
    /// Held while they are changed.
    changing: Mutex<()>,
    defaults: Scope,
}

#[derive(Clone, Debug)]
struct Now {
    global: Scope,
    /// What models have of their own.
    models: HashMap<String, Scope>,
}

/// Settings of all models, or what one model has of its own; the rest is as for all. Counters are shared with
/// those for whom nothing else has been said.
#[derive(Clone, Debug, Default)]
struct Scope {
    on: Option<bool>,
    rate: Option<Arc<Rate>>,
    count: Option<Arc<Count>>,
}

impl Scope {
    fn or(&self, wider: &Self) -> Self {
        Self {
            on: self.on.or(wider.on),
            rate: self.rate.clone().or_else(|| wider.rate.clone()),
            count: self.count.clone().or_else(|| wider.count.clone()),
        }
    }

    fn is_empty(&self) -> bool {
        self.on.is_none() && self.rate.is_none() && self.count.is_none()
    }
}

/// One setting that is to change; `None` clears it.
enum Change {
    Level(Option<bool>),
    Rate(Option<u32>),
    Count(Option<i64>),
}

impl Settings {
    /// With this part of all requests, until told otherwise.
    pub(crate) fn new(ratio: f64) -> Self {
        let defaults = Scope {
            on: Some(true),
            rate: Some(Arc::new(Rate::Ratio(ratio))),
            count: Some(Arc::new(Count::new(-1))),
        };
        let now = Now { global: defaults.clone(), models: HashMap::new() };
        Self { now: ArcSwap::from_pointee(now), changing: Mutex::default(), defaults }
    }

    /// Whether anything of a model is traced.
    pub(crate) fn on(&self, model: Option<&str>) -> bool {
        let now = self.now.load();
        model.and_then(|model| now.models.get(model)?.on).or(now.global.on).unwrap_or_default()
    }

    /// Whether a request for a model that no caller traces is traced because of its rate.
    pub(crate) fn takes(&self, model: &str, trace_id: u128) -> bool {
        let now = self.now.load();
        let (own, global) = (now.models.get(model), &now.global);
        let rate = own.and_then(|own| own.rate.as_ref()).or(global.rate.as_ref());
        let count = own.and_then(|own| own.count.as_ref()).or(global.count.as_ref());
        rate.is_some_and(|rate| rate.takes(trace_id)) && count.is_some_and(|count| count.take())
    }

    /// The settings of all models, or those that hold for one, as Triton's clients know them.
    pub(crate) fn show(&self, model: Option<&str>) -> Values {
        let now = self.now.load();
        let own = model.and_then(|model| now.models.get(model)).cloned().unwrap_or_default();
        let holds = own.or(&now.global);
        show(
            holds.on.unwrap_or_default(),
            holds.rate.map_or(0, |rate| rate.as_triton()),
            holds.count.map_or(-1, |count| count.left()),
        )
    }

    /// Changes all that is told, or nothing.
    ///
    /// # Errors
    /// One sentence about what cannot be changed to this.
    pub(crate) fn change(&self, model: Option<&str>, values: &Values) -> Result<(), String> {
        let changes = changes(values, &self.show(model))?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = Now::clone(&self.now.load());
        let mut scope = match model {
            None => now.global.clone(),
            Some(model) => now.models.get(model).cloned().unwrap_or_default(),
        };
        for change in changes {
            match change {
                Change::Level(on) => scope.on = on,
                Change::Rate(rate) => scope.rate = rate.map(|rate| Arc::new(Rate::every(rate))),
                Change::Count(count) => scope.count = count.map(|count| Arc::new(Count::new(count))),
            }
        }
        match model {
            None => now.global = scope.or(&self.defaults),
            Some(model) if scope.is_empty() => drop(now.models.remove(model)),
            Some(model) if now.models.len() >= MODELS && !now.models.contains_key(model) => {
                return Err(format!(
                    "{MODELS} models have trace settings of their own, and no more can: clear those of another"
                ));
            }
            Some(model) => drop(now.models.insert(model.to_owned(), scope)),
        }
        self.now.store(Arc::new(now));
        Ok(())
    }

    /// Forgets what models had of their own that are not known any more: nobody could name them to clear it, and
    /// another model that gets such a name would have it.
    pub(crate) fn keep(&self, known: impl Fn(&str) -> bool) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now.load();
        if now.models.keys().all(|model| known(model)) {
            return;
        }
        let mut now = Now::clone(&now);
        now.models.retain(|model, _| known(model));
        self.now.store(Arc::new(now));
    }
}

/// What is told where nothing is traced.
pub(crate) fn show_off() -> Values {
    show(false, 0, -1)
}

fn show(on: bool, rate: u32, count: i64) -> Values {
    let level = if on { "TIMESTAMPS" } else { "OFF" };
    let values = [
        ("trace_file", String::new()),
        ("trace_level", level.to_owned()),
        ("trace_rate", rate.to_string()),
        ("trace_count", count.to_string()),
        ("log_frequency", "0".to_owned()),
        ("trace_mode", "opentelemetry".to_owned()),
    ];
    values.into_iter().map(|(name, value)| (name.to_owned(), vec![value])).collect()
}

/// What is to change. What stays as it is may be told, so that what was shown can be sent back.
fn changes(values: &Values, shown: &Values) -> Result<Vec<Change>, String> {
    let mut names: Vec<&String> = values.keys().collect();
    names.sort_unstable();
    let mut changes = Vec::new();
    for name in names {
        let list = &values[name];
        match name.as_str() {
            "trace_level" => changes.push(Change::Level(level(list)?)),
            "trace_rate" => changes.push(Change::Rate(rate(list)?)),
            "trace_count" => changes.push(Change::Count(count(list)?)),
            _ if shown.get(name).is_some_and(|shown| list.is_empty() || list == shown) => {}
            "trace_mode" => return Err(fixed(name, "the mode is 'opentelemetry' and no other")),
            "trace_file" | "log_frequency" => {
                return Err(fixed(name, "spans go to the collector of --trace-endpoint, and none to a file"));
            }
            _ => {
                return Err(format!(
                    "'{}' is no trace setting: {} and {} can be changed",
                    quote(name),
                    CHANGEABLE[..2].join(", "),
                    CHANGEABLE[2]
                ));
            }
        }
    }
    Ok(changes)
}

fn fixed(name: &str, why: &str) -> String {
    format!("'{name}' cannot be changed: {why}; leave it out")
}

fn level(list: &[String]) -> Result<Option<bool>, String> {
    let words: Vec<&str> = list.iter().map(String::as_str).collect();
    match words[..] {
        [] => Ok(None),
        ["OFF"] => Ok(Some(false)),
        ["TIMESTAMPS"] => Ok(Some(true)),
        _ if words.contains(&"TENSORS") => {
            Err("'trace_level' cannot be TENSORS: spans hold no tensors; OFF or TIMESTAMPS is expected"
                .to_owned())
        }
        [word] => Err(format!("'trace_level' is '{}': OFF or TIMESTAMPS is expected", quote(word))),
        _ => Err(several("trace_level", list)),
    }
}

fn rate(list: &[String]) -> Result<Option<u32>, String> {
    number("trace_rate", list, "a whole number of requests of which one is traced, or 0 for none")
}

fn count(list: &[String]) -> Result<Option<i64>, String> {
    let expected = "a whole number of requests to trace, or -1 for no bound";
    match number("trace_count", list, expected)? {
        Some(count) if count < -1 => Err(unexpected("trace_count", &list[0], expected)),
        count => Ok(count),
    }
}

fn number<N: std::str::FromStr>(name: &str, list: &[String], expected: &str) -> Result<Option<N>, String> {
    match list {
        [] => Ok(None),
        [text] => text.parse().map(Some).map_err(|_| unexpected(name, text, expected)),
        _ => Err(several(name, list)),
    }
}

fn unexpected(name: &str, text: &str, expected: &str) -> String {
    format!("'{name}' is '{}': {expected} is expected", quote(text))
}

fn several(name: &str, list: &[String]) -> String {
    format!("'{name}' has {} values: one is expected, or none to clear it", list.len())
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
