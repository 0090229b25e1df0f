//! A scripted backend: what a model does is written in its file. It runs nothing; scheduling, loading
//! and the wire are tested with it, and the server is built with it where there is no libtorch.
//!
//! A model file begins with the line `fake`; each further line is one of
//!
//! ```text
//! argument NAME tensor|tensors|dict|strings|int|float|bool|str [optional]
//! delay MILLISECONDS      every run takes that long
//! fail MESSAGE            every run throws
//! panic                   every run panics
//! gate                    every run waits for `Fake::open_gate`
//! ```
//!
//! A run answers with its tensor arguments, in order, as a tuple: `OUTPUT__0`, `OUTPUT__1`, ...

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sconce_repository::ModelConfig;

use crate::{
    backend::{Backend, Device, LoadError, Module, Opened, RunError, Runner, WorkerContext},
    reply::Done,
    schema::{Argument, ArgumentKind, Return, Schema},
    value::{Arg, Call, Output},
};

/// The scripted backend.
#[derive(Debug, Default)]
pub struct Fake {
    gpus: u32,
    stage: Arc<Stage>,
}

/// What all runs share: the gate, and what has been seen of them.
#[derive(Debug, Default)]
struct Stage {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    gate_open: bool,
    /// Runs that have begun, per device.
    started: BTreeMap<Device, usize>,
    /// Runs that are between begin and end.
    running: usize,
    most_at_once: usize,
}

impl Stage {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, is: impl Fn(&Seen) -> bool) {
        let guard = self.changed.wait_while(self.seen(), |seen| !is(seen));
        drop(guard.unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts a run as running until the guard is dropped.
    fn enter(&self, device: Device) -> Running<'_> {
        let mut seen = self.seen();
        *seen.started.entry(device).or_default() += 1;
        seen.running += 1;
        seen.most_at_once = seen.most_at_once.max(seen.running);
        self.changed.notify_all();
        Running(self)
    }
}

struct Running<'a>(&'a Stage);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.seen().running -= 1;
    }
}

impl Fake {
    /// With a CPU and so many GPUs.
    pub fn new(gpus: u32) -> Self {
        Self { gpus, stage: Arc::default() }
    }

    /// Lets all runs through that wait at the gate, and those to come.
    pub fn open_gate(&self) {
        self.stage.seen().gate_open = true;
        self.stage.changed.notify_all();
    }

    /// How many runs have begun on each device, those that wait at the gate too.
    pub fn started(&self) -> BTreeMap<Device, usize> {
        self.stage.seen().started.clone()
    }

    /// Waits until so many runs have begun, on all devices together.
    pub fn wait_started(&self, count: usize) {
        self.stage.wait_until(|seen| seen.started.values().sum::<usize>() >= count);
    }

    /// The most runs that were running at the same time.
    pub fn most_at_once(&self) -> usize {
        self.stage.seen().most_at_once
    }
}

impl Backend for Fake {
    fn name(&self) -> String {
        "fake (scripted, for tests; built without libtorch)".to_owned()
    }

    fn devices(&self) -> Vec<Device> {
        std::iter::once(Device::Cpu).chain((0..self.gpus).map(Device::Gpu)).collect()
    }

    fn enter_worker(&self, _device: Device) -> Box<dyn WorkerContext> {
        Box::new(NoContext)
    }

    fn open(&self, file: PathBuf, _config: &ModelConfig) -> Result<Box<dyn Opened>, LoadError> {
        let text = std::fs::read_to_string(&file)
            .map_err(|error| LoadError(format!("{} cannot be read: {error}", file.display())))?;
        let script = Script::parse(&text).map_err(|why| LoadError(format!("{}: {why}", file.display())))?;
        Ok(Box::new(OpenScript { script: Arc::new(script), stage: Arc::clone(&self.stage) }))
    }
}

struct NoContext;

impl WorkerContext for NoContext {
    fn set_threads(&mut self, _threads: usize) {}
}

#[derive(Debug, Default)]
struct Script {
    schema: Schema,
    delay: Duration,
    fail: Option<String>,
    panic: bool,
    gate: bool,
}

impl Script {
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some("fake") {
            return Err("not a scripted model: its first line must be `fake`".to_owned());
        }
        let mut script = Self::default();
        script.schema.returns = Return::Unknown;
        for line in lines.filter(|line| !line.trim().is_empty()) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "argument" => script.schema.arguments.push(argument(rest)?),
                "delay" => {
                    let millis = rest.parse().map_err(|_| format!("`{line}`: milliseconds are expected"))?;
                    script.delay = Duration::from_millis(millis);
                }
                "fail" => script.fail = Some(rest.to_owned()),
                "panic" => script.panic = true,
                "gate" => script.gate = true,
                _ => return Err(format!("`{line}` is no line of a scripted model")),
            }
        }
        Ok(script)
    }
}

fn argument(text: &str) -> Result<Argument, String> {
    let mut words = text.split_whitespace();
    let (Some(name), Some(kind)) = (words.next(), words.next()) else {
        return Err(format!("`argument {text}`: a name and a kind are expected"));
    };
    let kind = match kind {
        "tensor" => ArgumentKind::Tensor,
        "tensors" => ArgumentKind::Tensors,
        "dict" => ArgumentKind::Dict,
        "strings" => ArgumentKind::Strings,
        "int" => ArgumentKind::Int,
        "float" => ArgumentKind::Float,
        "bool" => ArgumentKind::Bool,
        "str" => ArgumentKind::Str,
        other => ArgumentKind::Other(other.to_owned()),
    };
    Ok(Argument { name: name.to_owned(), kind, optional: words.next() == Some("optional"), keys: Vec::new() })
}

struct OpenScript {
    script: Arc<Script>,
    stage: Arc<Stage>,
}

impl Opened for OpenScript {
    fn schema(&self) -> &Schema {
        &self.script.schema
    }

    fn load(&self, device: Device) -> Result<Arc<dyn Module>, LoadError> {
        let (script, stage) = (Arc::clone(&self.script), Arc::clone(&self.stage));
        Ok(Arc::new(FakeModule { script, stage, device }))
    }
}

#[derive(Clone)]
struct FakeModule {
    script: Arc<Script>,
    stage: Arc<Stage>,
    device: Device,
}

impl Module for FakeModule {
    fn runner(&self) -> Result<Box<dyn Runner>, LoadError> {
        Ok(Box::new(self.clone()))
    }
}

impl Runner for FakeModule {
    fn run(&mut self, calls: Vec<Call>, done: Done) {
        let running = self.stage.enter(self.device);
        if self.script.gate {
            self.stage.wait_until(|seen| seen.gate_open);
        }
        std::thread::sleep(self.script.delay);
        assert!(!self.script.panic, "the script says panic");
        drop(running);
        done.complete(calls.into_iter().map(|call| match &self.script.fail {
            Some(message) => Err(RunError::Model(message.clone())),
            None => Ok(Output::Tuple(call.arguments.into_iter().flat_map(echo).collect())),
        }));
    }
}

/// The tensors of an argument, without names.
fn echo(argument: Arg) -> Vec<(Option<String>, Output)> {
    let outputs = match argument {
        Arg::Tensor(tensor) => vec![Output::Tensor(tensor)],
        Arg::Tensors(tensors) => tensors.into_iter().map(Output::Tensor).collect(),
        Arg::Dict(entries) => entries.into_iter().map(|(_, tensor)| Output::Tensor(tensor)).collect(),
        Arg::Default | Arg::Strings(_) | Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) | Arg::Str(_) => {
            Vec::new()
        }
    };
    outputs.into_iter().map(|output| (None, output)).collect()
}
