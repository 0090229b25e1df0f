//! How the repositories are followed: what the options say about it, and what of that makes no sense.

use std::time::Duration;

use anyhow::ensure;
use sconce_engine::reconcile::{Mode, Settings};

use crate::{
    control::is_model_name,
    options::{ControlMode, Options, Period},
};

const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Looking more often would be all that a core does.
const LEAST_POLL_INTERVAL: Duration = Duration::from_millis(100);
const MISSING_REPOSITORY_TIMEOUT: Duration = Duration::from_secs(60);
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Loading is bound by disk and memory: more at once would only take more from those who serve.
const LOAD_THREADS: usize = 4;
const MAX_LOAD_THREADS: u16 = 64;
/// In `--load-model`: every model.
const ALL: &str = "*";

/// What can be known to be wrong before anything is looked at.
pub(crate) fn check(options: &Options) -> anyhow::Result<()> {
    let mode = options.model_control_mode.unwrap_or_default();
    if let Some(name) = options.load_model.first() {
        ensure!(
            mode == ControlMode::Explicit,
            "--load-model {name}: only --model-control-mode explicit takes it; in the other modes every model is loaded"
        );
    }
    for name in options.load_model.iter().filter(|name| *name != ALL) {
        ensure!(
            is_model_name(name),
            "--load-model '{}': the name of a directory in the repository is expected, or * for all",
            sconce_engine::text::quote(name)
        );
    }
    if let Some(Period(interval)) = options.repository_poll_interval {
        ensure!(
            interval >= LEAST_POLL_INTERVAL,
            "--repository-poll-interval {interval:?}: at least {LEAST_POLL_INTERVAL:?} is expected"
        );
        ensure!(
            mode != ControlMode::None,
            "--repository-poll-interval {interval:?}: with --model-control-mode none changes are not followed; leave one of them out"
        );
    }
    if let Some(count) = options.model_load_thread_count {
        ensure!(
            (1..=MAX_LOAD_THREADS).contains(&count),
            "--model-load-thread-count {count}: between 1 and {MAX_LOAD_THREADS} is expected"
        );
    }
    Ok(())
}

/// The settings of the reconciler, on a machine with so many cores.
pub(crate) fn settings(options: &Options, cores: usize) -> Settings {
    let period = |said: Option<Period>, default| said.map_or(default, |Period(time)| time);
    Settings {
        roots: options.model_repository.clone(),
        confine_symlinks: options.confine_symlinks.unwrap_or_default(),
        mode: mode(options),
        poll_interval: period(options.repository_poll_interval, POLL_INTERVAL),
        load_threads: options
            .model_load_thread_count
            .map_or_else(|| (cores / 2).clamp(1, LOAD_THREADS), usize::from),
        missing_repository_timeout: period(options.missing_repository_timeout, MISSING_REPOSITORY_TIMEOUT),
        unload_timeout: period(options.unload_timeout, UNLOAD_TIMEOUT),
    }
}

fn mode(options: &Options) -> Mode {
    match options.model_control_mode.unwrap_or_default() {
        ControlMode::Watch => Mode::Watch,
        ControlMode::Poll => Mode::Poll,
        ControlMode::None => Mode::Once,
        ControlMode::Explicit => {
            let (all, models): (Vec<String>, Vec<String>) =
                options.load_model.iter().cloned().partition(|name| name == ALL);
            Mode::Explicit { models, all: !all.is_empty() }
        }
    }
}
