//! A closed loop: so many callers, each asks again as soon as it is answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::JoinSet};

use super::target::Target;
use crate::support::{Result, load::Client, process::Server, report::percentile};

/// At least this long before anything counts.
const LEAD: Duration = Duration::from_millis(300);
/// A window has room for so many answers to each caller, where that does not make it longer than `LONGEST`.
const ANSWERS: usize = 4;
/// Of a window, in times of what was asked for.
const LONGEST: u32 = 3;

/// One answer: when it came, and how long it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) at: Instant,
    pub(crate) took: Duration,
}

/// Callers at work. They end when dropped.
#[derive(Debug)]
pub(crate) struct Callers {
    shared: Arc<Shared>,
    tasks: JoinSet<Result<Vec<Answer>>>,
    in_flight: usize,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    stop: AtomicBool,
    answered: AtomicUsize,
    /// Who waits is woken when as many have been answered.
    awaited: AtomicUsize,
    reached: Notify,
}

impl Callers {
    pub(crate) fn start(target: &Target, in_flight: usize) -> Self {
        let shared = Arc::new(Shared {
            target: target.clone(),
            stop: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            awaited: AtomicUsize::new(usize::MAX),
            reached: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        for number in 0..in_flight {
            tasks.spawn(Arc::clone(&shared).calls(target.client(number)));
        }
        Self { shared, tasks, in_flight }
    }

    /// Waits until the queue is as long as it gets: each caller has been answered about once.
    pub(crate) async fn settle(&mut self) -> Result<()> {
        tokio::time::sleep(LEAD).await;
        self.answers(self.in_flight).await
    }

    /// Waits until so many have been answered since the start.
    async fn answers(&mut self, count: usize) -> Result<()> {
        self.shared.awaited.store(count, Ordering::Relaxed);
        if self.shared.answered.load(Ordering::Relaxed) >= count {
            return Ok(());
        }
        tokio::select! {
            () = self.shared.reached.notified() => Ok(()),
            ended = self.tasks.join_next() => match ended {
                Some(ended) => Err(ended?.err().unwrap_or_else(|| "a caller has ended".into())),
                None => Err("there are no callers".into()),
            },
        }
    }

    /// Lets some time pass: these seconds, and more for a few answers to each.
    pub(crate) async fn pass(&mut self, seconds: Duration) -> Result<()> {
        let enough = self.shared.answered.load(Ordering::Relaxed) + ANSWERS * self.in_flight;
        tokio::time::sleep(seconds).await;
        match tokio::time::timeout(seconds * (LONGEST - 1), self.answers(enough)).await {
            Ok(answered) => answered,
            Err(_) => Ok(()),
        }
    }

    /// Asks no more, and waits for what is in flight; returns all answers in the order they came.
    pub(crate) async fn stop(mut self) -> Result<Vec<Answer>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut answers = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            answers.extend(ended??);
        }
        answers.sort_by_key(|answer| answer.at);
        Ok(answers)
    }
}

impl Shared {
    async fn calls(self: Arc<Self>, mut client: Client) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let (number, body) = self.target.questions.next();
            let start = Instant::now();
            let answer = client.infer(body).await?;
            let at = Instant::now();
            self.target.questions.check(number, &answer)?;
            answers.push(Answer { at, took: at - start });
            let answered = self.answered.fetch_add(1, Ordering::Relaxed) + 1;
            if answered == self.awaited.load(Ordering::Relaxed) {
                self.reached.notify_one();
            }
        }
        Ok(answers)
    }
}

/// What one window gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// The server's CPU time per request in microseconds.
    pub(crate) cpu: f64,
}

/// So many in flight for about so long.
pub(crate) async fn window(
    server: &Server,
    target: &Target,
    in_flight: usize,
    seconds: Duration,
) -> Result<Window> {
    let mut callers = Callers::start(target, in_flight);
    callers.settle().await?;
    let before = server.cpu_time()?;
    let begun = Instant::now();
    callers.pass(seconds).await?;
    let ended = Instant::now();
    let cpu = server.cpu_time()?.saturating_sub(before).as_secs_f64();
    let answers = within(&callers.stop().await?, begun, ended);
    let rate = rate(&answers);
    let took: Vec<f64> = answers.iter().map(|answer| answer.took.as_secs_f64() * 1e3).collect();
    Ok(Window {
        rate,
        p50: percentile(&took, 0.5),
        p99: percentile(&took, 0.99),
        cpu: cpu * 1e6 / (rate * (ended - begun).as_secs_f64()),
    })
}

/// Those that came between these moments.
pub(crate) fn within(answers: &[Answer], begun: Instant, ended: Instant) -> Vec<Answer> {
    answers.iter().copied().filter(|answer| (begun..ended).contains(&answer.at)).collect()
}

/// Answers a second: the slope of the line that fits how many had come by when. Answers come in lumps of a
/// batch, and it must not matter where a window cuts the first and the last.
pub(crate) fn rate(answers: &[Answer]) -> f64 {
    let Some(first) = answers.first() else { return f64::NAN };
    let times = || answers.iter().map(|answer| (answer.at - first.at).as_secs_f64());
    let count = answers.len() as f64;
    let mean = times().sum::<f64>() / count;
    let middle = (count - 1.0) / 2.0;
    let (mut together, mut alone) = (0.0, 0.0);
    for (number, time) in times().enumerate() {
        together += (time - mean) * (number as f64 - middle);
        alone += (time - mean).powi(2);
    }
    together / alone
}
