//! Logs: text for people, JSON for machines, on standard error.
//!
//! In reading order: `line` (what a line looks like), `sink` (where it goes), `levels` (which are written),
//! `settings` (what is changed while the server runs), `seldom` (what goes on for long and is said once). Everything
//! that is written passes `line`, so that no text of a client can end a line or begin another.

mod levels;
mod line;
mod seldom;
mod settings;
mod sink;

use std::{
    fmt,
    io::IsTerminal,
    panic::PanicHookInfo,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Deserialize;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    reload,
};

use levels::Levels;
use line::Style;
use settings::{Format, Settings};
use sink::Sink;

pub(crate) use line::{Line, Value};
pub(crate) use seldom::Seldom;
pub(crate) use sink::Kind;

/// At the end, how long what was written may take to be read.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The log of the process.
#[derive(Clone, Debug)]
pub(crate) struct Logs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    writer: Writer,
    levels: reload::Handle<Levels, Registry>,
    settings: Mutex<Settings>,
    started_as: LogFormat,
}

/// Makes lines, in the format of the moment.
#[derive(Clone, Debug)]
struct Writer {
    sink: Sink,
    json: Arc<AtomicBool>,
    colours: bool,
}

impl Logs {
    /// Starts logging, for the whole process.
    ///
    /// # Errors
    /// The level is none, or there can be no thread.
    pub(crate) fn start(format: LogFormat, level: &str) -> anyhow::Result<Self> {
        let levels = Levels::parse(level).with_context(|| {
            format!(
                "--log-level {level:?} is not valid: error, warn, info, debug, trace, or a filter such as \
                 info,sconce_engine=debug is expected"
            )
        })?;
        let settings = Settings { switches: levels.switches(), format: Format::Default };
        let json = Arc::new(AtomicBool::new(format == LogFormat::Json));
        let colours = std::io::stderr().is_terminal();
        let style = Arc::clone(&json);
        let sink = Sink::start(
            std::io::stderr(),
            Box::new(move |lost| {
                let mut line = Line::new(style_of(&style, colours));
                line.message(format_args!("lines of the log are lost, because nobody took them in time"));
                line.field("lines", Value::Unsigned(lost));
                line.finish(SystemTime::now(), Level::WARN, module_path!())
            }),
        )
        .context("the thread that writes the log could not be started")?;
        let writer = Writer { sink, json, colours };
        let (filter, handle) = reload::Layer::new(levels);
        let subscriber = Registry::default().with(Events(writer.clone()).with_filter(filter));
        tracing::subscriber::set_global_default(subscriber).context("the log has been started before")?;
        let told = writer.clone();
        std::panic::set_hook(Box::new(move |panic| panicked(&told, panic)));
        let settings = Mutex::new(settings);
        Ok(Self(Arc::new(Inner { writer, levels: handle, settings, started_as: format })))
    }

    /// Writes a line whatever the levels are.
    pub(crate) fn write(&self, kind: Kind, level: Level, target: &str, put: impl FnOnce(&mut Line)) {
        self.0.writer.write(kind, level, target, put);
    }

    /// How many lines have been lost because nobody read them in time.
    pub(crate) fn lost(&self) -> u64 {
        self.0.writer.sink.lost()
    }

    /// Waits until everything has been written, if somebody reads it.
    pub(crate) fn flush(&self) {
        self.0.writer.sink.flush(LAST_LINES);
    }

    /// Changes the settings, and returns what holds then.
    fn change(&self, change: impl FnOnce(Settings) -> Settings) -> Settings {
        let Inner { writer, levels, settings, started_as } = &*self.0;
        let mut settings = settings.lock().unwrap_or_else(PoisonError::into_inner);
        let new = change(*settings);
        if new == *settings {
            return new;
        }
        // Told even where nothing else is from now on.
        self.write(Kind::Event, Level::INFO, module_path!(), |line| {
            line.message(format_args!("the log is changed by request: {new}"));
        });
        if new.switches != settings.switches {
            // Fails only where the subscriber is gone, with which nothing would be written anyway.
            let _ = levels.reload(Levels::Switches(new.switches));
        }
        let json = match new.format {
            Format::Default => *started_as == LogFormat::Json,
            Format::Iso8601 | Format::Text => false,
            Format::Json => true,
        };
        writer.json.store(json, Ordering::Relaxed);
        *settings = new;
        new
    }
}

impl Writer {
    fn line(&self) -> Line {
        Line::new(style_of(&self.json, self.colours))
    }

    fn write(&self, kind: Kind, level: Level, target: &str, put: impl FnOnce(&mut Line)) {
        let mut line = self.line();
        put(&mut line);
        self.sink.push(kind, &line.finish(SystemTime::now(), level, target));
    }

    /// Writes a line whatever the levels are, and waits until it is out: there may be nothing after it.
    fn last_words(&self, patience: Duration, put: impl FnOnce(&mut Line)) {
        self.write(Kind::Event, Level::ERROR, module_path!(), put);
        self.sink.flush(patience);
    }
}

fn style_of(json: &AtomicBool, colours: bool) -> Style {
    if json.load(Ordering::Relaxed) { Style::Json } else { Style::Text { colours } }
}

/// Makes a line of each event.
struct Events(Writer);

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut line = self.0.line();
        event.record(&mut Fields(&mut line));
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        self.0.sink.push(Kind::Event, &line.finish(SystemTime::now(), level, target));
    }
}

/// Puts the fields of an event into a line.
struct Fields<'a>(&'a mut Line);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value<'_>) {
        self.0.field(field.name(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.message(format_args!("{value:?}"));
        } else {
            self.put(field, Value::Shown(format_args!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0.message(format_args!("{value}"));
        } else {
            self.put(field, Value::Text(value));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Unsigned(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Signed(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bool(value));
    }
}

/// A panic is one line as any event, but it is a bug: no level keeps it back, and if its thread is the last one, or the
/// process goes on no further, it has been written before.
fn panicked(writer: &Writer, panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| Some(payload.downcast_ref::<String>()?));
    let text = text.unwrap_or("without a message");
    let backtrace = std::backtrace::Backtrace::capture();
    let has_backtrace = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
    // With the main thread the process goes; others have somebody else's answers to give.
    let is_main = std::thread::current().name() == Some("main");
    writer.last_words(if is_main { LAST_LINES } else { LAST_LINES / 10 }, |line| {
        line.message(format_args!("a thread panicked: {text}"));
        if let Some(place) = panic.location() {
            line.field("place", Value::Shown(format_args!("{place}")));
        }
        if let Some(name) = std::thread::current().name() {
            line.field("thread", Value::Text(name));
        }
        if has_backtrace {
            line.field("backtrace", Value::Shown(format_args!("{backtrace}")));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Others come first before it writes.
    struct Slow(Arc<Mutex<String>>);

    impl Write for Slow {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            (0..10).for_each(|_| std::thread::yield_now());
            self.0.lock().unwrap().push_str(std::str::from_utf8(text).unwrap());
            Ok(text.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn last_words_are_out_before_anything_else_happens() {
        let written = Arc::new(Mutex::new(String::new()));
        let sink =
            Sink::start(Slow(Arc::clone(&written)), Box::new(|lost| format!("{lost} lost\n"))).unwrap();
        let writer = Writer { sink, json: Arc::default(), colours: false };
        writer.last_words(Duration::from_secs(60), |line| line.message(format_args!("the end")));
        assert!(written.lock().unwrap().ends_with(" ERROR the end\n"));
    }
}
