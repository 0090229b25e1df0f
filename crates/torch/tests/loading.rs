//! Real TorchScript models from a file to a warm version and back to the system.
#![cfg(feature = "define")]
#![allow(clippy::unwrap_used)] // tests, all of it

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use sconce_engine::{
    DataType, ModelConfig, Version,
    backend::{Backend, Device, LoadError},
    binding::Binding,
    check::Input,
    model::{LiveVersion, Request},
    pool::{Pool, PoolSettings},
    reaper::Reaper,
    scheduler::Placement,
    value::Tensor,
    warm::{Warmed, warm},
};
use sconce_torch::{Torch, define};

/// A repository with one model, `m`, and what runs it.
struct House {
    root: tempfile::TempDir,
    backend: Arc<dyn Backend>,
    pool: Pool,
    reaper: Reaper,
}

impl House {
    fn new(source: &str, parameters: &[&str], config: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("m/1")).unwrap();
        fs::write(root.path().join("m/config.yaml"), config).unwrap();
        let backend: Arc<dyn Backend> = Arc::new(Torch::new());
        let pool = Pool::start(&backend, PoolSettings::new(2)).unwrap();
        let reaper = Reaper::start(Arc::clone(&backend)).unwrap();
        let house = Self { root, backend, pool, reaper };
        define(source, parameters, &house.file()).unwrap();
        house
    }

    fn file(&self) -> PathBuf {
        self.root.path().join("m/1/model.pt")
    }

    fn config(&self) -> ModelConfig {
        let snapshot = sconce_repository::scan(&[self.root.path().to_owned()]);
        snapshot.models["m"].config.clone().unwrap_or_else(|error| panic!("{error}"))
    }

    fn load(&self) -> Result<Arc<LiveVersion>, LoadError> {
        let config = Arc::new(self.config());
        self.backend.precheck(&self.file())?;
        let opened = self.backend.open(self.file(), &config)?;
        let (places, version) = (vec![Placement { device: 0, limit: 1 }], Version::new(1).unwrap());
        let live = LiveVersion::open(&*opened, &config, version, places, &self.pool, &self.reaper)?;
        Ok(Arc::new(live))
    }

    fn warm(&self, live: &LiveVersion) -> Result<Vec<Warmed>, LoadError> {
        warm(&self.pool, live, &[], true, &AtomicBool::new(false))
    }

    fn retire(&self, live: Arc<LiveVersion>) -> Receiver<()> {
        let (sender, freed) = channel();
        self.reaper.retire(live, Duration::MAX, Box::new(move || sender.send(()).unwrap()));
        freed
    }
}

/// FP32 of one dimension in, its first output's elements back.
async fn ask(live: &LiveVersion, x: &[f32]) -> Vec<f32> {
    let data: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = Tensor::host(DataType::Fp32, vec![x.len() as i64], data.into());
    let inputs = vec![Input { name: "x".to_owned(), tensor }];
    let answer = live.infer(Request { inputs, ..Request::default() }).await.unwrap();
    let elements = answer[0].tensor.bytes().chunks_exact(4);
    elements.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn floats(input: usize, output: usize) -> String {
    format!(
        "inputs: [{{name: x, dtype: FP32, shape: [{input}]}}]\noutputs: [{{name: y, dtype: FP32, shape: [{output}]}}]\n"
    )
}

#[tokio::test]
async fn a_version_is_warmed_and_answers() {
    let source = "def forward(self, x):\n    return torch.relu(torch.matmul(x, self.w))\n";
    let house = House::new(source, &["w:3x2"], &floats(3, 2));
    let live = house.load().unwrap();
    let done = house.warm(&live).unwrap();
    assert_eq!((done.len(), done[0].device), (1, Device::Cpu));
    assert!((3..=20).contains(&done[0].runs), "{done:?}");
    assert_eq!(ask(&live, &[1.0, 2.0, 3.0]).await.len(), 2);
    house.retire(live).recv().unwrap();
}

#[test]
fn a_version_that_throws_or_answers_otherwise_than_promised_is_refused_before_it_serves() {
    let source = "def forward(self, x):\n    return torch.matmul(x, self.w)\n";
    for (config, part) in
        [(floats(4, 2), "cannot be multiplied"), (floats(3, 5), "its configuration says [5]")]
    {
        let house = House::new(source, &["w:3x2"], &config);
        let refused = house.warm(&house.load().unwrap()).unwrap_err().reason;
        assert!(refused.contains(part) && refused.contains("`warmup: off`"), "{refused}");
        assert!(!refused.contains('\n'), "{refused}");
    }
}

/// Counts its runs.
const COUNTER: &str = "def forward(self, x):\n    self.count.add_(1)\n    return x * 0 + self.count\n";

#[tokio::test]
async fn warming_leaves_no_trace_in_a_model_that_keeps_state() {
    let house = House::new(COUNTER, &["buffer count:1"], &format!("{}stateful: true\n", floats(1, 1)));
    let fresh = ask(&house.load().unwrap(), &[0.0]).await[0];
    let live = house.load().unwrap();
    assert!(house.warm(&live).unwrap()[0].runs >= 3);
    let first = ask(&live, &[0.0]).await[0];
    let second = ask(&live, &[0.0]).await[0];
    assert_eq!((first, second), (fresh, fresh + 1.0), "it has been run as often as one that was not warmed");
}

#[tokio::test]
async fn other_limits_keep_the_state_of_a_model() {
    let house = House::new(COUNTER, &["buffer count:1"], &format!("{}stateful: true\n", floats(1, 1)));
    let old = house.load().unwrap();
    let first = ask(&old, &[0.0]).await[0];
    let binding = Binding::new(&old.config, &old.schema).unwrap();
    let places = [Placement { device: 0, limit: 2 }];
    let new = Arc::new(old.reconfigured(Arc::clone(&old.config), binding, &places).unwrap());
    house.retire(old).recv().unwrap();
    assert_eq!(ask(&new, &[0.0]).await[0], first + 1.0);
}

#[tokio::test]
async fn a_file_that_is_overwritten_in_place_does_not_change_what_serves() {
    let source = "def forward(self, x):\n    return x + self.w\n";
    let house = House::new(source, &["w:300000"], &floats(1, 300_000));
    let live = house.load().unwrap();
    let before = ask(&live, &[0.0]).await;
    let file = house.file();
    let noise: Vec<u8> = fs::read(&file).unwrap().iter().map(|byte| !byte).collect();
    fs::write(&file, noise).unwrap();
    assert_eq!(ask(&live, &[0.0]).await, before);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(file.to_str().unwrap()), "weights are read into memory, not mapped");
}

#[test]
fn a_precheck_tells_a_copy_that_goes_on_from_a_wrong_file() {
    let house = House::new("def forward(self, x):\n    return x\n", &[], &floats(1, 1));
    let check = |path: &Path| house.backend.precheck(path).map_err(|error| error.waiting);
    let file = house.file();
    assert_eq!(check(&file), Ok(()));
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(check(&file), Err(true));
    let Err(error) = house.load() else { panic!("half a file is not loaded") };
    assert!(error.waiting && error.reason.contains("is incomplete"), "{error}");
    fs::write(&file, "import torch").unwrap();
    assert_eq!(check(&file), Err(false));
    assert_eq!(check(&house.root.path().join("m/2/model.pt")), Err(true));
}

/// In megabytes.
fn resident() -> f64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0 / 1e6
}

#[test]
fn memory_goes_back_to_the_system_when_a_version_is_freed() {
    // Depends on the input, or freezing would fold it.
    let source = "def forward(self, x):\n    return (x * self.w).sum()\n";
    // Larger than all that the tests beside this one may take meanwhile.
    let house = House::new(source, &["w:50000000"], "");
    let live = house.load().unwrap();
    let loaded = resident();
    house.retire(live).recv().unwrap();
    let freed = resident();
    assert!(loaded - freed > 100.0, "{freed} MB are resident of {loaded} with 200 MB of weights");
}
