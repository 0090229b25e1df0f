//! Threads that give way to requests.

use tracing::debug;

/// The least that the scheduler of the system knows.
const NICEST: i32 = 19;

/// Lets this thread, and what it starts, run only where nobody else wants to. It cannot be taken back
/// without privileges, so it is for threads that end with their work.
pub(crate) fn lower_priority() {
    // On Linux a thread is addressed as a process would be.
    if let Err(why) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICEST) {
        debug!("a background thread keeps its priority: {why}");
    }
}
