//! The defaults beside settings by hand: every pair of an instance count and a thread count.

use std::time::Duration;

use super::{
    Plan,
    bare::cores,
    closed, median,
    models::Model,
    spread,
    target::{self, Target},
};
use crate::support::{Result, process::Server};

const IN_FLIGHT: usize = 64;
/// Of the default over the best by hand.
const AIM: f64 = 0.95;

/// One configuration: its server, and what each round gave.
struct Contestant {
    name: String,
    server: Server,
    target: Target,
    rounds: Vec<Round>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    /// Requests a second with many in flight.
    rate: f64,
    /// Of a single request: one over its median in milliseconds, so that more is better.
    quickness: f64,
    /// The server's CPU time for it, in microseconds.
    cpu: f64,
}

/// What is compared.
type Measure = fn(&Round) -> f64;

impl Contestant {
    async fn start(plan: &Plan, model: &Model, name: &str, more: &str) -> Result<Self> {
        let repository = plan.disk.repository(&format!("tuned-{}-{name}", model.name), &[model], more)?;
        let (server, [target]) = target::serve(&repository, [model]).await?;
        Ok(Self { name: name.to_owned(), server, target, rounds: Vec::new() })
    }

    async fn round(&mut self, window: Duration) -> Result<()> {
        let many = closed::window(&self.server, &self.target, IN_FLIGHT, window).await?;
        let one = closed::window(&self.server, &self.target, 1, window / 2).await?;
        self.rounds.push(Round { rate: many.rate, quickness: 1.0 / one.p50, cpu: one.cpu });
        Ok(())
    }

    fn median(&self, measure: Measure) -> f64 {
        median(self.rounds.iter().map(measure))
    }
}

/// 1, 2, 4 and so on up to the cores, and the cores.
fn counts() -> Result<Vec<usize>> {
    let cores = cores()?;
    let mut counts: Vec<usize> =
        std::iter::successors(Some(1), |count| Some(count * 2)).take_while(|count| *count < cores).collect();
    counts.push(cores);
    Ok(counts)
}

async fn contestants(plan: &Plan, model: &Model) -> Result<Vec<Contestant>> {
    let mut all = vec![Contestant::start(plan, model, "default", "").await?];
    for instances in counts()? {
        for threads in counts()? {
            let name = format!("{instances} x {threads} thr");
            let more = format!("instances: {instances}\nthreads: {threads}");
            all.push(Contestant::start(plan, model, &name, &more).await?);
        }
    }
    Ok(all)
}

/// The default over the best of the others, by their medians.
fn verdict(default: &Contestant, others: &[Contestant], what: &str, measure: Measure) -> Result<String> {
    let best = others.iter().max_by(|one, other| one.median(measure).total_cmp(&other.median(measure)));
    let best = best.ok_or("nothing to compare with")?;
    let ratios =
        default.rounds.iter().zip(&best.rounds).map(|(mine, theirs)| measure(mine) / measure(theirs));
    Ok(format!("  default/best, {what}: {} of {}", spread(ratios), best.name))
}

async fn model(plan: &Plan, model: &Model) -> Result<()> {
    let mut all = contestants(plan, model).await?;
    let count = all.len();
    for round in 0..plan.rounds {
        for turn in 0..count {
            all[(round + turn) % count].round(plan.window).await?;
        }
    }
    let (default, others) = all.split_first().ok_or("no configuration")?;
    println!("{}", model.name);
    println!(
        "  instances      req/s at {IN_FLIGHT}  default/this (min - max)   one alone ms  default/this (min - max)    CPU us"
    );
    for contestant in &all {
        let ratio = |measure: Measure| {
            let pairs = default.rounds.iter().zip(&contestant.rounds);
            let ratio = spread(pairs.map(|(mine, theirs)| measure(mine) / measure(theirs)));
            if contestant.name == default.name { String::new() } else { ratio }
        };
        println!(
            "  {:<14} {:11.1}  {:<24}  {:13.3}  {:<24}  {:6.1}",
            contestant.name,
            contestant.median(|round| round.rate),
            ratio(|round| round.rate),
            1.0 / contestant.median(|round| round.quickness),
            ratio(|round| round.quickness),
            contestant.median(|round| round.cpu),
        );
    }
    println!("{}", verdict(default, others, "throughput", |round| round.rate)?);
    println!("{}\n", verdict(default, others, "quickness of one alone", |round| round.quickness)?);
    Ok(())
}

/// Measures, and prints a table for each model.
pub(crate) async fn measure(plan: &Plan) -> Result<()> {
    println!(
        "the defaults beside instances and threads by hand, {} cores; {} rounds in turn; aim of default/best: {AIM}\n",
        cores()?,
        plan.rounds
    );
    for each in plan.models(|model| model.name != "identity") {
        model(plan, each).await?;
    }
    Ok(())
}
