//! Twice as many requests as can be answered, each with a deadline: what is answered in time all the same.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Plan,
    bare::Bare,
    closed, median,
    models::Model,
    open::{self, Arrivals, Outcomes},
    spread, target,
};
use crate::support::Result;

const IN_FLIGHT: usize = 64;
/// Times of what can be answered.
const OVER: f64 = 2.0;
/// A deadline, in times of one batch.
const BATCHES: f64 = 20.0;
/// Deadlines shorter than this would measure the machine's other programs.
const SHORTEST: f64 = 0.1;
/// Of goodput over capacity.
const AIM: f64 = 0.9;

/// What can be answered, measured in the same round, and what came of more.
type Round = (f64, Outcomes);

async fn model(plan: &Plan, model: &Model) -> Result<()> {
    let mut bare = Bare::start(&plan.floor, &plan.disk, model)?;
    let setup = bare.look(model)?.worthwhile()?;
    let batch = bare.run(setup, plan.window.as_secs_f64())?;
    drop(bare);
    let deadline = Duration::from_secs_f64((batch * BATCHES).max(SHORTEST));

    let repository = plan.disk.repository(&format!("overload-{}", model.name), &[model], "")?;
    let (server, [target]) = target::serve(&repository, [model]).await?;
    let hurried = target.within(deadline)?;
    let mut rounds: Vec<Round> = Vec::new();
    for round in 0..plan.rounds {
        let capacity = closed::window(&server, &target, IN_FLIGHT, plan.window).await?.rate;
        let arrivals = Arrivals {
            rate: capacity * OVER,
            // Until the queue is as long as it gets.
            lead: deadline * 3 / 2,
            window: (deadline * 3).max(plan.window),
            seed: round as u64 + 1,
        };
        rounds.push((capacity, open::run(&hurried, arrivals).await?));
    }

    println!(
        "{}: a batch of {} takes {:.1} ms, the deadline is {:.0} ms",
        model.name,
        setup.batch,
        batch * 1e3,
        deadline.as_secs_f64() * 1e3
    );
    let middle =
        |value: &dyn Fn(&Outcomes) -> f64| median(rounds.iter().map(|(_, outcomes)| value(outcomes)));
    println!(
        "  capacity {:.1} req/s, offered {:.1}, in time {:.1}",
        median(rounds.iter().map(|(capacity, _)| *capacity)),
        middle(&Outcomes::rate),
        middle(&|outcomes| outcomes.in_time(deadline)),
    );
    let ratios = rounds.iter().map(|(capacity, outcomes)| outcomes.in_time(deadline) / capacity);
    println!("  goodput/capacity: {}", spread(ratios));
    println!(
        "  OK: p50 {:.0} ms, p99 {:.0} ms{}\n",
        middle(&|outcomes| outcomes.percentile(0.5)),
        middle(&|outcomes| outcomes.percentile(0.99)),
        refusals(&rounds)
    );
    Ok(())
}

/// The other codes, over all rounds.
fn refusals(rounds: &[Round]) -> String {
    let mut codes: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (code, rate, p99) in rounds.iter().flat_map(|(_, outcomes)| outcomes.refusals()) {
        codes.entry(code).or_default().push((rate, p99));
    }
    let lines = codes.iter().map(|(code, seen)| {
        let rate = seen.iter().map(|(rate, _)| rate).sum::<f64>() / rounds.len() as f64;
        format!("\n  {code}: {rate:.1}/s, p99 {:.0} ms", median(seen.iter().map(|(_, p99)| *p99)))
    });
    lines.collect()
}

/// Measures, and prints a paragraph for each model.
pub(crate) async fn measure(plan: &Plan) -> Result<()> {
    println!(
        "overload: {OVER} times the capacity at {IN_FLIGHT} in flight, in an open loop; a deadline of {BATCHES} \
         batches; medians of {} rounds; aim of goodput/capacity: {AIM}\n",
        plan.rounds
    );
    // With light models the client would need as much of the cores as the server, and take it from it.
    for each in plan.models(|model| model.heavy) {
        model(plan, each).await?;
    }
    Ok(())
}
