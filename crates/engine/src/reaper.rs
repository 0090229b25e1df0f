//! The thread that frees what is not served any more, and gives its memory back to the system.
//!
//! Freeing weights takes milliseconds and giving memory back longer, so no thread that has a request
//! to answer does it: whoever drops the last handle on weights sends them here.
//!
//! The thread has the priority of all others on purpose. It holds the allocator's locks while it works,
//! and whoever waits for one of these would wait for a thread that gets the processor last.

use std::{
    collections::BTreeSet,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::error;

use crate::{
    backend::{Backend, Device},
    model::{Leaving, LiveVersion},
};

/// A handle on the thread. Cloning gives another; with the last one the thread ends.
#[derive(Clone)]
pub struct Reaper {
    sender: Sender<Message>,
    next: Arc<AtomicU64>,
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper").finish_non_exhaustive()
    }
}

enum Message {
    /// To be dropped; it held memory of the device with this index.
    Free(usize, Box<dyn Send>),
    Retire(Retired),
    /// A retired version has been dropped, and what it alone held has been sent before this.
    Gone(u64),
}

struct Retired {
    id: u64,
    leaving: Leaving,
    /// When what still waits is refused; `None` once it has been.
    until: Option<Instant>,
    freed: Box<dyn FnOnce() + Send>,
}

/// Tells the reaper, when it is dropped, that a retired version is gone.
#[derive(Debug)]
pub(crate) struct Farewell {
    id: u64,
    reaper: Reaper,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.reaper.send(Message::Gone(self.id));
    }
}

impl Reaper {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn start(backend: Arc<dyn Backend>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let devices = backend.devices();
        let work = Work {
            backend,
            devices,
            receiver,
            waiting: Vec::new(),
            gone: Vec::new(),
            touched: BTreeSet::new(),
        };
        thread::Builder::new().name("reaper".to_owned()).spawn(move || work.run())?;
        Ok(Self { sender, next: Arc::default() })
    }

    /// Lets a version go that the table has no more. What it has accepted is answered; what still waits
    /// for a worker after `bound` is refused. A run that has begun cannot be stopped, and is waited for
    /// however long it takes.
    ///
    /// `freed` is called, on the reaper's thread, when the version is gone, its weights are freed and
    /// their memory has been given back. Weights that a [reconfigured](LiveVersion::reconfigured) version
    /// shares live on, and so does the queue.
    pub fn retire(&self, live: Arc<LiveVersion>, bound: Duration, freed: Box<dyn FnOnce() + Send>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let leaving = live.retire(Farewell { id, reaper: self.clone() });
        let until = Instant::now().checked_add(bound);
        self.send(Message::Retire(Retired { id, leaving, until, freed }));
        drop(live);
    }

    /// Frees something that held memory of a device.
    pub(crate) fn free(&self, device: usize, what: impl Send + 'static) {
        self.send(Message::Free(device, Box::new(what)));
    }

    fn send(&self, message: Message) {
        // The thread outlives every sender.
        let _ = self.sender.send(message);
    }
}

/// What the thread knows.
struct Work {
    backend: Arc<dyn Backend>,
    devices: Vec<Device>,
    receiver: Receiver<Message>,
    /// Retired, and still held by somebody.
    waiting: Vec<Retired>,
    /// Gone, and not yet told.
    gone: Vec<Retired>,
    /// Devices on which something has been freed since memory was last given back.
    touched: BTreeSet<usize>,
}

impl Work {
    fn run(mut self) {
        loop {
            let next = self.waiting.iter().filter_map(|retired| retired.until).min();
            let message = match next {
                None => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => self.receiver.recv_timeout(until.saturating_duration_since(Instant::now())),
            };
            match message {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(message) = self.receiver.try_recv() {
                self.take(message);
            }
            self.refuse_overdue(Instant::now());
            self.finish();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Free(device, what) => {
                guarded("freeing a version", || drop(what));
                self.touched.insert(device);
            }
            Message::Retire(retired) => self.waiting.push(retired),
            Message::Gone(id) => {
                if let Some(at) = self.waiting.iter().position(|retired| retired.id == id) {
                    self.gone.push(self.waiting.swap_remove(at));
                }
            }
        }
    }

    fn refuse_overdue(&mut self, now: Instant) {
        for retired in &mut self.waiting {
            if retired.until.is_some_and(|until| until <= now) {
                retired.until = None;
                retired.leaving.close();
            }
        }
    }

    /// Gives memory back once for all that has been freed, then tells who waits for it.
    fn finish(&mut self) {
        if !self.touched.is_empty() {
            let touched = std::mem::take(&mut self.touched);
            let devices: Vec<Device> =
                touched.into_iter().filter_map(|index| self.devices.get(index).copied()).collect();
            guarded("giving memory back", || self.backend.release_memory(&devices));
        }
        for Retired { freed, .. } in self.gone.drain(..) {
            guarded("telling that a version is gone", freed);
        }
    }
}

/// The thread goes on whatever a backend does.
fn guarded(what: &str, work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        error!("{what} panicked; this is a bug");
    }
}

#[cfg(test)]
#[path = "reaper_tests.rs"]
mod tests;
