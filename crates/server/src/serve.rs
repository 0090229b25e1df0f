//! `sconce serve`: put the parts together, run, stop. Nothing is bound before the settings are known to
//! be good, and nothing is ready before the models are.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use sconce_engine::{
    backend::Backend,
    pool::{self, Pool, PoolSettings},
    reaper::Reaper,
    reconcile::{Overrides, Parts, Reconciler},
    stats::{Buckets, Stats},
    table::Table,
};
use sconce_proto::health::health_server::HealthServer;
use tokio::{net::TcpListener, sync::watch};
use tonic::service::Routes;
use tracing::{error, info};

use crate::{
    access::AccessLog,
    admin,
    control::Control,
    follow,
    grpc::Service,
    health::HealthService,
    listen::Listener,
    logging::Logs,
    metrics::{Memories, Metrics, Rpcs, Sources},
    observe::{Watcher, Watchers},
    options::{Options, Period, ServeArgs},
    shutdown::Signals,
    status::Codes,
    trace::Tracer,
    wire::{Budget, Limits},
};

/// gRPC's lengths are signed for most clients.
const MAX_MESSAGE: u64 = i32::MAX as u64;
/// Two of the largest messages, or as many as there is.
const RECEIVE_BUDGET: u64 = 4 << 30;
/// The largest message may wait, and queues are full, which tells callers when to come back, while there is
/// room to receive those of other models.
const MAX_QUEUED: u64 = RECEIVE_BUDGET / 2;
/// As many bytes of answers as of requests.
const SEND_BUDGET: u64 = RECEIVE_BUDGET;
const MAX_STREAMS: u32 = 1024;
/// Numbers of what is gone are forgotten in one of so many sweeps.
const FORGETS: u32 = 4;
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the last spans may take to reach their collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the server until a signal has stopped it and all that was in flight is answered.
pub(crate) fn run(arguments: ServeArgs) -> anyhow::Result<()> {
    let options = arguments.options()?;
    let logs =
        Logs::start(options.log_format.unwrap_or_default(), options.log_level.as_deref().unwrap_or("info"))?;
    let served = start(options, &logs);
    // The last lines, and only then why it has ended.
    logs.flush();
    served?;
    leave();
    Ok(())
}

fn start(options: Options, logs: &Logs) -> anyhow::Result<()> {
    check(&options)?;
    #[cfg(feature = "torch")]
    calm_openmp();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(options, logs));
    // A forward that never returns must not keep the process, nor run into what its exit takes down.
    runtime.shutdown_background();
    served
}

/// Lets the helper threads of OpenMP, which libtorch uses inside operators, wait for their next part of a run
/// with some ten microseconds of spinning and not with milliseconds: those are of use within a run only, and
/// the cores are needed for other runs and for connections. OpenMP reads this when it is loaded, which is
/// before any code of ours, so the program starts itself again; whoever has set it knows better.
#[cfg(feature = "torch")]
fn calm_openmp() {
    use std::{env, os::unix::process::CommandExt, process::Command};

    const SPINS: &str = "GOMP_SPINCOUNT";
    if env::var_os(SPINS).is_some() || env::var_os("OMP_WAIT_POLICY").is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| program.clone().into());
    let error = Command::new(program).arg0(name).args(arguments).env(SPINS, "5000").exec();
    tracing::warn!(
        "OpenMP's threads will spin for long, because the program could not be started again: {error}"
    );
}

/// Ends the process at once where workers may still be inside libtorch, whose destructors would pull the
/// ground from under them. The log has been written, and nothing else is left to write.
fn leave() {
    #[cfg(feature = "torch")]
    sconce_torch::exit_now(0);
}

/// What can be known to be wrong before anything is bound or loaded.
fn check(options: &Options) -> anyhow::Result<()> {
    ensure!(
        !options.model_repository.is_empty(),
        "no models to serve: name a directory with --model-repository DIR"
    );
    for repository in &options.model_repository {
        ensure!(
            repository.is_dir(),
            "--model-repository {}: {}",
            repository.display(),
            if repository.exists() { "this is no directory" } else { "there is no such directory" }
        );
    }
    if let Some(workers) = options.cpu_workers {
        ensure!((1..=1024).contains(&workers), "--cpu-workers {workers}: between 1 and 1024 is expected");
    }
    if let Some(size) = options.max_message_size {
        ensure!(
            (1..=2 << 30).contains(&size.as_u64()),
            "--max-message-size {size}: between 1B and 2GiB is expected, the most that gRPC can carry"
        );
    }
    if let Some(size) = options.max_queued_bytes {
        ensure!(size.as_u64() > 0, "--max-queued-bytes {size}: more is expected, or no request could wait");
    }
    let bounds = &options.metrics_buckets;
    ensure!(
        bounds.len() <= MAX_BUCKETS && bounds.iter().all(|Period(bound)| !bound.is_zero()),
        "--metrics-buckets: 1 to {MAX_BUCKETS} lengths of time above 0 are expected, such as 1ms,10ms,100ms,1s"
    );
    if let Some(ratio) = options.access_log_ratio {
        ensure!(
            ratio > 0.0 && ratio <= 1.0,
            "--access-log-ratio {ratio}: a part above 0 and up to 1 is expected, such as 0.01 for one call in a hundred"
        );
    }
    follow::check(options)
}

/// One call in a hundred.
const ACCESS_RATIO: f64 = 0.01;
/// Each is a series of its own, for each stage of each version.
const MAX_BUCKETS: usize = 50;
/// A run that takes longer is not expected to end.
const HUNG_AFTER: Duration = Duration::from_secs(60);

async fn serve(options: Options, logs: &Logs) -> anyhow::Result<()> {
    let grpc = bind(options.grpc_address.as_deref().unwrap_or("127.0.0.1:8001"), "--grpc-address").await?;
    let http = bind_http(&options).await?;
    let backend = backend(&options)?;
    let devices: Vec<String> = backend.devices().iter().map(ToString::to_string).collect();
    info!("{} on {}", backend.name(), devices.join(", "));
    let cores = cores();
    let tracer = Tracer::start(&options, grpc.local_addr().ok(), devices)?;
    let pool = start_pool(&options, &backend, cores, &tracer)?;
    let table = Arc::new(Table::default());
    table.change(|table| table.strict = options.strict_readiness.unwrap_or_default());
    let settings = follow::settings(&options, cores);
    let overrides = Arc::new(Overrides::new(settings.roots.clone(), settings.confine_symlinks));
    let (limits, routes, signals) = (limits(&options)?, routes(&table)?, Signals::new()?);

    let (stop, stopped) = watch::channel(false);
    info!("gRPC on {}", grpc.local_addr()?);
    let codes = Codes { triton: options.triton_error_codes.unwrap_or_default() };
    let rpcs = Arc::new(Rpcs::new(&buckets(&options)));
    if let Some(address) = http {
        let sources = Sources {
            table: Arc::clone(&table),
            pool: pool.clone(),
            memories: Memories::start(&pool).context("a thread could not be started")?,
            rpcs: Arc::clone(&rpcs),
            limits: limits.clone(),
            logs: logs.clone(),
            codes,
            triton_names: options.metrics_triton_names.unwrap_or_default(),
            tracer: tracer.clone(),
        };
        let debug = options.debug_endpoints.unwrap_or_default();
        start_http(address, sources, (backend.name(), debug), stopped.clone())?;
    }
    look_after(&pool, &table, &tracer);
    let mode = settings.mode.clone();
    let reaper = Reaper::start(Arc::clone(&backend))?;
    let parts = Parts { backend, pool: pool.clone(), reaper, table: Arc::clone(&table) };
    let reconciler = Reconciler::start(settings, parts)?;
    let listener = Listener {
        service: Arc::new(Service {
            table: Arc::clone(&table),
            pool: pool.clone(),
            tracer: tracer.clone(),
            control: Control::new(reconciler, Arc::clone(&overrides), &mode, codes),
            logs: logs.clone(),
            server_id: options.server_id.clone().unwrap_or_else(|| "sconce".to_owned()),
            codes,
            limits,
            compression: options.response_compression.unwrap_or_default(),
            stop: stopped.clone(),
            max_stream_age: options.max_stream_age.map(|Period(age)| age),
        }),
        routes,
        rpcs,
        watchers: watchers(&options, logs, &pool, &tracer),
        max_streams: options.max_concurrent_streams.map_or(MAX_STREAMS, std::num::NonZeroU32::get),
    };
    let bound = options.drain_timeout.map_or(DRAIN_TIMEOUT, |Period(time)| time);
    let serving = tokio::spawn(async move {
        let cut = listener.run(grpc, stopped, bound).await;
        tracer.stop(FLUSH_TIMEOUT).await;
        cut
    });

    let delay = options.drain_delay.map_or(Duration::ZERO, |Period(time)| time);
    let ended = signals.then_drain(&table, &stop, serving, (delay, bound)).await;
    overrides.remove();
    ended
}

/// How many cores this process may keep busy: those of its affinity, or of the CPU limit of its container
/// (quotas of cgroups v1 and v2, also of those above) if that is less, rounded down, and at least one.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Who wants to know of calls.
fn watchers(options: &Options, logs: &Logs, pool: &Pool, tracer: &Tracer) -> Watchers {
    let devices = pool.devices().iter().map(ToString::to_string).collect();
    let ratio = options.access_log_ratio.unwrap_or(ACCESS_RATIO);
    let access = AccessLog::new(logs.clone(), options.access_log.unwrap_or_default(), ratio, devices);
    // The tracer first: what it decides of a request is in the line of the access log.
    let watchers: [Arc<dyn Watcher>; 2] = [Arc::new(tracer.clone()), Arc::new(access)];
    Watchers(Arc::new(watchers))
}

/// Serves health, models and metrics over HTTP.
///
/// On a thread with a runtime of its own: whoever looks is answered while every thread that serves is busy.
fn start_http(
    address: TcpListener,
    sources: Sources,
    (runtime, debug): (String, bool),
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    info!("health on http://{}/health/ready", address.local_addr()?);
    let (table, pool) = (Arc::clone(&sources.table), sources.pool.clone());
    let admin = admin::Admin { table, pool, metrics: Metrics::new(sources, runtime), debug };
    let address = address.into_std()?;
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = async move {
        match TcpListener::from_std(address) {
            Ok(listener) => admin::serve(listener, admin, stopped).await,
            Err(error) => error!("the metrics address cannot be served: {error}"),
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || own.block_on(serve))?;
    Ok(())
}

/// The upper bounds of the buckets of durations.
fn buckets(options: &Options) -> Buckets {
    if options.metrics_buckets.is_empty() {
        return Buckets::durations();
    }
    Buckets::of(&options.metrics_buckets.iter().map(|Period(bound)| *bound).collect::<Vec<_>>())
}

/// Starts as many workers as the flags or the cores say.
fn start_pool(
    options: &Options,
    backend: &Arc<dyn Backend>,
    cores: usize,
    tracer: &Tracer,
) -> anyhow::Result<Pool> {
    let cpu_workers = options.cpu_workers.map_or(cores, usize::from);
    let queued_bytes = bytes(options.max_queued_bytes, MAX_QUEUED)?;
    info!(
        "cores: {cores}, workers of the CPU: {cpu_workers}, bytes of requests that may wait: {queued_bytes}"
    );
    let hung_after = options.hung_run_timeout.map_or(HUNG_AFTER, |Period(time)| time);
    let settings = PoolSettings { cpu_workers, cores, queued_bytes, hung_after };
    let watch =
        pool::Watch { stats: Arc::new(Stats::new(buckets(options))), observer: Arc::new(tracer.clone()) };
    Pool::start_watched(backend, settings, watch).context("the worker threads could not be started")
}

fn limits(options: &Options) -> anyhow::Result<Limits> {
    Ok(Limits {
        message: bytes(options.max_message_size, MAX_MESSAGE)?,
        budget: Budget::new(
            bytes(options.receive_budget, RECEIVE_BUDGET)?,
            "requests being received is used up; retry later or raise --receive-budget",
        ),
        answers: Budget::new(
            bytes(options.send_budget, SEND_BUDGET)?,
            "answers being sent is used up; read answers sooner, retry later or raise --send-budget",
        ),
    })
}

/// Does what has to be done now and then, as long as the runtime runs.
fn look_after(pool: &Pool, table: &Arc<Table>, tracer: &Tracer) {
    tokio::spawn(sweep(pool.clone(), Arc::clone(table)));
    tokio::spawn(tracer.clone().follow(Arc::clone(table)));
}

/// Takes expired and cancelled requests out of the queues now and then: they are skipped anyway when a
/// worker reaches them, but until then they hold memory.
async fn sweep(pool: Pool, table: Arc<Table>) {
    let mut known = (Vec::new(), false);
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for turn in 0_u32.. {
        interval.tick().await;
        pool.sweep();
        if turn % FORGETS == 0 {
            pool.stats().forget(&table.snapshot());
        }
        // A model that hangs is not ready, nor is a server without devices: those who watch are told.
        table.sweep_sequences();
        let now = (pool.stuck(), !pool.is_alive());
        if now != known {
            table.change(|table| table.lost = now.1);
            known = now;
        }
    }
}

fn routes(table: &Arc<Table>) -> anyhow::Result<Routes> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(sconce_proto::DESCRIPTORS)
    };
    let mut routes = Routes::builder();
    routes
        .add_service(HealthServer::new(HealthService { table: Arc::clone(table) }))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok(routes.routes().prepare())
}

fn bytes(said: Option<ByteSize>, default: u64) -> anyhow::Result<usize> {
    Ok(usize::try_from(said.map_or(default, |size| size.as_u64()))?)
}

async fn bind_http(options: &Options) -> anyhow::Result<Option<TcpListener>> {
    Ok(match options.metrics_address.as_deref().unwrap_or("127.0.0.1:8002") {
        "off" => None,
        address => Some(bind(address, "--metrics-address").await?),
    })
}

async fn bind(address: &str, flag: &str) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("{flag} {address}: another process listens there already; stop it or choose another port")
        }
        Err(error) => bail!(
            "{flag} {address}: cannot listen there: {error}; HOST:PORT is expected, such as 0.0.0.0:8001"
        ),
    }
}

#[cfg(feature = "torch")]
fn backend(options: &Options) -> anyhow::Result<Arc<dyn Backend>> {
    for library in &options.op_library {
        open_library(library)?;
    }
    let torch = sconce_torch::Torch::new();
    let info = torch.info();
    if info.gpus == 0 {
        tracing::debug!("no GPU: {}", info.why_no_gpu);
    }
    Ok(Arc::new(torch))
}

#[cfg(feature = "torch")]
fn open_library(library: &Path) -> anyhow::Result<()> {
    sconce_torch::open_library(library)
        .map_err(|why| anyhow::anyhow!("--op-library {}: cannot be opened: {why}", library.display()))
}

#[cfg(not(feature = "torch"))]
fn backend(options: &Options) -> anyhow::Result<Arc<dyn Backend>> {
    let libraries: &[std::path::PathBuf] = &options.op_library;
    if let Some(library) = libraries.first().map(|path| -> &Path { path }) {
        bail!("--op-library {}: this binary was built without libtorch", library.display());
    }
    Ok(Arc::new(sconce_engine::fake::Fake::new(0)))
}

/// The runtime's part of `sconce version`.
#[cfg(feature = "torch")]
pub(crate) fn runtime_info() -> String {
    let info = sconce_torch::Torch::new().info();
    let gpus = match info.gpus {
        0 => format!("devices: cpu (no GPU: {})", info.why_no_gpu),
        count => format!(
            "devices: cpu, {}",
            (0..count).map(|gpu| format!("gpu:{gpu}")).collect::<Vec<_>>().join(", ")
        ),
    };
    format!("libtorch {}, {}\n{gpus}\n", info.version, info.cpu_capability)
}

/// The runtime's part of `sconce version`.
#[cfg(not(feature = "torch"))]
pub(crate) fn runtime_info() -> String {
    "built without libtorch: models are scripted, for tests\ndevices: cpu\n".to_owned()
}
