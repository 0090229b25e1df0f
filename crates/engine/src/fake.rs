//! A scripted backend: what a model does is written in its file. It runs nothing; scheduling, loading
//! and the wire are tested with it, and the server is built with it where there is no libtorch.
//!
//! A model file begins with the line `fake`, or with `fake ends`: then it is complete only when its last
//! line is `end`. Each further line is one of
//!
//! ```text
//! argument NAME tensor|tensors|dict|strings|int|float|bool|str [optional]
//! value NUMBER            every run answers with that one FP32
//! sum                     every run answers with the sum of its FP32 tensors, element by element, and
//!                         again with the same: an output and a state
//! generate                a model that generates, with FP32: `start(x)` answers with (x, x),
//!                         `step(prev, state)` with (prev + 1, state + prev)
//! until NUMBER            such answers have a BOOL between the two: of each row whether its first number,
//!                         x or prev + 1, has come to this
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
//! Without `value`, `sum` or `generate` a run answers with its tensor arguments, in order, as a tuple:
//! `OUTPUT__0`, `OUTPUT__1`, ... What `step` does is said by the same lines: it takes as long as `start`,
//! waits at the same gate and throws for the same numbers.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use sconce_repository::ModelConfig;

use crate::{
    backend::{Backend, Device, DeviceMemory, LoadError, Module, Opened, RunError, Runner, WorkerContext},
    reply::Done,
    schema::Schema,
    value::{Arg, Call, Output},
};

mod answer;
mod context;
mod kept;
mod script;
use answer::{holds, tensors};
use context::FakeContext;
use script::{Answer, ENDS, Script};

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
    /// Tensors that are on devices.
    kept: usize,
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
    /// Devices whose drivers do not tell how much memory there is.
    memory_hangs: BTreeSet<Device>,
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
        seen.rows.extend(tensors(&call.arguments).next().and_then(|tensor| tensor.shape.first()));
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

    /// How many tensors are on devices, because somebody keeps them.
    pub fn kept(&self) -> usize {
        self.stage.seen().kept
    }

    /// Waits until so many are.
    pub fn wait_kept(&self, count: usize) {
        self.stage.wait_until(|seen| seen.kept == count);
    }

    /// The first dimension of the first tensor of each run that has begun.
    pub fn rows(&self) -> Vec<i64> {
        self.stage.seen().rows.clone()
    }

    /// Has whoever asks for the memory of the device wait for `Fake::open_memory_gate`.
    pub fn hang_memory(&self, device: Device) {
        self.stage.seen().memory_hangs.insert(device);
    }

    /// Answers all who have asked for memory, and those to come.
    pub fn open_memory_gate(&self) {
        self.stage.seen().memory_hangs.clear();
        self.stage.changed.notify_all();
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

    fn memory(&self, device: Device) -> Option<DeviceMemory> {
        self.stage.wait_until(|seen| !seen.memory_hangs.contains(&device));
        matches!(device, Device::Gpu(_)).then_some(DeviceMemory { used: 1 << 20, total: 1 << 30 })
    }

    fn release_memory(&self, devices: &[Device]) {
        self.stage.seen().released.push(devices.to_vec());
        self.stage.changed.notify_all();
    }

    fn open(&self, file: PathBuf, config: &ModelConfig) -> Result<Box<dyn Opened>, LoadError> {
        let text = read(&file)?;
        check_end(&file, &text)?;
        let script =
            Script::parse(&text).map_err(|why| LoadError::new(format!("{}: {why}", file.display())))?;
        let why = match (&script.answer, config.generate.is_some()) {
            (Answer::Generate(_), false) => "it has no `forward`, and its configuration has no `generate`",
            (Answer::Echo | Answer::Value(_) | Answer::Sum, true) => {
                "it has neither `start` nor `step`, and its configuration has `generate`"
            }
            (Answer::Generate(_), true) | (Answer::Echo | Answer::Value(_) | Answer::Sum, false) => "",
        };
        if !why.is_empty() {
            return Err(LoadError::new(format!("{}: {why}", file.display())));
        }
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

struct OpenScript {
    script: Arc<Script>,
    stage: Arc<Stage>,
}

impl Opened for OpenScript {
    fn schema(&self) -> &Schema {
        &self.script.schema
    }

    fn step_schema(&self) -> Option<&Schema> {
        match &self.script.answer {
            Answer::Generate(step) => Some(step),
            Answer::Echo | Answer::Value(_) | Answer::Sum => None,
        }
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
        Ok(Arc::new(FakeModule { script, stage, device, step: false, _loaded: loaded }))
    }
}

#[derive(Clone)]
struct FakeModule {
    script: Arc<Script>,
    stage: Arc<Stage>,
    device: Device,
    /// It runs `step`, not `start`.
    step: bool,
    _loaded: Arc<Loaded>,
}

impl Module for FakeModule {
    fn runner(&self) -> Result<Box<dyn Runner>, LoadError> {
        Ok(Box::new(self.clone()))
    }

    fn step(&self) -> Option<Arc<dyn Module>> {
        match self.script.answer {
            Answer::Generate(_) => Some(Arc::new(Self { step: true, ..self.clone() })),
            Answer::Echo | Answer::Value(_) | Answer::Sum => None,
        }
    }
}

impl Runner for FakeModule {
    fn run(&mut self, call: Call, done: Done) {
        done.complete(self.run_one(call));
    }
}

impl FakeModule {
    fn run_one(&self, mut call: Call) -> Result<Output, RunError> {
        let running = self.stage.enter(self.device, &call);
        let keep = call.keep.take();
        let arguments = kept::on_host(call, self.device).map_err(RunError::Model)?;
        if self.script.gate || self.script.stall.is_some_and(|number| holds(&arguments, number)) {
            self.stage.wait_until(|seen| seen.gate_open);
        }
        thread::sleep(self.script.delay);
        assert!(!self.script.panic, "the script says panic");
        drop(running);
        let output = self.answer(arguments)?;
        match keep {
            Some(keep) => kept::keep(output, &keep, self.device, &self.stage).map_err(RunError::Output),
            None => Ok(output),
        }
    }

    fn answer(&self, arguments: Vec<Arg>) -> Result<Output, RunError> {
        let script = &*self.script;
        if script.lose.is_some_and(|number| holds(&arguments, number)) {
            return Err(RunError::Device("an illegal memory access".to_owned()));
        }
        if script.poison.is_some_and(|number| holds(&arguments, number)) {
            return Err(RunError::Model("it is poison".to_owned()));
        }
        if let Some(message) = &script.fail {
            return Err(RunError::Model(message.clone()));
        }
        match &script.answer {
            Answer::Echo => Ok(answer::echo(arguments)),
            Answer::Value(value) => Ok(answer::value(*value)),
            Answer::Sum => answer::sum(&arguments).map_err(RunError::Model),
            Answer::Generate(_) => {
                let run = if self.step { answer::step } else { answer::start };
                run(&arguments, script.until).map_err(RunError::Model)
            }
        }
    }
}

#[cfg(test)]
mod tests;
