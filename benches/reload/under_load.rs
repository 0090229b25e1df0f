//! Latency while versions load, over latency at rest.
//!
//! A round has a window of each kind, and each next round begins with another kind, so that a drift of the
//! machine falls on all. Ratios are of windows of the same round.

use std::time::{Duration, Instant};

use super::{
    busy,
    log::Log,
    publish::{Disk, Publisher, ROWS_50_MB},
    traffic::{self, Pace, Tally, Traffic},
};
use crate::support::{
    Result,
    process::Server,
    report::{Spread, percentile},
};

const WINDOW: Duration = Duration::from_millis(2500);
/// Before a window: what the last one did is over, what this one does has begun.
const LEAD: Duration = Duration::from_millis(300);
/// Of p99 over p99 at rest.
const AIM: f64 = 1.2;
/// Asks the other model, only to learn when a version of it serves.
const PROBE: Pace = Pace { callers: 1, every: Some(Duration::from_millis(10)) };

/// What happens beside the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Nothing,
    Busy,
    Same,
    Other,
}

const KINDS: [(Beside, &str); 4] = [
    (Beside::Nothing, "at rest"),
    (Beside::Busy, "a nice process"),
    (Beside::Same, "same model loads"),
    (Beside::Other, "another loads"),
];

fn levels() -> [(&'static str, Pace); 3] {
    let every = Some(Duration::from_millis(2));
    [
        ("one request every 2 ms", Pace { callers: 1, every }),
        ("1 in flight", Pace { callers: 1, every: None }),
        ("4 in flight, each on its own connection", Pace { callers: 4, every: None }),
    ]
}

/// What one window gave.
struct Window {
    p50: f64,
    p99: f64,
    longest: f64,
    rate: f64,
    /// Of a core.
    cpu: f64,
    /// Seconds from renaming to the first answer.
    served: Vec<f64>,
    tally: Tally,
}

/// A server with two models, and a caller of the second.
struct Bench {
    server: Server,
    log: Log,
    same: Publisher,
    other: Publisher,
    probe: Traffic,
}

impl Bench {
    async fn start(disk: &Disk) -> Result<Self> {
        let mut same = Publisher::new(disk, "served", ROWS_50_MB)?;
        let mut other = Publisher::new(disk, "other", ROWS_50_MB)?;
        same.publish()?;
        other.publish()?;
        let (server, log) = Server::sconce_with_log(&disk.repository())?;
        let log = Log::read(log);
        traffic::ready(&server.address, &same.name).await?;
        traffic::ready(&server.address, &other.name).await?;
        let probe = Traffic::start(&server.address, &other.name, PROBE).await?;
        Ok(Self { server, log, same, other, probe })
    }

    async fn window(&mut self, beside: Beside, traffic: &mut Traffic) -> Result<Window> {
        let busy = if beside == Beside::Busy { Some(busy::start(self.same.content(1))?) } else { None };
        tokio::time::sleep(LEAD).await;
        let before = self.server.cpu_time_of_all()?;
        traffic.begin();
        let begun = Instant::now();
        let mut served = Vec::new();
        match beside {
            Beside::Nothing | Beside::Busy => tokio::time::sleep(WINDOW).await,
            Beside::Same | Beside::Other => {
                // A change that has begun is seen through, and counts.
                while begun.elapsed() < WINDOW {
                    let took = match beside {
                        Beside::Same => traffic.swap(&mut self.same).await?,
                        _ => self.probe.swap(&mut self.other).await?,
                    };
                    served.push(took.as_secs_f64());
                }
            }
        }
        let wall = begun.elapsed().as_secs_f64();
        let tally = traffic.end();
        let cpu = self.server.cpu_time_of_all()?.saturating_sub(before).as_secs_f64() / wall;
        drop(busy);
        let times = &tally.microseconds;
        Ok(Window {
            p50: percentile(times, 0.5),
            p99: percentile(times, 0.99),
            longest: percentile(times, 1.0),
            rate: times.len() as f64 / wall,
            cpu,
            served,
            tally,
        })
    }

    async fn level(&mut self, name: &str, pace: Pace, rounds: usize) -> Result<()> {
        let mut traffic = Traffic::start(&self.server.address, &self.same.name, pace).await?;
        let mut windows: [Vec<Window>; KINDS.len()] = Default::default();
        drop(self.log.steps());
        for round in 0..rounds {
            for turn in 0..KINDS.len() {
                let kind = (round + turn) % KINDS.len();
                let window = self.window(KINDS[kind].0, &mut traffic).await?;
                windows[kind].push(window);
            }
        }
        println!("{name}");
        println!(
            "                     p50 us  p99 us  longest   req/s  CPU %    p50/rest (min - max)     \
             p99/rest (min - max)     loads  serves after s"
        );
        for ((_, name), of_kind) in KINDS.iter().zip(&windows) {
            println!("{}", row(name, of_kind, &windows[0]));
        }
        let tallies: Vec<Tally> = windows.into_iter().flatten().map(|window| window.tally).collect();
        let failed: usize = tallies.iter().map(|tally| tally.failed).sum();
        println!("  a load: {}; failed requests: {failed}{}\n", self.log.steps(), traffic::reasons(&tallies));
        Ok(())
    }
}

fn row(name: &str, windows: &[Window], rest: &[Window]) -> String {
    let median = |value: fn(&Window) -> f64| Spread::of(windows.iter().map(value)).median;
    let at_rest = std::ptr::eq(windows, rest);
    let ratio = |value: fn(&Window) -> f64| {
        if at_rest {
            return String::new();
        }
        let pairs = windows.iter().zip(rest);
        let ratio = Spread::of(pairs.map(|(window, rest)| value(window) / value(rest)));
        format!("{:5.2} ({:.2} - {:.2})", ratio.median, ratio.min, ratio.max)
    };
    let served: Vec<f64> = windows.iter().flat_map(|window| window.served.iter().copied()).collect();
    let served = match served.len() {
        0 => String::new(),
        count => {
            format!("{count:6}  {:.2}, p99 {:.2}", percentile(&served, 0.5), percentile(&served, 0.99))
        }
    };
    format!(
        "  {name:<17} {:7.0} {:7.0}  {:7.0}  {:6.0}  {:5.0}    {:<23}  {:<23}{served}",
        median(|window| window.p50),
        median(|window| window.p99),
        median(|window| window.longest),
        median(|window| window.rate),
        median(|window| window.cpu) * 100.0,
        ratio(|window| window.p50),
        ratio(|window| window.p99),
    )
}

/// Measures, and prints a table for each kind of load.
pub(crate) async fn measure(rounds: usize) -> Result<()> {
    let disk = Disk::new()?;
    let mut bench = Bench::start(&disk).await?;
    println!(
        "reload under load: MLP 64-256-256-10, versions of 50 MB; medians of {rounds} rounds; \
         aim of p99/rest: {AIM}\n"
    );
    for (name, pace) in levels() {
        bench.level(name, pace, rounds).await?;
    }
    Ok(())
}
