//! What the tests of this crate are made of: configs, schemas, tensors, requests, and a house with live
//! versions in it.

use std::{
    future::{Future, poll_fn},
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use sconce_repository::{
    Availability, Batching, ConfigSource, Generate, ModelConfig, Queueing, TensorConfig, Version,
    VersionPolicy, Warmup,
};

use crate::{
    DataType, Error,
    backend::Backend,
    binding::Binding,
    check::Input,
    fake::Fake,
    model::{LiveVersion, NamedOutput, Request},
    pool::{Pool, PoolSettings, Watch},
    reaper::Reaper,
    scheduler::Placement,
    schema::{Argument, ArgumentKind, Return, Schema},
    value::{Tensor, push_string},
};

pub(crate) fn config(
    max_batch_size: u32,
    inputs: Vec<TensorConfig>,
    outputs: Vec<TensorConfig>,
) -> ModelConfig {
    ModelConfig {
        name: "m".to_owned(),
        max_batch_size,
        inputs,
        batch_inputs: Vec::new(),
        outputs,
        version_policy: VersionPolicy::default(),
        instances: Vec::new(),
        batching: (max_batch_size > 0).then(Batching::default),
        queue: Queueing::default(),
        weight: NonZeroU32::MIN,
        availability: Availability::default(),
        warmup: Warmup::default(),
        model_file: "model.pt".to_owned(),
        threads: None,
        optimize: false,
        inference_mode: true,
        optimized_execution: true,
        stateful: false,
        sequences: None,
        generate: None,
        op_libraries: Vec::new(),
        source: ConfigSource::Default,
        notes: Vec::new(),
    }
}

/// Of a model that generates: its first output is fed and sent.
pub(crate) fn generate(states: &[&str]) -> Generate {
    Generate {
        states: states.iter().map(|state| (*state).to_owned()).collect(),
        feed: "OUTPUT__0".to_owned(),
        send: vec!["OUTPUT__0".to_owned()],
        stop_flag: None,
        stop_value: None,
        max_steps: NonZeroU32::MIN,
        collect: false,
    }
}

/// An input or output of a config.
pub(crate) fn named(name: &str, data_type: DataType, dims: &[i64]) -> TensorConfig {
    TensorConfig {
        name: name.to_owned(),
        data_type,
        dims: dims.to_vec(),
        reshape: None,
        optional: false,
        labels: None,
        padding: None,
    }
}

pub(crate) fn optional(input: TensorConfig) -> TensorConfig {
    TensorConfig { optional: true, ..input }
}

pub(crate) fn reshaped(tensor: TensorConfig, reshape: &[i64]) -> TensorConfig {
    TensorConfig { reshape: Some(reshape.to_vec()), ..tensor }
}

/// `forward`, its arguments as `name` or, with a default, `name?`.
pub(crate) fn forward(arguments: &[(&str, ArgumentKind)]) -> Schema {
    returning(arguments, Return::Unknown)
}

pub(crate) fn returning(arguments: &[(&str, ArgumentKind)], returns: Return) -> Schema {
    let arguments = arguments
        .iter()
        .map(|(name, kind)| Argument {
            name: name.trim_end_matches('?').to_owned(),
            kind: kind.clone(),
            optional: name.ends_with('?'),
            keys: Vec::new(),
        })
        .collect();
    Schema { arguments, returns }
}

/// One tensor in, the given returned; whatever is asked must fit.
pub(crate) fn bind(config: &ModelConfig, schema: &Schema) -> Binding {
    Binding::new(config, schema).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn zeros(data_type: DataType, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let size = data_type.size().unwrap_or(4);
    Tensor::host(data_type, shape.to_vec(), vec![0; usize::try_from(count).unwrap() * size].into())
}

pub(crate) fn floats(shape: &[i64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::host(DataType::Fp32, shape.to_vec(), data.into())
}

pub(crate) fn texts(shape: &[i64], elements: &[&str]) -> Tensor {
    let mut data = Vec::new();
    for element in elements {
        push_string(&mut data, element.as_bytes());
    }
    Tensor::host(DataType::Bytes, shape.to_vec(), data.into())
}

pub(crate) fn input(name: &str, tensor: Tensor) -> Input {
    Input { name: name.to_owned(), tensor }
}

/// The sentence of an [`Error::InvalidInput`]: one line, and with all of these in it.
#[track_caller]
pub(crate) fn assert_invalid<T: std::fmt::Debug>(result: crate::Result<T>, parts: &[&str]) {
    match result {
        Err(Error::InvalidInput(message)) => assert_sentence(&message, parts),
        other => panic!("InvalidInput with {parts:?} is expected, not {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_sentence(message: &str, parts: &[&str]) {
    assert!(!message.chars().any(char::is_control), "one line is expected: {message:?}");
    assert!(message.len() < 4000, "a sentence is expected, not {} bytes", message.len());
    for part in parts {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
}

/// A fake backend, its workers and its reaper.
pub(crate) struct House {
    pub(crate) fake: Arc<Fake>,
    pub(crate) pool: Pool,
    pub(crate) reaper: Reaper,
}

impl House {
    pub(crate) fn new(cores: usize, gpus: u32) -> Self {
        Self::with(PoolSettings::new(cores), gpus)
    }

    pub(crate) fn with(settings: PoolSettings, gpus: u32) -> Self {
        Self::watched(settings, gpus, Watch::default())
    }

    pub(crate) fn watched(settings: PoolSettings, gpus: u32, watch: Watch) -> Self {
        let fake = Arc::new(Fake::new(gpus));
        let backend: Arc<dyn Backend> = Arc::clone(&fake) as Arc<dyn Backend>;
        let pool = Pool::start_watched(&backend, settings, watch).unwrap();
        pool.wait_idle();
        let reaper = Reaper::start(backend).unwrap();
        Self { fake, pool, reaper }
    }

    /// A model that takes one tensor `x` and returns it, after what the script says. On each device
    /// by its index, with so many runs at once.
    pub(crate) fn model(
        &self,
        script: &str,
        config: ModelConfig,
        places: &[(usize, usize)],
    ) -> Arc<LiveVersion> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.pt");
        std::fs::write(&file, format!("fake\nargument x tensor\n{script}\n")).unwrap();
        let opened = self.fake.open(file, &config).unwrap();
        let places = places.iter().map(|&(device, limit)| Placement { device, limit }).collect();
        let (config, version) = (Arc::new(config), Version::new(1).unwrap());
        Arc::new(LiveVersion::open(&*opened, &config, version, places, &self.pool, &self.reaper).unwrap())
    }

    pub(crate) fn on_cpu(&self, script: &str) -> Arc<LiveVersion> {
        self.model(script, config(0, Vec::new(), Vec::new()), &[(0, usize::MAX)])
    }

    pub(crate) fn started(&self) -> usize {
        self.fake.started().values().sum()
    }
}

pub(crate) fn request(value: f32) -> Request {
    Request { inputs: vec![input("x", floats(&[1], &[value]))], ..Request::default() }
}

pub(crate) fn value(answer: crate::Result<Vec<NamedOutput>>) -> f32 {
    f32::from_le_bytes(answer.unwrap()[0].tensor.bytes().try_into().unwrap())
}

pub(crate) type Answer<'a> = Pin<Box<dyn Future<Output = crate::Result<Vec<NamedOutput>>> + Send + 'a>>;

/// A call that has been submitted and has no answer yet.
pub(crate) async fn waiting(model: &LiveVersion, request: Request) -> Answer<'_> {
    let mut call: Answer<'_> = Box::pin(model.infer(request));
    let first = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
    assert!(first.is_pending(), "{first:?}");
    call
}

/// The requests of it that were given up: why, where, and how many.
pub(crate) fn given_up(model: &LiveVersion) -> Vec<(&'static str, &'static str, u64)> {
    model.stats().dropped().filter(|(.., count)| *count > 0).collect()
}
