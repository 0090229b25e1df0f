//! From a directory of models to a table, over the fake backend.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use sconce_repository::{ModelConfig, scan};

use super::*;
use crate::pool::PoolSettings;
use crate::{
    Error,
    backend::{Device, LoadError, Opened, WorkerContext},
    fake::Fake,
    fixtures::{assert_sentence, floats, input},
    model::Request,
    reconcile::place::place,
};

/// Notes what the table says while files are being opened.
struct Witness {
    fake: Fake,
    table: Arc<Table>,
    ready_while_loading: Mutex<Vec<bool>>,
}

impl Backend for Witness {
    fn name(&self) -> String {
        self.fake.name()
    }
    fn devices(&self) -> Vec<Device> {
        self.fake.devices()
    }
    fn enter_worker(&self, device: Device) -> Box<dyn WorkerContext> {
        self.fake.enter_worker(device)
    }
    fn enter_loader(&self) {
        self.fake.enter_loader();
    }
    fn precheck(&self, file: &Path) -> Result<(), LoadError> {
        self.fake.precheck(file)
    }
    fn verify(&self, file: &Path) -> Result<(), LoadError> {
        self.fake.verify(file)
    }
    fn release_memory(&self, devices: &[Device]) {
        self.fake.release_memory(devices);
    }
    fn open(&self, file: PathBuf, config: &ModelConfig) -> Result<Box<dyn Opened>, LoadError> {
        let snapshot = self.table.snapshot();
        let version =
            file.parent().and_then(|dir| Version::from_dir_name(dir.file_name()?.to_str()?)).unwrap();
        assert_eq!(snapshot.routes[config.name.as_str()].versions[&version].name(), "LOADING");
        self.ready_while_loading.lock().unwrap().push(snapshot.ready());
        self.fake.open(file, config)
    }
}

/// A repository in a temporary directory, and what is served from it.
struct Server {
    root: tempfile::TempDir,
    gpus: u32,
    table: Arc<Table>,
}

impl Server {
    fn new(gpus: u32) -> Self {
        Self { root: tempfile::tempdir().unwrap(), gpus, table: Arc::default() }
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// One pass; gives back whether the server was ready at each file that was opened.
    fn run(&self) -> Vec<bool> {
        let table = Arc::clone(&self.table);
        let witness =
            Arc::new(Witness { fake: Fake::new(self.gpus), table, ready_while_loading: Mutex::default() });
        let backend: Arc<dyn Backend> = Arc::clone(&witness) as Arc<dyn Backend>;
        let pool = Pool::start(&backend, PoolSettings::new(2)).unwrap();
        let reaper = Reaper::start(Arc::clone(&backend)).unwrap();
        let settings = Settings {
            roots: vec![self.root.path().to_owned()],
            confine_symlinks: false,
            mode: Mode::Once,
            poll_interval: Duration::from_secs(5),
            load_threads: 1,
            missing_repository_timeout: Duration::from_secs(60),
            unload_timeout: Duration::from_secs(30),
        };
        let mut changes = self.table.watch();
        let _reconciler =
            Reconciler::start(settings, Parts { backend, pool, reaper, table: Arc::clone(&self.table) })
                .unwrap();
        let settled = async {
            while !self.table.snapshot().settled {
                changes.changed().await.unwrap()
            }
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(settled);
        std::mem::take(&mut *witness.ready_while_loading.lock().unwrap())
    }

    fn states(&self, model: &str) -> Vec<(u64, &'static str)> {
        let snapshot = self.table.snapshot();
        snapshot.routes[model].versions.iter().map(|(version, state)| (version.get(), state.name())).collect()
    }

    fn found(&self, model: &str, version: Option<u64>) -> Result<u64, Error> {
        let version = version.map(|number| Version::new(number).unwrap());
        self.table.get(model, version).map(|live| live.version.get())
    }
}

const ECHO: &str = "fake\nargument x tensor\n";

#[test]
fn what_is_on_disk_is_served() {
    let server = Server::new(0);
    server.write("m/1/model.pt", ECHO);
    server.run();
    let live = server.table.get("m", None).unwrap();
    let inputs = vec![input("x", floats(&[2], &[1.0, 2.0]))];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let answer = runtime.block_on(live.infer(Request { inputs, ..Request::default() })).unwrap();
    assert_eq!((&*answer[0].name, &answer[0].tensor.shape[..]), ("OUTPUT__0", &[2][..]));
}

#[test]
fn ready_only_after_the_first_pass() {
    let server = Server::new(0);
    server.write("a/1/model.pt", ECHO);
    server.write("b/1/model.pt", ECHO);
    assert!(!server.table.snapshot().ready());
    assert_eq!(server.run(), [false, false]);
    assert!(server.table.snapshot().ready());
    // A repository without models is served too.
    let empty = Server::new(0);
    empty.run();
    assert!(empty.table.snapshot().ready());
}

#[test]
fn a_broken_model_leaves_the_others_serving() {
    let server = Server::new(0);
    server.write("good/1/model.pt", ECHO);
    server.write("bad_file/1/model.pt", "not a script");
    server.write("bad_config/1/model.pt", ECHO);
    server.write("bad_config/config.yaml", "max_batch_sise: 3\n");
    server.write("bad_names/1/model.pt", "fake\nargument x tensor\nargument y tensor\n");
    server.write("bad_names/config.yaml", "inputs: [{name: x, dtype: FP32, shape: [1]}]\n");
    server.write("bad_device/1/model.pt", ECHO);
    server.write("bad_device/config.yaml", "instances: [{device: gpu}]\n");
    server.write("no_file/1/other.pt", ECHO);
    server.write("no_version/config.yaml", "max_batch_size: 0\n");
    server.run();
    assert!(server.table.snapshot().ready());
    assert_eq!(server.found("good", None), Ok(1));
    for (model, why) in [
        ("bad_file", "first line must be `fake`"),
        ("bad_config", "max_batch_sise"),
        ("bad_names", "no input leads to argument `y`"),
        ("bad_device", "found only cpu"),
        ("no_file", "model.pt"),
        ("no_version", "no version directory"),
    ] {
        match server.found(model, None) {
            Err(error @ Error::NoVersion { .. }) => {
                assert_sentence(&error.to_string(), &[model, "has no available versions: ", why]);
            }
            other => panic!("{model}: {other:?}"),
        }
        assert!(!server.table.snapshot().model_ready(model, None));
    }
}

#[test]
fn versions_by_policy_and_by_name() {
    let server = Server::new(0);
    for version in 1..=10 {
        server.write(&format!("newest/{version}/model.pt"), ECHO);
        server.write(&format!("all/{version}/model.pt"), ECHO);
        server.write(&format!("some/{version}/model.pt"), ECHO);
    }
    server.write("all/config.yaml", "versions: all\n");
    server.write("some/config.yaml", "versions: {specific: [3, 9, 12]}\n");
    server.write("all/10/model.pt", "broken");
    server.run();
    assert_eq!(server.states("newest"), [(10, "READY")], "by number, not by text");
    assert_eq!(server.found("newest", Some(10)), Ok(10));
    assert!(matches!(server.found("newest", Some(9)), Err(Error::VersionNotFound { .. })));
    // The newest that serves; the broken one is named where it is asked for.
    assert_eq!((server.found("all", None), server.found("all", Some(1))), (Ok(9), Ok(1)));
    assert!(
        matches!(server.found("all", Some(10)), Err(Error::NotReady { why, .. }) if why.contains("fake"))
    );
    assert_eq!(server.states("some"), [(3, "READY"), (9, "READY"), (12, "UNAVAILABLE")]);
    assert_eq!(server.found("some", None), Ok(9));
    assert!(
        matches!(server.found("some", Some(12)), Err(Error::NotReady { why, .. }) if why.contains("no directory '12'"))
    );
    assert!(matches!(server.found("some", Some(4)), Err(Error::VersionNotFound { .. })));
    assert!(matches!(server.found("none", Some(1)), Err(Error::ModelNotFound { .. })));
}

/// The devices and limits of a model with these `instances`.
fn placed(gpus: u32, instances: &str) -> Result<Vec<(Device, usize)>, LoadError> {
    let server = Server::new(gpus);
    server.write("m/config.yaml", instances);
    server.write("m/1/model.pt", ECHO);
    let backend: Arc<dyn Backend> = Arc::new(Fake::new(gpus));
    let pool = Pool::start(&backend, PoolSettings::new(4)).unwrap();
    let snapshot = scan(&[server.root.path().to_owned()]);
    let config = snapshot.models["m"].config.clone().unwrap();
    let places = place(&config, &pool)?;
    Ok(places.into_iter().map(|place| (pool.devices()[place.device], place.limit)).collect())
}

#[test]
fn instances_choose_the_devices() {
    use Device::{Cpu, Gpu};
    assert_eq!(placed(0, ""), Ok(vec![(Cpu, 4)]));
    assert_eq!(placed(2, ""), Ok(vec![(Gpu(0), 2), (Gpu(1), 2)]));
    assert_eq!(placed(0, "instances: 3"), Ok(vec![(Cpu, 3)]));
    assert_eq!(placed(2, "instances: 1"), Ok(vec![(Gpu(0), 1), (Gpu(1), 1)]));
    assert_eq!(placed(2, "instances: [{device: cpu, count: 2}]"), Ok(vec![(Cpu, 2)]));
    assert_eq!(placed(3, "instances: [{device: gpu, count: 1, gpus: [2]}]"), Ok(vec![(Gpu(2), 1)]));
    let two =
        "instances: [{device: cpu, count: 1}, {device: gpu, count: 2}, {device: gpu, count: 1, gpus: [1]}]";
    assert_eq!(placed(2, two), Ok(vec![(Cpu, 1), (Gpu(0), 2), (Gpu(1), 3)]));
    for (instances, wanted) in
        [("[{device: gpu, count: 1}]", "a GPU"), ("[{device: gpu, count: 1, gpus: [7]}]", "GPU 7")]
    {
        let Err(LoadError { reason: message, .. }) = placed(0, &format!("instances: {instances}")) else {
            panic!("{instances}")
        };
        assert_sentence(&message, &[wanted, "found only cpu", "`instances`"]);
    }
}

#[test]
fn the_newest_version_that_passes_is_served() {
    let server = Server::new(0);
    server.write("m/1/model.pt", ECHO);
    server.write("m/2/model.pt", ECHO);
    server.write("m/3/model.pt", "not a script");
    server.run();
    assert_eq!(server.states("m"), [(2, "READY"), (3, "UNAVAILABLE")]);
    assert_eq!(server.found("m", None), Ok(2));
    // Chosen by number there is no other to fall back on.
    let server = Server::new(0);
    server.write("m/2/model.pt", ECHO);
    server.write("m/3/model.pt", "not a script");
    server.write("m/config.yaml", "versions: {specific: [3]}\n");
    server.run();
    assert_eq!(server.states("m"), [(3, "UNAVAILABLE")]);
}
