//! Where lines go: into a bounded buffer, out of which one thread writes them.
//!
//! Nobody who has something to say waits for whoever reads it. A pipe that nobody empties fills the buffer,
//! and from then on lines are lost, counted, and told of as soon as somebody reads again.

use std::{
    fmt,
    io::{ErrorKind, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Bytes of lines of the access log that wait.
const ACCESS_LIMIT: usize = 4 << 20;
/// Bytes of all lines that wait: however many requests there are, there is room for what else has to be said.
const LIMIT: usize = 2 * ACCESS_LIMIT;
/// Whose buffer has grown beyond this gives its memory back.
const KEPT: usize = 256 << 10;
/// So long after it has written, the thread lets lines of requests come together: waking it for each of thousands a
/// second costs more than making them.
const GATHER: Duration = Duration::from_millis(10);
/// Not longer than until there are so many bytes of them.
const ENOUGH: usize = 64 << 10;
/// Before another try to write to what is not ready, where somebody has made it so that it does not block.
const NOT_READY: Duration = Duration::from_millis(10);

/// How much a line may take of the room that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of what happens in the server.
    Event,
    /// Of a request.
    Access,
}

/// Takes lines.
#[derive(Clone)]
pub(crate) struct Sink(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The thread waits for lines.
    more: Condvar,
    /// Whoever flushes waits until the thread has written.
    done: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Lines that wait, one after the other.
    text: Vec<u8>,
    /// How many lines have been taken in so far, and how many of those are not here any more.
    pushed: u64,
    written: u64,
    /// How many have been lost since that was last told.
    untold: u64,
    /// The thread is at work; otherwise it waits, and has to be woken.
    writing: bool,
    /// It lets lines come together, and is to be woken for what does not wait for others.
    gathering: bool,
    /// There is something that does not.
    urgent: bool,
}

/// Tells that so many lines were lost.
type Telling = Box<dyn Fn(u64) -> String + Send>;

impl Sink {
    /// Starts the thread.
    ///
    /// # Errors
    /// There can be no thread.
    pub(crate) fn start(to: impl Write + Send + 'static, lost: Telling) -> std::io::Result<Self> {
        let sink = Self::new();
        let shared = Arc::clone(&sink.0);
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_all(to, &*lost))?;
        Ok(sink)
    }

    fn new() -> Self {
        Self(Arc::new(Shared {
            // It looks for lines before it waits for the first time.
            state: Mutex::new(State { writing: true, ..State::default() }),
            more: Condvar::new(),
            done: Condvar::new(),
            lost: AtomicU64::new(0),
        }))
    }

    /// Takes a line, with its end, if there is room for it.
    pub(crate) fn push(&self, kind: Kind, line: &str) {
        let mut state = self.0.lock();
        let limit = if kind == Kind::Access { ACCESS_LIMIT } else { LIMIT };
        if state.text.len() + line.len() > limit {
            state.untold += 1;
            self.0.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.text.extend_from_slice(line.as_bytes());
        state.pushed += 1;
        state.urgent |= kind == Kind::Event || state.text.len() >= ENOUGH;
        self.0.wake(state);
    }

    /// How many lines have been lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written that are there now, but not for ever.
    pub(crate) fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut state = self.0.lock();
        let pushed = state.pushed;
        if state.written < pushed {
            state.urgent = true;
            self.0.wake(state);
            state = self.0.lock();
        }
        while state.written < pushed {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.0.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sink").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread, if it has to do something now.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        if !state.writing || (state.gathering && state.urgent) {
            (state.writing, state.gathering) = (true, false);
            drop(state);
            self.more.notify_one();
        }
    }

    fn write_all(&self, mut to: impl Write, lost: &dyn Fn(u64) -> String) {
        let mut text = Vec::new();
        let mut taken = 0;
        loop {
            self.gather(taken);
            let untold;
            (untold, taken) = self.next(&mut text);
            if untold > 0 {
                text.extend_from_slice(lost(untold).as_bytes());
            }
            let unwritten = write(&mut to, &text);
            let lines = unwritten.iter().filter(|byte| **byte == b'\n').count();
            if lines > 0 {
                // Not told of: there is nobody to be told.
                self.lost.fetch_add(lines as u64, Ordering::Relaxed);
            }
        }
    }

    /// Tells those who wait for it that so many lines have been written, and lets others come together.
    fn gather(&self, written: u64) {
        let end = Instant::now() + GATHER;
        let mut state = self.lock();
        (state.written, state.gathering) = (written, true);
        self.done.notify_all();
        while !state.urgent {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.gathering = false;
    }

    /// Waits for lines, and takes them all in place of those that are written. Returns how many have been
    /// lost behind them, and the number of the last.
    fn next(&self, text: &mut Vec<u8>) -> (u64, u64) {
        text.clear();
        text.shrink_to(KEPT);
        let mut state = self.lock();
        while state.text.is_empty() && state.untold == 0 {
            state.writing = false;
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.writing, state.urgent) = (true, false);
        std::mem::swap(&mut state.text, text);
        (std::mem::take(&mut state.untold), state.pushed)
    }
}

/// Writes, and returns what could not be written because nobody is there any more.
fn write<'a>(to: &mut impl Write, mut text: &'a [u8]) -> &'a [u8] {
    while !text.is_empty() {
        match to.write(text) {
            Ok(0) => return text,
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(NOT_READY),
            Err(_) => return text,
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Writes only what it is told to, and tells what that was.
    struct Pipe {
        opened: mpsc::Receiver<std::io::Result<usize>>,
        read: mpsc::Sender<String>,
    }

    impl Write for Pipe {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            // Without a reader it is as a pipe of a process that has ended.
            let gone = |_| std::io::Error::from(ErrorKind::BrokenPipe);
            let length = self.opened.recv().map_err(gone)??.min(text.len());
            self.read.send(String::from_utf8_lossy(&text[..length]).into_owned()).unwrap();
            Ok(length)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn piped() -> (Sink, mpsc::Sender<std::io::Result<usize>>, mpsc::Receiver<String>) {
        let (open, opened) = mpsc::channel();
        let (read, written) = mpsc::channel();
        let lost = Box::new(|count| format!("{count} lost\n"));
        (Sink::start(Pipe { opened, read }, lost).unwrap(), open, written)
    }

    #[test]
    fn lines_come_out_in_their_order() {
        let (sink, open, written) = piped();
        sink.push(Kind::Event, "one\n");
        sink.push(Kind::Access, "two\n");
        let mut text = String::new();
        while text.len() < 8 {
            open.send(Err(ErrorKind::WouldBlock.into())).unwrap();
            open.send(Err(ErrorKind::Interrupted.into())).unwrap();
            open.send(Ok(3)).unwrap();
            text += &written.recv().unwrap();
        }
        assert_eq!((text.as_str(), sink.lost()), ("one\ntwo\n", 0));
        sink.flush(Duration::from_secs(60));
    }

    #[test]
    fn lines_of_requests_come_together() {
        let (sink, open, written) = piped();
        let line = "x".repeat(1023) + "\n";
        let start = Instant::now();
        open.send(Ok(usize::MAX)).unwrap();
        open.send(Ok(usize::MAX)).unwrap();
        sink.push(Kind::Access, &line);
        // That one has been taken; from now on the thread gathers.
        assert_eq!(written.recv().unwrap(), line);
        for _ in 0..3 * ENOUGH / line.len() {
            open.send(Ok(usize::MAX)).unwrap();
            sink.push(Kind::Access, &line);
        }
        sink.push(Kind::Event, "the end\n");
        let mut parts = Vec::new();
        while !parts.last().is_some_and(|part: &String| part.ends_with("the end\n")) {
            parts.push(written.recv().unwrap());
        }
        // However slow this is: each time, it was enough, or long enough, or the event.
        let most = 1 + 3 + 1 + start.elapsed().div_duration_f64(GATHER) as usize;
        assert!(parts.len() <= most, "{} parts, not {most}", parts.len());
        sink.flush(Duration::from_secs(60));
    }

    #[test]
    fn who_does_not_read_loses_lines_and_is_told_how_many() {
        let (sink, open, written) = piped();
        let line = format!("{}\n", "x".repeat(1023));
        let fits = LIMIT / line.len();
        // The thread may have taken as many as wait, and then waits for its reader.
        for _ in 0..2 * fits {
            sink.push(Kind::Access, &line);
        }
        let lost = sink.lost();
        assert!(lost >= fits as u64, "{lost}");
        sink.push(Kind::Event, "there is room for this\n");
        assert_eq!(sink.lost(), lost);
        for _ in 0..2 * fits {
            sink.push(Kind::Event, &line);
        }
        assert!(sink.lost() > lost);
        let told = |text: &str| -> u64 {
            let counts = text.lines().filter_map(|line| line.strip_suffix(" lost")?.parse::<u64>().ok());
            counts.sum()
        };
        let mut text = String::new();
        while told(&text) < sink.lost() {
            open.send(Ok(usize::MAX)).unwrap();
            text += &written.recv().unwrap();
        }
        assert!(text.contains("\nthere is room for this\n"));
        let kept = text.lines().filter(|line| line.starts_with('x')).count();
        assert_eq!(kept as u64 + sink.lost(), 4 * fits as u64);
    }

    #[test]
    fn what_nobody_can_read_is_counted_and_holds_up_nobody() {
        let (sink, open, _written) = piped();
        drop(open);
        sink.push(Kind::Event, "one\n");
        sink.flush(Duration::from_secs(60));
        assert_eq!(sink.lost(), 1);
    }
}
