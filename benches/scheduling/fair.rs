//! A small model with few requests, at rest and beside a large one that has always more to do.

use std::time::{Duration, Instant};

use super::{
    Plan,
    bare::{Bare, Setup, cores},
    closed::{self, Answer, Callers},
    median, models,
    open::{self, Arrivals, Outcomes},
    spread,
    target::{self, Target},
};
use crate::support::{Result, report::percentile};

const IN_FLIGHT: usize = 64;
/// Requests a second to the small model.
const RATE: f64 = 100.0;
/// A window, in times of what the plan says: a hundredth of its requests must be some.
const WINDOWS: u32 = 4;
/// Of p99 at rest; one batch of the other model comes on top.
const AIM: f64 = 3.0;
/// Answers of one batch leave together.
const TOGETHER: Duration = Duration::from_millis(3);

struct Round {
    rest: Outcomes,
    beside: Outcomes,
    /// Of the large model.
    answers: Vec<Answer>,
}

async fn at_rest(small: &Target, arrivals: Arrivals) -> Result<Outcomes> {
    open::run(small, arrivals).await
}

/// Also returns the large model's answers meanwhile.
async fn beside(small: &Target, large: &Target, arrivals: Arrivals) -> Result<(Outcomes, Vec<Answer>)> {
    let mut callers = Callers::start(large, IN_FLIGHT);
    callers.settle().await?;
    let begun = Instant::now();
    let outcomes = open::run(small, arrivals).await?;
    let ended = Instant::now();
    Ok((outcomes, closed::within(&callers.stop().await?, begun, ended)))
}

async fn rounds(plan: &Plan, small: &Target, large: &Target) -> Result<Vec<Round>> {
    let mut rounds = Vec::with_capacity(plan.rounds);
    for round in 0..plan.rounds {
        let seed = round as u64 + 1;
        let arrivals =
            Arrivals { rate: RATE, lead: Duration::from_millis(300), window: plan.window * WINDOWS, seed };
        let round = if round % 2 == 0 {
            let rest = at_rest(small, arrivals).await?;
            let (beside, answers) = beside(small, large, arrivals).await?;
            Round { rest, beside, answers }
        } else {
            let (beside, answers) = beside(small, large, arrivals).await?;
            Round { rest: at_rest(small, arrivals).await?, beside, answers }
        };
        rounds.push(round);
    }
    Ok(rounds)
}

/// How many rows the large model's batches had, but for the largest tenth: the answers that left together.
/// Who waits longest waits for a large one.
fn batch(rounds: &[Round]) -> usize {
    let mut sizes = Vec::new();
    for round in rounds {
        let lumps = round.answers.chunk_by(|one, next| next.at - one.at < TOGETHER);
        sizes.extend(lumps.map(|lump| lump.len() as f64));
    }
    (percentile(&sizes, 0.9).round() as usize).max(1)
}

/// Measures, and prints what the small model's requests took.
pub(crate) async fn measure(plan: &Plan) -> Result<()> {
    let (small, large) = (models::named("mlp")?, models::named("resnet18")?);
    let repository = plan.disk.repository("fair", &[small, large], "")?;
    let (server, [mlp, resnet]) = target::serve(&repository, [small, large]).await?;
    let rounds = rounds(plan, &mlp, &resnet).await?;
    drop(server);

    let batch = batch(&rounds);
    let mut bare = Bare::start(&plan.floor, &plan.disk, large)?;
    let seconds = (plan.window * 2).as_secs_f64();
    let whole = bare.run(Setup { callers: 1, threads: cores()?, batch }, seconds)? * 1e3;
    let shared = bare.run(Setup { callers: cores()?, threads: 1, batch }, seconds)? * 1e3;

    let p99 = |outcomes: &Outcomes| outcomes.percentile(0.99);
    let middle = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value));
    println!(
        "fair: {} at {RATE} req/s, at rest and beside {} with {IN_FLIGHT} in flight; medians of {} rounds; aim: p99 \
         below {AIM} times that at rest and one batch\n",
        small.name, large.name, plan.rounds
    );
    println!("              p50 ms   p99 ms");
    println!(
        "  at rest   {:8.2} {:8.2}",
        middle(&|round| round.rest.percentile(0.5)),
        middle(&|round| p99(&round.rest))
    );
    println!(
        "  beside    {:8.2} {:8.2}",
        middle(&|round| round.beside.percentile(0.5)),
        middle(&|round| p99(&round.beside))
    );
    println!(
        "  p99 beside/rest: {}",
        spread(rounds.iter().map(|round| p99(&round.beside) / p99(&round.rest)))
    );
    println!(
        "  {}: {:.1} req/s meanwhile, batches of up to {batch}; libtorch alone runs one in {whole:.0} ms on all cores, in \
         {shared:.0} ms on one of them while the others run one each",
        large.name,
        middle(&|round| closed::rate(&round.answers)),
    );
    for (name, batch) in [("all cores", whole), ("one core", shared)] {
        let ratios = rounds.iter().map(|round| p99(&round.beside) / (AIM * p99(&round.rest) + batch));
        println!("  p99 beside/({AIM} x rest + a batch on {name}): {}; aim: below 1", spread(ratios));
    }
    println!();
    let failed: f64 = rounds.iter().flat_map(|round| round.beside.refusals()).map(|(_, rate, _)| rate).sum();
    if failed > 0.0 {
        return Err(format!("{} was refused beside {}", small.name, large.name).into());
    }
    Ok(())
}
