//! Which lines are written: by `--log-level` at first, and by what LogSettings says from then on.

use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::{
    EnvFilter,
    layer::{Context, Filter},
};

/// What our own crates are called by the lines that they write.
const OURS: &str = "sconce_";

/// Which levels are written, in Triton's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Switches {
    pub(crate) info: bool,
    pub(crate) warning: bool,
    pub(crate) error: bool,
    /// From 1 `debug` of our own crates, from 2 `trace` too. What libraries say below `info` is noise to
    /// anyone else.
    pub(crate) verbose: u32,
}

/// Which lines are written.
#[derive(Debug)]
pub(crate) enum Levels {
    Switches(Switches),
    /// A filter by target, which holds until somebody changes a level.
    Targets(Box<EnvFilter>),
}

impl Levels {
    /// What `--log-level` says: a level or a filter.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        if let Some(switches) = Switches::of_word(text) {
            return Ok(Self::Switches(switches));
        }
        // A word alone would be a target, and turn everything else off.
        for word in text.split(',') {
            let is_level = Switches::of_word(word).is_some();
            anyhow::ensure!(word.contains('=') || is_level, "{word:?} is neither a level nor TARGET=LEVEL");
        }
        Ok(Self::Targets(Box::new(EnvFilter::try_new(text)?)))
    }

    /// The levels that some lines are written of.
    pub(crate) fn switches(&self) -> Switches {
        match self {
            Self::Switches(switches) => *switches,
            Self::Targets(filter) => Switches::up_to(filter.max_level_hint().unwrap_or(LevelFilter::TRACE)),
        }
    }
}

impl Switches {
    fn of_word(word: &str) -> Option<Self> {
        let level = match word.to_ascii_lowercase().as_str() {
            "off" => LevelFilter::OFF,
            "error" => LevelFilter::ERROR,
            "warn" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            _ => return None,
        };
        Some(Self::up_to(level))
    }

    fn up_to(level: LevelFilter) -> Self {
        Self {
            error: level >= LevelFilter::ERROR,
            warning: level >= LevelFilter::WARN,
            info: level >= LevelFilter::INFO,
            verbose: u32::from(level >= LevelFilter::DEBUG) + u32::from(level >= LevelFilter::TRACE),
        }
    }

    fn written(self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with(OURS);
        match *metadata.level() {
            Level::ERROR => self.error,
            Level::WARN => self.warning,
            Level::INFO => self.info,
            Level::DEBUG => self.verbose >= 1 && ours,
            Level::TRACE => self.verbose >= 2 && ours,
        }
    }

    fn most(self) -> LevelFilter {
        match self {
            Self { verbose: 2.., .. } => LevelFilter::TRACE,
            Self { verbose: 1, .. } => LevelFilter::DEBUG,
            Self { info: true, .. } => LevelFilter::INFO,
            Self { warning: true, .. } => LevelFilter::WARN,
            Self { error: true, .. } => LevelFilter::ERROR,
            Self { .. } => LevelFilter::OFF,
        }
    }
}

impl<S: Subscriber> Filter<S> for Levels {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        match self {
            Self::Switches(switches) => switches.written(metadata),
            Self::Targets(filter) => Filter::enabled(&**filter, metadata, context),
        }
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self {
            Self::Switches(switches) if switches.written(metadata) => Interest::always(),
            Self::Switches(_) => Interest::never(),
            Self::Targets(filter) => Filter::<S>::callsite_enabled(&**filter, metadata),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        match self {
            Self::Switches(switches) => Some(switches.most()),
            Self::Targets(filter) => filter.max_level_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_taken_and_typing_errors_are_not() {
        for good in ["error", "INFO", "debug", "off", "info,sconce_engine=debug", "sconce_server=trace"] {
            assert!(Levels::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "warning", "inf", "info,bogus", "info,x=loud"] {
            assert!(Levels::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels_have_tritons_names() {
        let switches = |text| Levels::parse(text).unwrap().switches();
        let told = |text| {
            let Switches { info, warning, error, verbose } = switches(text);
            (info, warning, error, verbose)
        };
        assert_eq!(told("off"), (false, false, false, 0));
        assert_eq!(told("error"), (false, false, true, 0));
        assert_eq!(told("warn"), (false, true, true, 0));
        assert_eq!(told("info"), (true, true, true, 0));
        assert_eq!(told("debug"), (true, true, true, 1));
        assert_eq!(told("trace"), (true, true, true, 2));
        assert_eq!(told("info,sconce_engine=debug"), (true, true, true, 1), "some lines of debug");
        assert_eq!(switches("info").most(), LevelFilter::INFO);
        let only = Switches { info: false, warning: true, error: false, verbose: 0 };
        assert_eq!(only.most(), LevelFilter::WARN);
    }
}
