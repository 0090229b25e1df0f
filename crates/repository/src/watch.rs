//! Being told by the operating system that something may have changed.
//!
//! inotify is used as it is, through rustix: a portable wrapper also asks to be told of each opening,
//! so that every look at a thousand models would wake the one who looks, and in the end overflow the
//! queue. And it remembers paths, where inotify follows inodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

use crate::escape::shown;

mod file_system;
pub use file_system::needs_polling;

/// What to watch: directories, and for what.
pub type Watch = BTreeMap<PathBuf, Interest>;

/// For what a directory is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interest {
    /// Only which names there are: a link that is followed, or the way to a directory that is watched
    /// itself. What is written there is nobody's business, such as the log of the server beside its
    /// repository.
    Names,
    /// All that can change what a look finds.
    All,
}

const NAMES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// Reading is not told, ours or anybody's.
const ALL: WatchFlags =
    NAMES.union(WatchFlags::ATTRIB).union(WatchFlags::CLOSE_WRITE).union(WatchFlags::MODIFY);

impl Interest {
    fn flags(self) -> WatchFlags {
        match self {
            // Added, because the directory may be watched for all under another path.
            Self::Names => NAMES.union(WatchFlags::MASK_ADD),
            Self::All => ALL,
        }
    }
}

/// How many bytes of events are read at once, some hundreds of events.
const BUFFER: usize = 16 << 10;

type Wake = dyn Fn() + Send + Sync;

/// Watches directories and calls back when something in them may have changed.
pub struct Watcher {
    wake: Arc<Wake>,
    backend: Result<Backend, String>,
    /// What was wrong when the directories were last set.
    limit: Option<String>,
}

/// An inotify instance and the thread that reads it.
struct Backend {
    inotify: Arc<OwnedFd>,
    /// Wakes the thread, to see that it is `stopping`.
    stop: Arc<OwnedFd>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
    /// The watch of each directory. A directory that was replaced by another gets another number, and
    /// no number is used twice.
    watched: BTreeMap<PathBuf, (i32, Interest)>,
}

#[derive(Default)]
struct State {
    stopping: AtomicBool,
    /// Set by the thread when it cannot go on.
    broken: AtomicBool,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = self.backend.as_ref().map_or(0, |backend| backend.watched.len());
        f.debug_struct("Watcher")
            .field("watched", &watched)
            .field("trouble", &self.trouble())
            .finish_non_exhaustive()
    }
}

impl Watcher {
    /// Watches nothing yet. `wake` is called, from a thread of its own, whenever something may have
    /// changed; it must be cheap.
    ///
    /// Never fails: see [`Watcher::trouble`].
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        let wake: Arc<Wake> = Arc::new(wake);
        Self { backend: Backend::start(&wake), wake, limit: None }
    }

    /// Watches exactly these directories; those that do not exist are left out.
    ///
    /// True when something was added that was not watched before, or not for as much, or that is another
    /// directory under the same path: look again, for it may have changed before the watch was there.
    pub fn set(&mut self, dirs: &Watch) -> bool {
        if self.backend.as_ref().map_or(true, Backend::is_broken) {
            self.backend = Backend::start(&self.wake);
        }
        match &mut self.backend {
            Ok(backend) => {
                let (added, limit) = backend.set(dirs);
                self.limit = limit;
                added
            }
            Err(_) => false,
        }
    }

    /// Why changes are not, or not all, told by the system, so that the caller must poll: one clause.
    /// `None` when all is well.
    pub fn trouble(&self) -> Option<String> {
        match &self.backend {
            Err(trouble) => Some(trouble.clone()),
            Ok(backend) if backend.is_broken() => Some("inotify has stopped to tell of changes".to_owned()),
            Ok(_) => self.limit.clone(),
        }
    }
}

impl Backend {
    fn start(wake: &Arc<Wake>) -> Result<Self, String> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(no_instance)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(no_instance)?;
        let (inotify, stop) = (Arc::new(inotify), Arc::new(stop));
        let state = Arc::<State>::default();
        let thread = {
            let (inotify, stop, state) = (Arc::clone(&inotify), Arc::clone(&stop), Arc::clone(&state));
            let wake = Arc::clone(wake);
            std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
                if read(&inotify, &stop, &state.stopping, &*wake).is_err() {
                    state.broken.store(true, Ordering::Release);
                    wake();
                }
            })
        };
        let thread = thread.map_err(|err| format!("no thread can be started to read inotify: {err}"))?;
        Ok(Self { inotify, stop, state, thread: Some(thread), watched: BTreeMap::new() })
    }

    fn is_broken(&self) -> bool {
        self.state.broken.load(Ordering::Acquire)
    }

    /// Whether anything was added, and what went wrong.
    fn set(&mut self, dirs: &Watch) -> (bool, Option<String>) {
        let mut watched = BTreeMap::new();
        let mut trouble = None;
        let mut added = false;
        for (dir, &interest) in dirs {
            // For a directory that is watched already this gives the same number again.
            match inotify::add_watch(&self.inotify, dir, interest.flags()) {
                Ok(watch) => {
                    let known = |&(known, before): &(i32, Interest)| known == watch && before >= interest;
                    added |= !self.watched.get(dir).is_some_and(known);
                    watched.insert(dir.clone(), (watch, interest));
                }
                Err(err) => trouble = trouble.or(no_watch(dir, err)),
            }
        }
        // Two paths may lead to one directory, which has one watch.
        let kept: BTreeSet<i32> = watched.values().map(|(watch, _)| *watch).collect();
        for (watch, _) in self.watched.values().filter(|(watch, _)| !kept.contains(watch)) {
            // An error says that the directory is gone, and its watch with it.
            _ = inotify::remove_watch(&self.inotify, *watch);
        }
        self.watched = watched;
        (added, trouble)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::Release);
        _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        let Some(thread) = self.thread.take() else { return };
        // Who drops it while being woken must not wait for himself.
        if thread.thread().id() != std::thread::current().id() {
            _ = thread.join();
        }
    }
}

/// Reads events until told to stop.
fn read(inotify: &OwnedFd, stop: &OwnedFd, stopping: &AtomicBool, wake: &Wake) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut events = inotify::Reader::new(inotify, &mut buffer);
    let mut changed = false;
    while !stopping.load(Ordering::Acquire) {
        match events.next() {
            Ok(event) => changed |= tells_a_change(event.events()),
            Err(Errno::AGAIN) => wait(inotify, stop)?,
            Err(Errno::INTR) => {}
            Err(err) => return Err(err),
        }
        // Once for all that was read at once.
        if changed && events.is_buffer_empty() {
            changed = false;
            wake();
        }
    }
    Ok(())
}

/// Everything but the note that a watch has ended: either we removed it, or what has ended it is told
/// as well. A queue that has overflown is told with no directory, and means that anything may have
/// changed.
fn tells_a_change(events: ReadFlags) -> bool {
    !events.difference(ReadFlags::IGNORED | ReadFlags::ISDIR).is_empty()
}

fn wait(inotify: &OwnedFd, stop: &OwnedFd) -> Result<(), Errno> {
    let mut ends = [PollFd::new(inotify, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    match poll(&mut ends, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(err) => Err(err),
    }
}

fn no_instance(err: Errno) -> String {
    match err {
        Errno::MFILE => "the limit of inotify instances, fs.inotify.max_user_instances, or that of open \
                         files is used up"
            .to_owned(),
        err => format!("inotify cannot be used: {err}"),
    }
}

/// Why a directory is not watched; `None` when that is no trouble.
fn no_watch(dir: &Path, err: Errno) -> Option<String> {
    match err {
        Errno::NOSPC => {
            Some("the limit of inotify watches, fs.inotify.max_user_watches, is used up".to_owned())
        }
        // It has gone, which its parent tells. Or it may not be read, so that nothing was found in it,
        // and when it may, its parent tells that too.
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::PERM => None,
        err => Some(format!("{} cannot be watched: {err}", shown(dir))),
    }
}

#[cfg(test)]
#[path = "watch/tests.rs"]
mod tests;
