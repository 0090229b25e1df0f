//! A writer changes several models in every way, by chance, while clients check each answer against what
//! could be serving at that moment.
//!
//! `SCONCE_SEED=N` replays one run, `SCONCE_SOAK_SECONDS=N` says for how long; `make soak` is a long one.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tonic::Code;

use super::{
    Site, asking, is_sound,
    shelf::{Random, Shelf, is_untouched},
    whole,
    world::{Possible, Serving},
    writer::{Care, Plot, Step},
};
use crate::harness::{PATIENCE, Repo, as_fp32, output};

/// Unless said otherwise, all runs together take this long, in seconds.
const SECONDS: u64 = 20;
/// Runs that are always made; one more is made by a seed that nobody knows.
const SEEDS: [u64; 3] = [1, 2, 3];
const CLIENTS: u64 = 3;
/// Between two requests of a client: on two cores the server shall also load.
const PACE: Duration = Duration::from_millis(3);
/// How many of the last steps are told when something went wrong.
const TOLD: usize = 300;

/// The models: name, what may be done to them, what else stands in their configurations, the versions at
/// the start.
const MODELS: [(&str, Care, &str, &[u64]); 7] = [
    ("plain", Care::Anchored, "", &[1]),
    ("linked", Care::Anchored, "", &[1, 2]),
    ("configured", Care::Configured, "", &[1, 3]),
    ("all", Care::All, "", &[1, 2]),
    ("free", Care::Free, "", &[2]),
    ("replacing", Care::Free, "availability: replace\n", &[1, 2]),
    ("swapped", Care::Swapped, "", &[1, 2]),
];

/// What the writer and the clients share.
struct World {
    models: Vec<Watched>,
    phase: usize,
    steps: VecDeque<String>,
    wrong: Vec<String>,
    answers: u64,
    refusals: u64,
}

struct Watched {
    name: &'static str,
    anchored: bool,
    /// A version that is always served, where there is one.
    constant: Option<u64>,
    possible: Possible,
}

impl World {
    fn new(plots: &[Plot]) -> Self {
        let watched = |plot: &Plot| Watched {
            name: plot.name,
            anchored: plot.is_anchored(),
            constant: (plot.care == Care::All).then_some(1),
            possible: Possible::new(plot.disk(), plot.name == "replacing"),
        };
        let models = plots.iter().map(watched).collect();
        Self { models, phase: 0, steps: VecDeque::new(), wrong: Vec::new(), answers: 0, refusals: 0 }
    }

    fn say(&mut self, text: String) {
        if self.steps.len() == TOLD {
            self.steps.pop_front();
        }
        self.steps.push_back(text);
    }

    /// An answer, or why there was none, to a request that came in phase `since`.
    fn judge(
        &mut self,
        index: usize,
        asked: Option<u64>,
        since: usize,
        answer: Result<(u64, u32), (Code, String)>,
    ) {
        let (model, phases) = (&self.models[index], since..=self.phase);
        let asked_for = asked.map_or_else(String::new, |version| format!(" version {version}"));
        let wrong = match answer {
            Ok(answer) => {
                self.answers += 1;
                (!model.possible.allows(phases.clone(), asked, answer))
                    .then(|| format!("version {} answered {}", answer.0, answer.1))
            }
            Err((code, message)) => {
                self.refusals += 1;
                let must_serve = model.anchored && (asked.is_none() || asked == model.constant);
                let expected = matches!(code, Code::NotFound | Code::Unavailable);
                (must_serve || !expected).then(|| format!("{code:?}: {message}"))
            }
        };
        if let Some(wrong) = wrong {
            let text = format!("{}{asked_for}, asked in phase {phases:?}: {wrong}", model.name);
            self.say(format!("  WRONG: {text}"));
            self.wrong.push(text);
        }
    }
}

/// One run: a server, a repository, a writer, clients.
struct Run {
    site: Site,
    store: Repo,
    shelf: Arc<Shelf>,
    plots: Vec<Plot>,
    world: Arc<Mutex<World>>,
    random: Random,
    seed: u64,
    /// The sum of the weights.
    sum: f32,
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().expect("the world")
}

impl Run {
    async fn start(seed: u64, shelf: &Arc<Shelf>) -> Self {
        let (mut random, store) = (Random(seed), Repo::new());
        shelf.lay_out(&store);
        let mut plots = Vec::new();
        let site = Site::start(|repo| {
            for (name, care, extra, versions) in MODELS {
                let versions: Vec<_> =
                    versions.iter().map(|version| (*version, shelf.any(&mut random))).collect();
                plots.push(Plot::new((name, care, extra), (repo.path(), store.path()), shelf, &versions));
            }
        })
        .await;
        let world = Arc::new(Mutex::new(World::new(&plots)));
        let answer = site.client().model_infer(asking("plain", "")).await.expect("an answer").into_inner();
        let sum = as_fp32(output(&answer, "OUTPUT__0").2)[1];
        Self { site, store, shelf: Arc::clone(shelf), plots, world, random, seed, sum }
    }

    /// Asks for one model after the other and has each answer judged, until told to stop.
    fn client(&self, number: u64, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
        let (world, stop, mut client) = (Arc::clone(&self.world), Arc::clone(stop), self.site.client());
        let (sum, mut random) = (self.sum, Random(self.seed ^ number << 32));
        tokio::spawn(async move {
            let mut pace = tokio::time::interval(PACE);
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !stop.load(Ordering::Relaxed) {
                pace.tick().await;
                let index = random.index(MODELS.len());
                let asked = random.one_in(3).then(|| 1 + random.below(5));
                let version = asked.map_or_else(String::new, |version| version.to_string());
                let since = lock(&world).phase;
                let answer = client.model_infer(asking(MODELS[index].0, &version)).await;
                let answer = answer.map(tonic::Response::into_inner).map(|response| {
                    let values = as_fp32(output(&response, "OUTPUT__0").2);
                    // A content with other weights is nobody's.
                    let content = if values[1].to_bits() == sum.to_bits() { whole(values[0]) } else { 0 };
                    (response.model_version.parse().expect("a version"), content)
                });
                let answer = answer.map_err(|status| (status.code(), status.message().to_owned()));
                lock(&world).judge(index, asked, since, answer);
            }
        })
    }

    /// Asks all the time whether the server is ready.
    fn watch_readiness(&self, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
        let (world, stop, mut client) = (Arc::clone(&self.world), Arc::clone(stop), self.site.client());
        tokio::spawn(async move {
            let mut asked = 0;
            let mut pace = tokio::time::interval(PACE);
            while !stop.load(Ordering::Relaxed) {
                pace.tick().await;
                let answer = client.server_ready(sconce_proto::inference::ServerReadyRequest {}).await;
                if !answer.is_ok_and(|answer| answer.into_inner().ready) {
                    lock(&world).wrong.push("the server was not ready".to_owned());
                }
                asked += 1;
            }
            asked
        })
    }

    /// Some operations on some models, their steps shuffled; true when they have all been done.
    async fn write(&mut self) {
        let mut left = 2 + self.random.below(7);
        let mut queues: BTreeMap<usize, VecDeque<Step>> = BTreeMap::new();
        let pause = *self.random.pick(&[0, 2, 30]);
        loop {
            queues.retain(|_, steps| !steps.is_empty());
            if left > 0 && (queues.is_empty() || self.random.one_in(3)) {
                let index = self.random.index(self.plots.len());
                if let Entry::Vacant(queue) = queues.entry(index) {
                    left -= 1;
                    queue.insert(self.plots[index].next(&mut self.random).into());
                }
                continue;
            }
            let open: Vec<usize> = queues.keys().copied().collect();
            if open.is_empty() {
                return;
            }
            let index = *self.random.pick(&open);
            let step = queues.get_mut(&index).and_then(VecDeque::pop_front).expect("a step");
            {
                let mut world = lock(&self.world);
                world.models[index].possible.change(&step.changes);
                world.say(format!("  {}", step.says));
            }
            if let Err(error) = (step.act)() {
                panic!("{}: {}: {error}", self.told(), step.says);
            }
            if pause > 0 {
                tokio::time::sleep(Duration::from_millis(self.random.below(pause))).await;
            }
        }
    }

    /// What a model serves, when it says so twice.
    async fn serving(&self, name: &str) -> Option<Serving> {
        let before = self.site.ready_versions(name).await;
        let mut serving = Serving::new();
        for version in &before {
            let (answered, content) = self.site.ask(name, &version.to_string()).await.ok()?;
            serving.insert(answered, content);
        }
        (self.site.ready_versions(name).await == before).then_some(serving)
    }

    /// Waits until the server is at rest, and asserts that it serves what it must.
    async fn rest(&self) {
        self.site.settled().await;
        let begin = Instant::now();
        let deadline = begin + PATIENCE;
        for index in 0..MODELS.len() {
            let (name, expected) = {
                let world = lock(&self.world);
                (world.models[index].name, world.models[index].possible.at_rest())
            };
            let serving = loop {
                let serving = self.serving(name).await;
                if let Some(serving) = serving.clone().filter(|serving| expected.contains(serving))
                    && self.site.is_at_rest().await
                {
                    break serving;
                }
                if Instant::now() > deadline {
                    let rows = self.site.rows(name).await;
                    panic!(
                        "{name} serves {serving:?}, and not one of {expected:?}: {rows:#?}\n{}",
                        self.told()
                    );
                }
                tokio::time::sleep(super::LOOK).await;
            };
            let mut world = lock(&self.world);
            world.models[index].possible.rest(serving);
            world.say(format!("  {name} came to rest after {:?}", begin.elapsed()));
        }
        let mut world = lock(&self.world);
        world.phase += 1;
        let phase = world.phase;
        world.say(format!("phase {phase}"));
        let wrong = std::mem::take(&mut world.wrong);
        drop(world);
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), self.told());
    }

    /// How to run it again, and what happened last.
    fn told(&self) -> String {
        let steps: Vec<String> = lock(&self.world).steps.iter().cloned().collect();
        format!(
            "replay it with SCONCE_SEED={}; what was written last:\n{}\nthe server wrote:\n{}",
            self.seed,
            steps.join("\n"),
            self.site.server.log()
        )
    }

    async fn run(mut self, length: Duration) {
        let (stop, begin) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let clients: Vec<_> = (0..CLIENTS).map(|number| self.client(number, &stop)).collect();
        let readiness = self.watch_readiness(&stop);
        while begin.elapsed() < length {
            self.write().await;
            self.rest().await;
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("a client");
        }
        let asked = readiness.await.expect("whoever asks for readiness");
        is_untouched(&self.shelf, self.store.path());
        let log = self.site.server.log();
        is_sound(&log);
        let world = lock(&self.world);
        assert!(world.wrong.is_empty(), "{:?}\nSCONCE_SEED={}", world.wrong, self.seed);
        assert!(world.answers > 0 && asked > 0);
        eprintln!(
            "seed {}: {} phases, {} answers, {} refusals where they were due, {} loads, {} times out of service",
            self.seed,
            world.phase,
            world.answers,
            world.refusals,
            log.matches(" loaded model=").count(),
            log.matches(" out of service ").count(),
        );
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: a number is expected")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_written_each_answer_is_right_and_none_fails() {
    let shelf = Arc::new(Shelf::new());
    let seeds = match number("SCONCE_SEED") {
        Some(seed) => vec![seed],
        None => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
            let by_chance = Random(u64::from(now.subsec_nanos()) << 32 | now.as_secs()).below(1 << 32);
            SEEDS.into_iter().chain([by_chance]).collect()
        }
    };
    let length = Duration::from_secs(number("SCONCE_SOAK_SECONDS").unwrap_or(SECONDS)) / seeds.len() as u32;
    for seed in seeds {
        // Whatever fails, also where nothing is told of it.
        eprintln!("SCONCE_SEED={seed}");
        Run::start(seed, &shelf).await.run(length).await;
    }
}
