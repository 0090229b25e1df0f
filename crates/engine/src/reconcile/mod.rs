//! What is on disk becomes what is served, and goes on doing so.
//!
//! Level-triggered: whatever wakes it, it looks at the whole tree and compares that with what is
//! served; a missed event is repaired by the next look. In reading order:
//!
//! - [`order`]: what an operator may ask for beside the directory.
//! - [`overriding`]: what comes with an order instead of what the directory says.
//! - [`plan`]: which versions are to serve, and what has to be done for each of them.
//! - [`model`]: the state of one model, and how a finished load changes it.
//! - [`carry`]: how it carries out orders.
//! - [`show`]: what is published of it.
//! - [`machine`]: all of them. Pure: looks, outcomes, orders and the time go in, actions come out.
//! - [`load`]: one load, on a thread of its own: verify, load, warm.
//! - [`driver`]: the thread that looks, runs the machine and does what it says; the only writer of the
//!   table.

mod carry;
mod driver;
mod load;
mod machine;
mod model;
mod order;
mod overriding;
mod place;
mod plan;
mod show;

use std::{path::PathBuf, time::Duration};

pub use driver::{Parts, Reconciler};
pub use order::{Order, Override, Refused};
pub use overriding::Overrides;

/// When a model is loaded and unloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What is in the repositories is served, and changes are followed: as the system tells of them, and
    /// by looking every [`Settings::poll_interval`] where it cannot.
    Watch,
    /// The same, only by looking every [`Settings::poll_interval`].
    Poll,
    /// Nothing is served but what is named here and what an operator asks for.
    Explicit {
        /// These, at start.
        models: Vec<String>,
        /// All, at start.
        all: bool,
    },
    /// Everything is loaded at start, and changes are not followed.
    Once,
}

impl Mode {
    /// Whether a change in a repository changes what is served.
    pub fn follows(&self) -> bool {
        matches!(self, Self::Watch | Self::Poll)
    }
}

/// How the directory is followed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The repositories.
    pub roots: Vec<PathBuf>,
    /// Whether links that lead out of their repository are refused.
    pub confine_symlinks: bool,
    /// When models are loaded and unloaded.
    pub mode: Mode,
    /// Between two looks where the system does not tell of changes.
    pub poll_interval: Duration,
    /// How many loads at once.
    pub load_threads: usize,
    /// How long a repository may be away before its models are unloaded.
    pub missing_repository_timeout: Duration,
    /// How long a version that was taken out of service may go on answering what it has accepted.
    pub unload_timeout: Duration,
}
