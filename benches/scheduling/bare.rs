//! libtorch without a server, in a process of its own: how fast the machine can run a model at all.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{ChildStdin, ChildStdout},
};

use super::models::{Contents, Disk, Model};
use crate::support::{Result, process::Server};

/// Seconds for each setup while the best is looked for.
const LOOK: f64 = 0.5;
/// Of the best rate: what a smaller batch must reach to be taken instead.
const AS_GOOD: f64 = 0.95;

/// How libtorch is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) callers: usize,
    /// Of each caller.
    pub(crate) threads: usize,
    pub(crate) batch: usize,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} thr, {}", self.callers, self.threads, self.batch)
    }
}

/// A process that has the model loaded.
#[derive(Debug)]
pub(crate) struct Bare {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Ends it.
    _process: Server,
}

impl Bare {
    pub(crate) fn start(floor: &Path, disk: &Disk, model: &Model) -> Result<Self> {
        let vocabulary = match model.contents {
            Contents::Fp32 => 0,
            Contents::Tokens(below) => below,
        };
        let file = disk.frozen(model)?;
        let (process, input, output) = Server::measured(floor, &file, vocabulary, model.shape)?;
        Ok(Self { input, output: BufReader::new(output), _process: process })
    }

    /// Rows a second.
    pub(crate) fn rate(&mut self, setup: Setup, seconds: f64) -> Result<f64> {
        writeln!(self.input, "{} {} {} {seconds}", setup.callers, setup.threads, setup.batch)?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().parse().map_err(|_| "libtorch alone has ended")?)
    }

    /// Seconds that one run takes beside the others of the setup.
    pub(crate) fn run(&mut self, setup: Setup, seconds: f64) -> Result<f64> {
        Ok((setup.callers * setup.batch) as f64 / self.rate(setup, seconds)?)
    }

    /// Tries batches up to the model's largest, by one caller or by as many as there are cores.
    pub(crate) fn look(&mut self, model: &Model) -> Result<Found> {
        let cores = cores()?;
        let mut ways = vec![(1, 1), (1, cores), (cores, 1)];
        ways.dedup();
        let mut rates = Vec::new();
        let batches = std::iter::successors(Some(1), |batch| Some(batch * 2));
        for batch in batches.take_while(|batch| *batch <= model.max_batch) {
            for &(callers, threads) in &ways {
                let setup = Setup { callers, threads, batch };
                rates.push((setup, self.rate(setup, LOOK)?));
            }
        }
        Ok(Found { rates })
    }
}

/// Setups with their rates.
#[derive(Debug)]
pub(crate) struct Found {
    rates: Vec<(Setup, f64)>,
}

impl Found {
    /// The best setup that has no more rows in work than there are requests in flight.
    pub(crate) fn best(&self, in_flight: usize) -> Result<Setup> {
        let fitting = self.rates.iter().filter(|(setup, _)| setup.callers * setup.batch <= in_flight);
        let best = fitting.max_by(|(_, one), (_, other)| one.total_cmp(other));
        Ok(best.ok_or("no setup has so few in flight")?.0)
    }

    /// The smallest batch that one caller runs about as fast as any other batch.
    pub(crate) fn worthwhile(&self) -> Result<Setup> {
        let alone = || self.rates.iter().filter(|(setup, _)| setup.callers == 1);
        let most = alone().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let good = alone().filter(|(_, rate)| *rate >= most * AS_GOOD);
        Ok(good.min_by_key(|(setup, _)| setup.batch).ok_or("no setup has one caller")?.0)
    }
}

/// How many cores this process may use.
pub(crate) fn cores() -> Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}
