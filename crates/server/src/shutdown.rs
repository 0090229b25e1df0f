//! The end: a signal, a drain with a bound, and a second signal that does not wait.

use std::time::Duration;

use sconce_engine::table::Table;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};
use tracing::{info, warn};

/// What stops a group of processes may tell each of them twice at once: that is one signal.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// Signals that stop the server.
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Another signal.
    async fn again(&mut self) -> &'static str {
        let same = async {
            loop {
                self.next().await;
            }
        };
        let _ = tokio::time::timeout(SAME_SIGNAL, same).await;
        self.next().await
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits for one; then the server is not ready for a while, takes nothing new, and ends when what is in flight
    /// is answered, or when its time is over. Another signal stops it at once.
    pub(crate) async fn then_drain(
        mut self,
        table: &Table,
        stop: &watch::Sender<bool>,
        serving: JoinHandle<usize>,
        (delay, bound): (Duration, Duration),
    ) -> anyhow::Result<()> {
        let name = self.next().await;
        table.change(|table| table.draining = true);
        info!("{name}: draining");
        let drain = async {
            tokio::time::sleep(delay).await;
            table.change(|table| table.leaving = true);
            stop.send_replace(true);
            serving.await
        };
        tokio::select! {
            cut = drain => match cut? {
                0 => info!("drained"),
                cut => warn!("{cut} connections were still busy after {bound:?} and have been cut"),
            },
            name = self.again() => warn!("{name} again: stopping at once"),
        }
        Ok(())
    }
}
