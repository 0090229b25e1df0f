//! Requests a second and latencies at several numbers in flight, beside what libtorch alone runs with as many.

use std::time::Duration;

use super::{
    Plan,
    bare::{Bare, Setup, cores},
    closed::{self, Window},
    median,
    models::Model,
    spread,
    target::{self, Target},
};
use crate::support::{Result, process::Server};

const IN_FLIGHT: [usize; 4] = [1, 8, 64, 512];
/// Where each caller waits longer than this for an answer, a third of the rounds must do.
const LONG: Duration = Duration::from_secs(5);

/// A window of the server and one of libtorch alone, after each other.
type Pair = (Window, f64);

/// All that is needed for pairs.
struct Bench {
    server: Server,
    target: Target,
    bare: Bare,
    window: Duration,
}

impl Bench {
    async fn pairs(&mut self, in_flight: usize, setup: Setup, rounds: usize) -> Result<Vec<Pair>> {
        let mut pairs = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let seconds = self.window.as_secs_f64();
            let before = if round % 2 == 0 { None } else { Some(self.bare.rate(setup, seconds)?) };
            let window = closed::window(&self.server, &self.target, in_flight, self.window).await?;
            let rate = match before {
                Some(rate) => rate,
                None => self.bare.rate(setup, seconds)?,
            };
            pairs.push((window, rate));
        }
        Ok(pairs)
    }
}

async fn model(plan: &Plan, model: &'static Model) -> Result<()> {
    let mut bare = Bare::start(&plan.floor, &plan.disk, model)?;
    let found = bare.look(model)?;
    let repository = plan.disk.repository(&format!("throughput-{}", model.name), &[model], "")?;
    let (server, [target]) = target::serve(&repository, [model]).await?;
    let mut bench = Bench { server, target, bare, window: plan.window };
    println!("{}", model.name);
    println!(
        "  in flight     req/s   p50 ms   p99 ms  CPU us/req   bare rows/s  callers, batch   \
         server/bare (min - max)  rounds"
    );
    let mut rate = f64::INFINITY;
    for in_flight in IN_FLIGHT {
        let long = in_flight as f64 / rate > LONG.as_secs_f64();
        let rounds = if long { plan.rounds.div_ceil(3) } else { plan.rounds };
        let setup = found.best(in_flight)?;
        let pairs = bench.pairs(in_flight, setup, rounds).await?;
        let middle = |value: fn(&Window) -> f64| median(pairs.iter().map(|(window, _)| value(window)));
        rate = middle(|window| window.rate);
        println!(
            "  {in_flight:9} {rate:9.0} {:8.2} {:8.2} {:11.1} {:13.0}  {:<15}  {:<23}  {rounds:6}",
            middle(|window| window.p50),
            middle(|window| window.p99),
            middle(|window| window.cpu),
            median(pairs.iter().map(|(_, bare)| *bare)),
            setup.to_string(),
            spread(pairs.iter().map(|(window, bare)| window.rate / bare)),
        );
    }
    println!();
    Ok(())
}

/// Measures, and prints a table for each model.
pub(crate) async fn measure(plan: &Plan) -> Result<()> {
    println!(
        "throughput of the defaults: closed loop over 4 connections, {} cores; beside it libtorch alone, as well as \
         it can with as many rows in work; medians of rounds of {:?}\n",
        cores()?,
        plan.window
    );
    for each in plan.models(|_| true) {
        model(plan, each).await?;
    }
    Ok(())
}
