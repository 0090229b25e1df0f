//! A scripted backend: what a model does is written in its file. It runs nothing; scheduling, loading
//! and the wire are tested with it, and the server is built with it where there is no libtorch.
//!
//! A model file begins with the line `fake`, or with `fake ends`: then it is complete only when its last
//! line is `end`. Each further line is one of
//!
//! ```text
//! argument NAME tensor|tensors|dict|strings|int|float|bool|str [optional]
//! value NUMBER            every run answers with that one FP32
//! delay MILLISECONDS      every run takes that long
//! fail MESSAGE            every run throws
//! panic                   every run panics
//! poison NUMBER           a run throws that has this FP32 in a tensor
//! stall NUMBER            a run waits at the gate that has this FP32 in a tensor
//! lose NUMBER             with this FP32 in a tensor the device is lost
//! gate                    every run waits for `Fake::open_gate`
//! load delay MILLISECONDS loading takes that long
//! load fail MESSAGE       loading fails
//! load gate               loading waits for `Fake::open_load_gate`
//! ```
//!
//! Without `value` a run answers with its tensor arguments, in order, as a tuple: `OUTPUT__0`,
//! `OUTPUT__1`, ...

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use sconce_repository::ModelConfig;

use crate::{
    DataType,
    backend::{Backend, Device, LoadError, Module, Opened, RunError, Runner, WorkerContext},
    reply::Done,
    schema::{Argument, ArgumentKind, Return, Schema},
    value::{Arg, Call, Output, Tensor},
};

mod context;
use context::FakeContext;

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
    /// Thread counts that runs were given.
    threads: BTreeSet<usize>,
    /// Sizes of the buffers that workers of GPUs were lent, and how many of those are still held.
    lent: Vec<usize>,
    held: usize,
    /// The first dimension of each run's first tensor.
    rows: Vec<i64>,
    load_gate_open: bool,
    /// Loads that wait at their gate or have passed it.
    at_load_gate: usize,
    /// Modules that are in memory, and all that have been.
    loaded: usize,
    loaded_ever: usize,
    /// Names of the threads on which modules were freed.
    freed_on: BTreeSet<String>,
    released: Vec<Vec<Device>>,
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
    fn enter(&self, device: Device, call: &Call) -> Running<'_> {
        let mut seen = self.seen();
        seen.rows.extend(tensors(call).next().and_then(|tensor| tensor.shape.first()));
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

/// Counts a module as in memory until the last of its runners is gone too.
#[derive(Debug)]
struct Loaded(Arc<Stage>);

impl Loaded {
    fn new(stage: &Arc<Stage>) -> Arc<Self> {
        let mut seen = stage.seen();
        seen.loaded += 1;
        seen.loaded_ever += 1;
        Arc::new(Self(Arc::clone(stage)))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let mut seen = self.0.seen();
        seen.loaded -= 1;
        seen.freed_on.insert(thread::current().name().unwrap_or_default().to_owned());
        self.0.changed.notify_all();
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

    /// The thread counts that runs were given.
    pub fn threads(&self) -> BTreeSet<usize> {
        self.stage.seen().threads.clone()
    }

    /// The sizes in bytes of the buffers that workers of GPUs were lent.
    pub fn lent(&self) -> Vec<usize> {
        self.stage.seen().lent.clone()
    }

    /// Waits until all of them have been given back.
    pub fn wait_given_back(&self) {
        self.stage.wait_until(|seen| seen.held == 0);
    }

    /// The first dimension of the first tensor of each run that has begun.
    pub fn rows(&self) -> Vec<i64> {
        self.stage.seen().rows.clone()
    }

    /// Lets all loads through that wait at their gate, and those to come.
    pub fn open_load_gate(&self) {
        self.stage.seen().load_gate_open = true;
        self.stage.changed.notify_all();
    }

    /// Waits until so many loads have come to their gate.
    pub fn wait_at_load_gate(&self, count: usize) {
        self.stage.wait_until(|seen| seen.at_load_gate >= count);
    }

    /// How many modules are in memory, one for each device of a version.
    pub fn loaded(&self) -> usize {
        self.stage.seen().loaded
    }

    /// Waits until so many modules are in memory.
    pub fn wait_loaded(&self, count: usize) {
        self.stage.wait_until(|seen| seen.loaded == count);
    }

    /// How many modules have ever been in memory.
    pub fn loaded_ever(&self) -> usize {
        self.stage.seen().loaded_ever
    }

    /// Names of the threads on which modules have been freed.
    pub fn freed_on(&self) -> BTreeSet<String> {
        self.stage.seen().freed_on.clone()
    }

    /// The devices of each time that memory was given back.
    pub fn released(&self) -> Vec<Vec<Device>> {
        self.stage.seen().released.clone()
    }

    /// Waits until memory of the device has been given back.
    pub fn wait_released(&self, device: Device) {
        self.stage.wait_until(|seen| seen.released.iter().flatten().any(|released| *released == device));
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

    fn enter_worker(&self, device: Device) -> Box<dyn WorkerContext> {
        Box::new(FakeContext(device, Arc::clone(&self.stage)))
    }

    fn enter_loader(&self) {}

    fn precheck(&self, file: &Path) -> Result<(), LoadError> {
        check_end(file, &read(file)?)
    }

    fn verify(&self, file: &Path) -> Result<(), LoadError> {
        self.precheck(file)
    }

    fn release_memory(&self, devices: &[Device]) {
        self.stage.seen().released.push(devices.to_vec());
        self.stage.changed.notify_all();
    }

    fn open(&self, file: PathBuf, _config: &ModelConfig) -> Result<Box<dyn Opened>, LoadError> {
        let text = read(&file)?;
        check_end(&file, &text)?;
        let script =
            Script::parse(&text).map_err(|why| LoadError::new(format!("{}: {why}", file.display())))?;
        Ok(Box::new(OpenScript { script: Arc::new(script), stage: Arc::clone(&self.stage) }))
    }
}

fn read(file: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(file)
        .map_err(|error| LoadError::waiting(format!("{} cannot be read: {error}", file.display())))
}

fn check_end(file: &Path, text: &str) -> Result<(), LoadError> {
    if text.lines().next() == Some(ENDS) && text.lines().last() != Some("end") {
        let file = file.display();
        return Err(LoadError::waiting(format!("{file} is incomplete: its last line must be `end`")));
    }
    Ok(())
}

/// The first line of a script that has an `end`.
const ENDS: &str = "fake ends";

#[derive(Debug, Default)]
struct Script {
    schema: Schema,
    delay: Duration,
    fail: Option<String>,
    panic: bool,
    gate: bool,
    value: Option<f32>,
    load_delay: Duration,
    load_fail: Option<String>,
    load_gate: bool,
    poison: Option<f32>,
    stall: Option<f32>,
    lose: Option<f32>,
}

impl Script {
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if !lines.next().is_some_and(|first| first == "fake" || first == ENDS) {
            return Err("not a scripted model: its first line must be `fake`".to_owned());
        }
        let mut script = Self::default();
        script.schema.returns = Return::Unknown;
        for line in lines.filter(|line| !line.trim().is_empty()) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "argument" => script.schema.arguments.push(argument(rest)?),
                "delay" => script.delay = millis(line, rest)?,
                "value" => script.value = Some(number(line, rest)?),
                "load" => match rest.split_once(' ').unwrap_or((rest, "")) {
                    ("delay", time) => script.load_delay = millis(line, time)?,
                    ("fail", message) => script.load_fail = Some(message.to_owned()),
                    ("gate", "") => script.load_gate = true,
                    _ => return Err(format!("`{line}`: `load` and delay, fail or gate are expected")),
                },
                "end" => {}
                "fail" => script.fail = Some(rest.to_owned()),
                "panic" => script.panic = true,
                "poison" => script.poison = Some(number(line, rest)?),
                "stall" => script.stall = Some(number(line, rest)?),
                "lose" => script.lose = Some(number(line, rest)?),
                "gate" => script.gate = true,
                _ => return Err(format!("`{line}` is no line of a scripted model")),
            }
        }
        Ok(script)
    }
}

fn number(line: &str, text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| format!("`{line}`: a number is expected"))
}

fn millis(line: &str, text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_millis).map_err(|_| format!("`{line}`: milliseconds are expected"))
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
        if script.load_gate {
            stage.seen().at_load_gate += 1;
            stage.changed.notify_all();
            stage.wait_until(|seen| seen.load_gate_open);
        }
        thread::sleep(script.load_delay);
        if let Some(message) = &script.load_fail {
            return Err(LoadError::new(message.clone()));
        }
        let loaded = Loaded::new(&stage);
        Ok(Arc::new(FakeModule { script, stage, device, _loaded: loaded }))
    }
}

#[derive(Clone)]
struct FakeModule {
    script: Arc<Script>,
    stage: Arc<Stage>,
    device: Device,
    _loaded: Arc<Loaded>,
}

impl Module for FakeModule {
    fn runner(&self) -> Result<Box<dyn Runner>, LoadError> {
        Ok(Box::new(self.clone()))
    }
}

impl Runner for FakeModule {
    fn run(&mut self, call: Call, done: Done) {
        let running = self.stage.enter(self.device, &call);
        if self.script.gate || self.script.stall.is_some_and(|number| holds(&call, number)) {
            self.stage.wait_until(|seen| seen.gate_open);
        }
        thread::sleep(self.script.delay);
        assert!(!self.script.panic, "the script says panic");
        drop(running);
        if self.script.lose.is_some_and(|number| holds(&call, number)) {
            return done.complete(Err(RunError::Device("an illegal memory access".to_owned())));
        }
        if self.script.poison.is_some_and(|number| holds(&call, number)) {
            return done.complete(Err(RunError::Model("it is poison".to_owned())));
        }
        done.complete(match (&self.script.fail, self.script.value) {
            (Some(message), _) => Err(RunError::Model(message.clone())),
            (None, Some(value)) => Ok(Output::Tuple(vec![(None, one(value))])),
            (None, None) => Ok(Output::Tuple(call.arguments.into_iter().flat_map(echo).collect())),
        });
    }
}

/// The tensors that are arguments.
fn tensors(call: &Call) -> impl Iterator<Item = &Tensor> {
    call.arguments.iter().filter_map(|argument| match argument {
        Arg::Tensor(tensor) => Some(tensor),
        _ => None,
    })
}

fn holds(call: &Call, number: f32) -> bool {
    let is = |four: &[u8]| four == number.to_le_bytes();
    tensors(call).any(|tensor| tensor.bytes().chunks(4).any(is))
}

fn one(value: f32) -> Output {
    let data = value.to_le_bytes().to_vec();
    Output::Tensor(Tensor::host(DataType::Fp32, vec![1], data.into()))
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
