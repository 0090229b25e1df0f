//! What the file system tells of a file without reading it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

/// File systems keep time in ticks, and a second write within a tick leaves the stamp as it was. Where
/// there are fractions of seconds, no tick is longer than this,
const TICK: Duration = Duration::from_millis(100);
/// and where there are none, as on FAT and ext3 and in front of object stores, no longer than this.
const COARSE_TICK: Duration = Duration::from_secs(2);

/// What the file system tells of a file without reading it: equal stamps, equal bytes.
///
/// One exception is known from git: a file that was read within a moment of its last change may have
/// changed once more in the same tick of the file system's clock; see [`Stamp::is_settled_at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Nanoseconds since the epoch; a copy may bring the time of the original with it.
    modified: i128,
    /// Nanoseconds since the epoch; set by the file system at each change, also of a name or a mode.
    changed: i128,
}

impl Stamp {
    /// The stamp of the file that is found under this path, through symlinks.
    pub fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::from(&metadata))
    }

    /// The size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether whatever is written after `now` gives another stamp: both times are more than a tick in
    /// the past. A time in the future, of a server whose clock is ahead, tells nothing and is not settled.
    pub(crate) fn is_settled_at(&self, now: SystemTime) -> bool {
        self.modified.max(self.changed) + nanoseconds(self.tick()) <= since_epoch(now)
    }

    /// Whether the content may have been written less than `span` before `now`, or is dated in the
    /// future.
    pub(crate) fn is_newer_than(&self, span: Duration, now: SystemTime) -> bool {
        let span = if self.is_coarse() { span + COARSE_TICK } else { span };
        self.modified + nanoseconds(span) > since_epoch(now)
    }

    /// How long a second write may leave this stamp as it is.
    fn tick(&self) -> Duration {
        if self.is_coarse() { COARSE_TICK } else { TICK }
    }

    /// Whether the file system seems to keep whole seconds. A copy may bring a time of modification of
    /// whole seconds with it, but not the time of change.
    fn is_coarse(&self) -> bool {
        [self.modified, self.changed].iter().all(|time| time % 1_000_000_000 == 0)
    }
}

impl From<&fs::Metadata> for Stamp {
    fn from(metadata: &fs::Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// When a reading began, by both clocks: files are dated by the one, spans are measured by the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) wall: SystemTime,
    pub(crate) steady: Instant,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// Whether a reading that begins now sees all that was ever written under this stamp: the stamp is
    /// old, or, where clocks disagree, it has been seen for longer than a tick lasts.
    pub(crate) fn trusts(&self, stamp: &Stamp, first_seen: Option<Instant>) -> bool {
        stamp.is_settled_at(self.wall)
            || first_seen.is_some_and(|seen| self.steady.saturating_duration_since(seen) > stamp.tick())
    }
}

fn since_epoch(time: SystemTime) -> i128 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => nanoseconds(since),
        Err(before) => -nanoseconds(before.duration()),
    }
}

fn nanoseconds(span: Duration) -> i128 {
    i128::try_from(span.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn whatever_is_written_gives_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.pt");
        fs::write(&path, "abc").unwrap();
        let first = Stamp::of(&path).unwrap();
        assert_eq!(Stamp::of(&path).unwrap(), first);
        assert_eq!(first.size(), 3);

        fs::write(&path, "abcd").unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), first, "longer");
        fs::write(dir.path().join("copy"), "abc").unwrap();
        fs::rename(dir.path().join("copy"), &path).unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), first, "another file with the same bytes");
        assert!(Stamp::of(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn a_stamp_is_trusted_when_its_tick_is_over() {
        let file = tempfile::tempfile().unwrap();
        let stamp = |file: &File| Stamp::from(&file.metadata().unwrap());
        let now = SystemTime::now();
        file.set_modified(now - SECOND).unwrap();
        let old = stamp(&file);
        // The time of change is that of the line above, whatever the time of modification says.
        assert!(!old.is_settled_at(now - SECOND));
        assert!(old.is_settled_at(now + SECOND));
        assert!(!old.is_newer_than(SECOND / 2, now) && old.is_newer_than(2 * SECOND, now));

        file.set_modified(now + 60 * SECOND).unwrap();
        let future = stamp(&file);
        assert!(!future.is_settled_at(now + SECOND));
        assert!(future.is_newer_than(Duration::ZERO, now));
        let moment = Moment { wall: now + SECOND, steady: Instant::now() + SECOND };
        assert!(!moment.trusts(&future, None));
        assert!(!moment.trusts(&future, Some(moment.steady)));
        assert!(moment.trusts(&future, Some(moment.steady - SECOND)), "seen for longer than a tick");
    }

    #[test]
    fn where_time_is_kept_in_seconds_a_tick_is_long() {
        let now = SystemTime::UNIX_EPOCH + 1_000_000 * SECOND;
        let fine = Stamp {
            device: 1,
            inode: 1,
            size: 1,
            modified: nanoseconds(1_000_000 * SECOND),
            changed: nanoseconds(1_000_000 * SECOND) + 1,
        };
        let coarse = Stamp { changed: fine.modified, ..fine };
        assert!(fine.is_settled_at(now + SECOND));
        assert!(!coarse.is_settled_at(now + SECOND) && coarse.is_settled_at(now + 2 * SECOND));
        assert!(!fine.is_newer_than(SECOND / 4, now + SECOND));
        assert!(coarse.is_newer_than(SECOND / 4, now + SECOND));
        let moment = Moment { wall: now, steady: Instant::now() + 3 * SECOND };
        let seen = |ago: Duration| Some(moment.steady - ago);
        assert!(moment.trusts(&fine, seen(SECOND)) && !moment.trusts(&coarse, seen(SECOND)));
        assert!(moment.trusts(&coarse, seen(3 * SECOND)));
    }
}
