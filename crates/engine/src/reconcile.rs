//! What is on disk becomes what is served: scan, compare with the table, load, publish.
//!
//! Loading runs on the thread that calls [`Reconciler::run`], never on a worker and never on a thread
//! that takes requests. What cannot be loaded is published too, as unavailable with its reason: a
//! broken model leaves the others serving.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use sconce_repository::{InstanceKind, ModelConfig, ModelOnDisk, Version, VersionPolicy, scan};
use tracing::{info, warn};

use crate::{
    backend::{Backend, Device, LoadError},
    binding::Binding,
    model::{LiveVersion, threads},
    pool::{Executable, Pool},
    reaper::Reaper,
    scheduler::Placement,
    table::{Route, State, Table},
};

/// Makes the table follow the repositories.
pub struct Reconciler {
    roots: Vec<PathBuf>,
    backend: Arc<dyn Backend>,
    pool: Pool,
    table: Arc<Table>,
    reaper: Reaper,
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("roots", &self.roots).finish_non_exhaustive()
    }
}

impl Reconciler {
    /// For these repositories.
    ///
    /// # Panics
    /// When the system gives no thread.
    pub fn new(roots: Vec<PathBuf>, backend: Arc<dyn Backend>, pool: Pool, table: Arc<Table>) -> Self {
        let reaper = Reaper::start(Arc::clone(&backend)).expect("a thread can be started");
        Self { roots, backend, pool, table, reaper }
    }

    /// One pass: every model that is wanted is loaded or has a reason why not; then the table is
    /// settled.
    pub fn run(&self) {
        let snapshot = scan(&self.roots);
        for problem in &snapshot.problems {
            warn!("{problem}");
        }
        self.table.change(|table| {
            table.routes = snapshot.models.values().map(announce).collect();
        });
        for model in snapshot.models.values() {
            match &model.config {
                Ok(config) => self.load_model(model, &Arc::new(config.clone())),
                Err(error) => warn!(model = %model.name, "not served: {error}"),
            }
        }
        self.table.change(|table| table.settled = true);
    }

    fn load_model(&self, model: &ModelOnDisk, config: &Arc<ModelConfig>) {
        for note in &config.notes {
            info!(model = %model.name, "{note}");
        }
        let (candidates, mut wanted) = candidates(model, &config.version_policy);
        for version in candidates {
            if wanted == 0 {
                break;
            }
            self.publish(model, version, State::Loading);
            let started = Instant::now();
            let file = model.versions[&version].model_file();
            let state = match self.load(version, file, config) {
                Ok(live) => {
                    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    wanted -= 1;
                    info!(model = %model.name, %version, took_ms, "ready");
                    State::Ready(Arc::new(live))
                }
                Err(LoadError { reason, .. }) => {
                    warn!(model = %model.name, %version, "not served: {reason}");
                    State::Unavailable(reason)
                }
            };
            self.publish(model, version, state);
        }
    }

    fn publish(&self, model: &ModelOnDisk, version: Version, state: State) {
        self.table.change(|table| {
            table.routes.entry(model.name.as_str().into()).or_default().versions.insert(version, state);
        });
    }

    /// Loads a version. A backend that panics has failed on this one, and is asked for the next.
    fn load(
        &self,
        version: Version,
        file: PathBuf,
        config: &Arc<ModelConfig>,
    ) -> Result<LiveVersion, LoadError> {
        catch_unwind(AssertUnwindSafe(|| self.open(version, file, config))).unwrap_or_else(|_| {
            Err(LoadError::new(
                "the backend panicked while loading it; this is a bug, see the log".to_owned(),
            ))
        })
    }

    /// Opens a version, binds its names, puts its weights on every device where it may run.
    fn open(
        &self,
        version: Version,
        file: PathBuf,
        config: &Arc<ModelConfig>,
    ) -> Result<LiveVersion, LoadError> {
        let opened = self.backend.open(file, config)?;
        let binding = Binding::new(config, opened.schema())?;
        let modules = place(config, &self.pool)?
            .into_iter()
            .map(|placement| {
                let module = opened.load(self.pool.devices()[placement.device])?;
                Ok((placement, module))
            })
            .collect::<Result<Vec<_>, LoadError>>()?;
        let name = Arc::clone(&binding.model);
        let executable = Executable::new(name, version, threads(config), modules, &self.reaper)?;
        let schema = Arc::new(opened.schema().clone());
        Ok(LiveVersion::new(Arc::clone(config), schema, binding, executable, &self.pool))
    }
}

/// The versions to try, in order, and how many of them to serve. `latest: n` is the n highest that
/// pass: a bad one holds back no good one.
fn candidates(model: &ModelOnDisk, policy: &VersionPolicy) -> (Vec<Version>, usize) {
    match policy {
        VersionPolicy::Latest(count) => {
            (model.versions.keys().rev().copied().collect(), count.get() as usize)
        }
        VersionPolicy::All | VersionPolicy::Specific(_) => (model.wanted.clone(), model.wanted.len()),
    }
}

/// The route of a model before any version of it has been loaded.
fn announce(model: &ModelOnDisk) -> (Arc<str>, Route) {
    let mut versions: BTreeMap<Version, State> =
        model.wanted.iter().map(|&version| (version, State::Loading)).collect();
    for &version in &model.missing {
        let reason = format!(
            "version {version} is chosen by the configuration, but {} has no directory '{version}'",
            model.dir.display()
        );
        warn!(model = %model.name, %version, "not served: {reason}");
        versions.insert(version, State::Unavailable(reason));
    }
    let problem = match &model.config {
        Err(error) => Some(error.to_string()),
        Ok(_) if versions.is_empty() => {
            Some(format!("{} has no version directory (1, 2, ...) to serve", model.dir.display()))
        }
        Ok(_) => None,
    };
    (model.name.as_str().into(), Route { versions, problem })
}

/// On which devices a model runs, and how many of its runs at once on each. Without a word from the
/// config: on every GPU, on the CPU where there is none, as many at once as the device has workers.
fn place(config: &ModelConfig, pool: &Pool) -> Result<Vec<Placement>, LoadError> {
    let devices = pool.devices();
    let gpus = || (0..devices.len()).filter(|&index| devices[index] != Device::Cpu).collect::<Vec<_>>();
    let cpu = || (0..devices.len()).filter(|&index| devices[index] == Device::Cpu).collect::<Vec<_>>();
    let automatic = || if gpus().is_empty() { cpu() } else { gpus() };
    if config.instances.is_empty() {
        let all = |device| Placement { device, limit: pool.workers(device) };
        return Ok(automatic().into_iter().map(all).collect());
    }
    let mut limits: BTreeMap<usize, usize> = BTreeMap::new();
    for group in &config.instances {
        let chosen = match group.kind {
            InstanceKind::Cpu => cpu(),
            InstanceKind::Auto if group.gpus.is_empty() => automatic(),
            InstanceKind::Gpu if group.gpus.is_empty() => gpus(),
            InstanceKind::Auto | InstanceKind::Gpu => {
                let wanted = |gpu: &u32| {
                    let index = devices.iter().position(|&device| device == Device::Gpu(*gpu));
                    index.ok_or_else(|| no_gpu(&format!("GPU {gpu}"), devices))
                };
                group.gpus.iter().map(wanted).collect::<Result<_, _>>()?
            }
        };
        if chosen.is_empty() {
            return Err(no_gpu("a GPU", devices));
        }
        for device in chosen {
            *limits.entry(device).or_default() += NonZeroU32::get(group.count) as usize;
        }
    }
    Ok(limits.into_iter().map(|(device, limit)| Placement { device, limit }).collect())
}

fn no_gpu(wanted: &str, devices: &[Device]) -> LoadError {
    let there: Vec<String> = devices.iter().map(Device::to_string).collect();
    LoadError::new(format!(
        "its instances ask for {wanted}, but this server found only {}; change `instances` or look at `sconce version`",
        there.join(", ")
    ))
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
