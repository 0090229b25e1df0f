//! A raw configuration, from either format, to a checked one.

use std::{collections::BTreeSet, num::NonZeroU32, path::Path};

use super::{
    ConfigSource, InstanceGroup, InstanceKind, ModelConfig, TensorConfig, check_generate, check_padding,
    check_ragged, check_scheduling, check_sequence, check_warmup,
    error::Fault,
    files,
    raw::{
        RawConfig, RawDevice, RawInput, RawInstanceGroup, RawInstances, RawOutput, RawSequence, RawStrategy,
        RawVersions,
    },
    shape,
};
use crate::{Version, VersionPolicy, escape::one_line};

/// Triton's and the protocol's clients hold batch sizes in signed 32 bits.
const MAX_BATCH_SIZE: u32 = i32::MAX as u32;

/// No device runs this many at once, and no machine has this many cores to give to one run; a larger
/// number is a typing error.
const MAX_COUNT: u32 = 1024;

/// The names of fields in one of the formats, so that errors speak the language of the file.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) inputs: &'static str,
    pub(super) outputs: &'static str,
    pub(super) shape: &'static str,
    pub(super) data_type: &'static str,
    pub(super) latest: &'static str,
    pub(super) specific: &'static str,
    pub(super) instances: &'static str,
    pub(super) model_file: &'static str,
    pub(super) labels: &'static str,
    pub(super) pad: &'static str,
    pub(super) mask_of: &'static str,
    pub(super) unpad: &'static str,
    pub(super) ragged: check_ragged::Words,
    pub(super) threads: &'static str,
    pub(super) op_libraries: &'static str,
    pub(super) warmup: &'static str,
    pub(super) warmup_file: &'static str,
    pub(super) scheduling: check_scheduling::Words,
    pub(super) sequence: check_sequence::Words,
    pub(super) generate: check_generate::Words,
}

/// The words of `config.yaml`.
pub(super) const YAML: Words = Words {
    inputs: "inputs",
    outputs: "outputs",
    shape: "shape",
    data_type: "dtype",
    latest: "versions.latest",
    specific: "versions.specific",
    instances: "instances",
    model_file: "model_file",
    labels: "labels",
    pad: "pad",
    mask_of: "mask_of",
    unpad: "unpad",
    ragged: check_ragged::YAML,
    threads: "threads",
    op_libraries: "op_libraries",
    warmup: "warmup",
    warmup_file: "data.file",
    scheduling: check_scheduling::YAML,
    sequence: check_sequence::YAML,
    generate: check_generate::YAML,
};

/// The words of `config.pbtxt`.
pub(super) const TRITON: Words = Words {
    inputs: "input",
    outputs: "output",
    shape: "dims",
    data_type: "data_type",
    latest: "version_policy.latest.num_versions",
    specific: "version_policy.specific.versions",
    instances: "instance_group",
    model_file: "default_model_filename",
    labels: "label_filename",
    pad: "parameters[PAD]",
    mask_of: "parameters[MASK]",
    unpad: "parameters[UNPAD]",
    ragged: check_ragged::TRITON,
    threads: "parameters[INTRA_OP_THREAD_COUNT]",
    op_libraries: "model_operations.op_library_filename",
    warmup: "model_warmup",
    warmup_file: "input_data_file",
    scheduling: check_scheduling::TRITON,
    sequence: check_sequence::TRITON,
    generate: check_generate::TRITON,
};

/// The words of `config.pbtxt` where batches are made of sequences.
pub(super) const TRITON_OLDEST: Words = Words { scheduling: check_scheduling::TRITON_OLDEST, ..TRITON };

/// Checks everything that a configuration says about the model called `name` in `dir`, and reads the
/// files that it names. Its source is for the caller to fill in.
pub(super) fn check(raw: RawConfig, dir: &Path, name: &str, words: &Words) -> Result<ModelConfig, Fault> {
    check_name(raw.name.as_deref(), name)?;
    check_platform(raw.platform.as_deref())?;
    check_batch(&raw, words)?;
    files::check_model_file(&raw.model_file, words.model_file)?;
    let op_libraries = files::op_libraries(dir, &raw.op_libraries, words.op_libraries)?;
    let padding = check_padding::Asked::of(&raw.inputs, &raw.outputs);
    let ragged = check_ragged::Asked::of(&raw.inputs, &raw.outputs);
    let mut inputs = inputs(raw.inputs, words)?;
    let mut outputs = outputs(raw.outputs, dir, words)?;
    check_padding::apply(padding, raw.max_batch_size, &mut inputs, &mut outputs, words)?;
    check_ragged::apply(&ragged, raw.max_batch_size, &mut inputs, &mut outputs, words)?;
    let batch_inputs = check_ragged::batch_inputs(raw.batch_inputs, raw.max_batch_size, &inputs, words)?;
    let model = check_warmup::Model { dir, max_batch_size: raw.max_batch_size, inputs: &inputs };
    let warmup = check_warmup::check(raw.warmup, &model, words)?;
    let scheduling = &words.scheduling;
    let is_direct = |sequence: &&RawSequence| sequence.strategy == RawStrategy::Direct;
    let batching = if let Some(sequence) = raw.sequence.as_ref().filter(|sequence| is_direct(sequence)) {
        let max_delay = sequence.max_delay.unwrap_or_default().0;
        check_sequence::direct_batching(&raw.batching, raw.max_batch_size, max_delay, words)?
    } else {
        // What a module keeps of a sequence is no concern of the others in its batch.
        let stateful = raw.stateful && raw.sequence.is_none();
        check_scheduling::batching(raw.batching, raw.max_batch_size, stateful, scheduling)?
    };
    let queue = check_scheduling::queue(raw.queue, scheduling)?;
    check_scheduling::check_order(batching.as_ref(), &queue, scheduling)?;
    let model = check_sequence::Model { dir, inputs: &inputs, outputs: &outputs };
    let sequences = raw.sequence.map(|raw| check_sequence::check(raw, &model, words)).transpose()?;
    let model = check_generate::Model {
        max_batch_size: raw.max_batch_size,
        stateful: raw.stateful,
        has_sequences: sequences.is_some(),
        inputs: &inputs,
        outputs: &outputs,
    };
    let generate = raw.generate.map(|raw| check_generate::check(raw, &model, words)).transpose()?;

    let config = ModelConfig {
        name: name.to_owned(),
        max_batch_size: raw.max_batch_size,
        inputs,
        batch_inputs,
        outputs,
        version_policy: version_policy(raw.versions, words)?,
        instances: instances(raw.instances, words)?,
        batching,
        queue,
        weight: check_scheduling::weight(raw.weight, scheduling)?,
        availability: raw.availability,
        warmup,
        model_file: raw.model_file,
        threads: raw.threads.map(|threads| count(threads, words.threads)).transpose()?,
        optimize: raw.optimize,
        inference_mode: raw.inference_mode,
        optimized_execution: raw.optimized_execution,
        // Where nothing of a sequence is kept outside, it is kept inside.
        stateful: raw.stateful || sequences.as_ref().is_some_and(|sequences| sequences.states.is_empty()),
        sequences,
        generate,
        op_libraries,
        source: ConfigSource::Default,
        notes: Vec::new(),
    };
    check_ragged::check_together(&config, words)?;
    Ok(config)
}

fn check_name(written: Option<&str>, name: &str) -> Result<(), Fault> {
    match written {
        None | Some("") => Ok(()),
        Some(written) if written == name => Ok(()),
        Some(written) => Err(Fault::at(
            "name",
            format!(
                "`{}` is not the name of the directory, which is the model's name: write `{}` or \
                 leave it out",
                one_line(written),
                one_line(name)
            ),
        )),
    }
}

fn check_platform(platform: Option<&str>) -> Result<(), Fault> {
    match platform {
        None | Some("pytorch_libtorch") => Ok(()),
        Some(other) => Err(Fault::at(
            "platform",
            format!(
                "`{}` is not served, only TorchScript models are: write `pytorch_libtorch` or leave it out",
                one_line(other)
            ),
        )),
    }
}

fn check_batch(raw: &RawConfig, words: &Words) -> Result<(), Fault> {
    let fault = |message: String| Err(Fault::at("max_batch_size", message));
    if raw.max_batch_size > MAX_BATCH_SIZE {
        return fault(format!("{} is too large: at most {MAX_BATCH_SIZE} is allowed", raw.max_batch_size));
    }
    if raw.max_batch_size > 0 && raw.inputs.is_empty() {
        return fault(format!(
            "{} says that every tensor has a batch dimension, and without shapes nobody knows which \
             dimension that is: give `{}` with their shapes, or leave max_batch_size out",
            raw.max_batch_size, words.inputs
        ));
    }
    Ok(())
}

fn inputs(raw: Vec<RawInput>, words: &Words) -> Result<Vec<TensorConfig>, Fault> {
    check_names(raw.iter().map(|input| input.name.as_str()), words.inputs)?;
    let check = |(index, input): (usize, RawInput)| {
        check_shapes(&input.shape, input.reshape.as_deref(), &format!("{}[{index}]", words.inputs), words)?;
        Ok(TensorConfig {
            name: input.name,
            data_type: input.dtype,
            dims: input.shape,
            reshape: input.reshape,
            optional: input.optional,
            labels: None,
            padding: None,
        })
    };
    raw.into_iter().enumerate().map(check).collect()
}

fn outputs(raw: Vec<RawOutput>, dir: &Path, words: &Words) -> Result<Vec<TensorConfig>, Fault> {
    check_names(raw.iter().map(|output| output.name.as_str()), words.outputs)?;
    let check = |(index, output): (usize, RawOutput)| {
        let key = format!("{}[{index}]", words.outputs);
        check_shapes(&output.shape, output.reshape.as_deref(), &key, words)?;
        let label_key = format!("{key}.{}", words.labels);
        let labels = output.labels.map(|file| files::read_labels(dir, &file, &label_key)).transpose()?;
        Ok(TensorConfig {
            name: output.name,
            data_type: output.dtype,
            dims: output.shape,
            reshape: output.reshape,
            optional: false,
            labels,
            padding: None,
        })
    };
    raw.into_iter().enumerate().map(check).collect()
}

fn check_names<'a>(names: impl Iterator<Item = &'a str>, key: &str) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        let key = format!("{key}[{index}].name");
        if name.is_empty() {
            return Err(Fault::at(key, "is empty or missing: write the name that clients use"));
        }
        if !seen.insert(name) {
            return Err(Fault::at(
                key,
                format!("`{}` is already the name of another one: names must differ", one_line(name)),
            ));
        }
    }
    Ok(())
}

fn check_shapes(dims: &[i64], reshape: Option<&[i64]>, key: &str, words: &Words) -> Result<(), Fault> {
    shape::check(dims, &format!("{key}.{}", words.shape))?;
    let Some(reshape) = reshape else { return Ok(()) };
    let key = format!("{key}.reshape");
    shape::check(reshape, &key)?;
    shape::check_reshape(dims, reshape, &key, words.shape)
}

fn version_policy(raw: RawVersions, words: &Words) -> Result<VersionPolicy, Fault> {
    match raw {
        RawVersions::All => Ok(VersionPolicy::All),
        RawVersions::Latest(count) => match NonZeroU32::new(count) {
            Some(count) => Ok(VersionPolicy::Latest(count)),
            None => Err(Fault::at(words.latest, "0 would serve nothing: write 1 or more")),
        },
        RawVersions::Specific(numbers) => specific(&numbers, words.specific).map(VersionPolicy::Specific),
    }
}

fn specific(numbers: &[u64], key: &str) -> Result<Vec<Version>, Fault> {
    if numbers.is_empty() {
        return Err(Fault::at(key, "an empty list would serve nothing: name at least one version"));
    }
    let mut seen = BTreeSet::new();
    let mut versions = Vec::with_capacity(numbers.len());
    for (index, number) in numbers.iter().enumerate() {
        let key = format!("{key}[{index}]");
        let Some(version) = Version::new(*number) else {
            return Err(Fault::at(key, "there is no version 0: versions are numbered from 1"));
        };
        if !seen.insert(version) {
            return Err(Fault::at(key, format!("version {version} is named twice: name it once")));
        }
        versions.push(version);
    }
    Ok(versions)
}

fn instances(raw: RawInstances, words: &Words) -> Result<Vec<InstanceGroup>, Fault> {
    match raw {
        RawInstances::Count(number) => {
            let count = count(number, words.instances)?;
            Ok(vec![InstanceGroup { kind: InstanceKind::Auto, count, gpus: Vec::new() }])
        }
        RawInstances::Groups(groups) => {
            let check = |(index, group)| instance_group(group, &format!("{}[{index}]", words.instances));
            groups.into_iter().enumerate().map(check).collect()
        }
    }
}

fn instance_group(raw: RawInstanceGroup, key: &str) -> Result<InstanceGroup, Fault> {
    let kind = match raw.device {
        RawDevice::Auto => InstanceKind::Auto,
        RawDevice::Cpu => InstanceKind::Cpu,
        RawDevice::Gpu => InstanceKind::Gpu,
    };
    let gpus_key = format!("{key}.gpus");
    if kind == InstanceKind::Cpu && !raw.gpus.is_empty() {
        return Err(Fault::at(gpus_key, "a group on the CPU has no GPUs: leave them out, or choose the GPU"));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = raw.gpus.iter().find(|gpu| !seen.insert(**gpu)) {
        return Err(Fault::at(
            gpus_key,
            format!("GPU {twice} is listed twice: list it once and raise `count`"),
        ));
    }
    Ok(InstanceGroup { kind, count: count(raw.count, &format!("{key}.count"))?, gpus: raw.gpus })
}

fn count(count: u32, key: &str) -> Result<NonZeroU32, Fault> {
    number(count, MAX_COUNT, key)
}

/// A number from 1 to this limit.
pub(super) fn number(number: u32, limit: u32, key: &str) -> Result<NonZeroU32, Fault> {
    NonZeroU32::new(number)
        .filter(|number| number.get() <= limit)
        .ok_or_else(|| Fault::at(key, format!("a number from 1 to {limit} is expected, not {number}")))
}
