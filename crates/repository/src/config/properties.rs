//! What holds for any configuration: both formats say the same, and no text is too strange to answer.

use std::{fmt::Write, fs, num::NonZeroU32};

use proptest::{collection::vec, option, prelude::*, sample};
use tempfile::TempDir;

use super::*;
use crate::Version;

mod padding;
mod ragged;
mod scheduling;
mod stateful;

const LABELS: &str = "zero\none\n";

/// Any string, also what needs quoting; names that clients could not send are not asked for.
fn any_name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z_]{1,8}", "\\PC{1,8}", "[\"'\\\\\n\t#:\\[{]{1,4}"]
}

fn any_dims() -> impl Strategy<Value = Vec<i64>> {
    vec(prop_oneof![Just(-1_i64), 1_i64..=64], 1..5)
}

/// A shape and perhaps another one with as many elements.
fn any_shapes() -> impl Strategy<Value = (Vec<i64>, Option<Vec<i64>>)> {
    prop_oneof![
        any_dims().prop_map(|dims| (dims, None)),
        Just((vec![1, 1], Some(vec![]))),
        (any_dims(), any::<sample::Index>()).prop_map(|(dims, at)| {
            let mut reshape = dims.clone();
            reshape.insert(at.index(dims.len() + 1), 1);
            (dims, Some(reshape))
        }),
    ]
}

fn any_tensors(is_input: bool) -> impl Strategy<Value = Vec<TensorConfig>> {
    let tensor = (any_name(), sample::select(&DataType::ALL), any_shapes(), any::<bool>());
    vec(tensor, 1..4).prop_map(move |tensors| {
        let tensor = |(index, (name, data_type, (dims, reshape), extra))| TensorConfig {
            name: format!("{name}{index}"),
            data_type,
            dims,
            reshape,
            optional: is_input && extra,
            labels: (!is_input && extra).then(|| Labels {
                file: "labels.txt".to_owned(),
                lines: LABELS.lines().map(str::to_owned).collect(),
            }),
            padding: None,
        };
        tensors.into_iter().enumerate().map(tensor).collect()
    })
}

fn any_policy() -> impl Strategy<Value = VersionPolicy> {
    prop_oneof![
        (1_u32..).prop_map(|count| VersionPolicy::Latest(NonZeroU32::new(count).unwrap())),
        Just(VersionPolicy::All),
        prop::collection::hash_set(1..i64::MAX as u64, 1..5).prop_map(|numbers| VersionPolicy::Specific(
            numbers.into_iter().filter_map(Version::new).collect()
        )),
    ]
}

fn any_group() -> impl Strategy<Value = InstanceGroup> {
    let kind = sample::select(vec![InstanceKind::Auto, InstanceKind::Cpu, InstanceKind::Gpu]);
    (kind, 1_u32..=1024, prop::collection::btree_set(0_u32..16, 0..4)).prop_map(|(kind, count, gpus)| {
        InstanceGroup {
            kind,
            count: NonZeroU32::new(count).unwrap(),
            gpus: if kind == InstanceKind::Cpu { Vec::new() } else { gpus.into_iter().collect() },
        }
    })
}

/// How samples differ: the size of the batch, if there is one, the count, and what each input is.
type Seed = (String, u32, u32, Vec<u8>);

fn any_seed() -> impl Strategy<Value = Seed> {
    (any_name(), 1_u32..=2, 1_u32..=10_000, vec(any::<u8>(), 3))
}

/// A sample that fits the model; the paths of its files are relative, see [`placed`].
fn sample((name, batch_size, count, seeds): Seed, config: &ModelConfig) -> WarmupSample {
    let input = |(input, seed): (&TensorConfig, u8)| {
        let free = i64::from(seed % 3);
        let dims = input.dims.iter().map(|dim| if *dim == -1 { free } else { *dim }).collect();
        let data = match seed / 3 % 3 {
            0 => WarmupData::Zero,
            1 => WarmupData::Random,
            _ => WarmupData::File(format!("{seed} of {}.bin", input.data_type).into()),
        };
        (input.name.clone(), WarmupInput { data_type: input.data_type, dims, data })
    };
    let left_out = |(input, seed): &(&TensorConfig, u8)| input.optional && seed % 2 == 0;
    let inputs = config.inputs.iter().zip(seeds).filter(|input| !left_out(input)).map(input).collect();
    let batch_size = batch_size.min(config.max_batch_size);
    WarmupSample { name, batch_size, count: NonZeroU32::new(count).unwrap(), inputs }
}

/// The configuration with its files for warming up in this directory, each with one row.
fn placed(mut config: ModelConfig, dir: &TempDir) -> ModelConfig {
    stateful::place(&config, dir);
    let Warmup::Samples(samples) = &mut config.warmup else { return config };
    let place = dir.path().join("warmup");
    fs::create_dir_all(&place).unwrap();
    for (index, input) in samples.iter_mut().flat_map(|sample| sample.inputs.values_mut()).enumerate() {
        let elements: i64 = input.dims.iter().product();
        let size = elements * i64::try_from(input.data_type.size().unwrap_or(4)).unwrap();
        if let WarmupData::File(path) = &mut input.data {
            *path = place.join(format!("{index} {}", path.display()));
            fs::File::create(path).unwrap().set_len(size.try_into().unwrap()).unwrap();
        }
    }
    config
}

/// Any configuration that both formats can express.
fn any_config() -> impl Strategy<Value = ModelConfig> {
    let words = sample::select(vec![Availability::Keep, Availability::Replace]);
    let model = (any_model(), scheduling::any_seed(), padding::any_seed(), stateful::any_seed());
    let model = (model, ragged::any_seed());
    (model, words, vec(any_seed(), 0..3), any::<bool>()).prop_map(
        |(((config, scheduling, padding, stateful), ragged), availability, seeds, off)| {
            let config = scheduling::scheduled(scheduling, padding::padded(&padding, config));
            let config = ragged::ragged(ragged, stateful::with_state(stateful, config));
            let samples: Vec<_> = seeds.into_iter().map(|seed| sample(seed, &config)).collect();
            let warmup = match (samples.is_empty(), off) {
                (false, _) => Warmup::Samples(samples),
                (true, true) => Warmup::Off,
                (true, false) => Warmup::Auto,
            };
            ModelConfig { availability, warmup, ..config }
        },
    )
}

/// The part that has nothing to do with change and scheduling.
fn any_model() -> impl Strategy<Value = ModelConfig> {
    let placement = (any_policy(), vec(any_group(), 0..3), option::of(1_u32..=1024));
    let modes = (any::<bool>(), any::<bool>());
    let model_file = "[a-z \"']{1,8}\\.pt";
    (0..=i32::MAX as u32, any_tensors(true), any_tensors(false), placement, modes, model_file).prop_map(
        |(max_batch_size, inputs, outputs, (version_policy, instances, threads), modes, model_file)| {
            ModelConfig {
                name: "m".to_owned(),
                max_batch_size,
                inputs,
                batch_inputs: Vec::new(),
                outputs,
                version_policy,
                instances,
                batching: None,
                queue: Queueing::default(),
                weight: NonZeroU32::MIN,
                availability: Availability::Keep,
                warmup: Warmup::Auto,
                model_file,
                threads: threads.and_then(NonZeroU32::new),
                optimize: false,
                inference_mode: modes.0,
                optimized_execution: modes.1,
                stateful: false,
                sequences: None,
                generate: None,
                op_libraries: vec!["/opt/ops.so".into()],
                source: ConfigSource::Default,
                notes: Vec::new(),
            }
        },
    )
}

/// The configuration as `config.yaml`, by way of JSON, which YAML contains.
fn to_yaml(config: &ModelConfig) -> String {
    let tensor = |tensor: &TensorConfig, is_input: bool| {
        let mut fields = serde_json::json!({
            "name": tensor.name, "dtype": tensor.data_type.name(),
            "shape": tensor.dims,
            "reshape": tensor.reshape,
        });
        if is_input {
            fields["optional"] = padding::says_optional(tensor).into();
        } else if let Some(labels) = &tensor.labels {
            fields["labels"] = labels.file.clone().into();
        }
        padding::to_yaml(tensor, &mut fields);
        fields
    };
    let versions = match &config.version_policy {
        VersionPolicy::All => serde_json::json!("all"),
        VersionPolicy::Latest(count) => serde_json::json!({ "latest": count }),
        VersionPolicy::Specific(versions) => {
            let numbers = versions.iter().map(|version| version.get());
            serde_json::json!({ "specific": numbers.collect::<Vec<_>>() })
        }
    };
    let group = |group: &InstanceGroup| {
        let device = match group.kind {
            InstanceKind::Auto => "auto",
            InstanceKind::Cpu => "cpu",
            InstanceKind::Gpu => "gpu",
        };
        serde_json::json!({ "device": device, "count": group.count, "gpus": group.gpus })
    };
    let input = |input: &WarmupInput| {
        let data = match &input.data {
            WarmupData::Zero => serde_json::json!("zero"),
            WarmupData::Random => serde_json::json!("random"),
            WarmupData::File(path) => serde_json::json!({ "file": path.file_name().unwrap().to_str() }),
        };
        serde_json::json!({ "dtype": input.data_type.name(), "shape": input.dims, "data": data })
    };
    let sample = |sample: &WarmupSample| {
        let inputs: serde_json::Map<_, _> =
            sample.inputs.iter().map(|(name, value)| (name.clone(), input(value))).collect();
        let batch_size = (sample.batch_size > 0).then_some(sample.batch_size);
        serde_json::json!({
            "name": sample.name, "batch_size": batch_size, "count": sample.count, "inputs": inputs
        })
    };
    let warmup = match &config.warmup {
        Warmup::Auto => serde_json::json!("auto"),
        Warmup::Off => serde_json::json!("off"),
        Warmup::Samples(samples) => samples.iter().map(sample).collect(),
    };
    let mut fields = serde_json::json!({
        "availability": format!("{:?}", config.availability).to_lowercase(),
        "warmup": warmup, "name": config.name,
        "max_batch_size": config.max_batch_size,
        "inputs": config.inputs.iter().map(|input| tensor(input, true)).collect::<Vec<_>>(),
        "outputs": config.outputs.iter().map(|output| tensor(output, false)).collect::<Vec<_>>(),
        "versions": versions,
        "instances": config.instances.iter().map(group).collect::<Vec<_>>(),
        "model_file": config.model_file,
        "threads": config.threads,
        "inference_mode": config.inference_mode,
        "optimized_execution": config.optimized_execution,
        "op_libraries": config.op_libraries,
    });
    ragged::to_yaml(config, &mut fields);
    scheduling::to_yaml(config, &mut fields);
    serde_yaml::to_string(&fields).unwrap() + &stateful::to_yaml(config)
}

fn quoted(text: &str) -> String {
    let escaped: String = text.bytes().map(|byte| format!("\\{byte:03o}")).collect();
    format!("\"{escaped}\"")
}

/// The configuration as `config.pbtxt`.
fn to_pbtxt(config: &ModelConfig) -> String {
    let mut text = format!("name: \"m\" max_batch_size: {}\n", config.max_batch_size);
    for (field, tensors) in [("input", &config.inputs), ("output", &config.outputs)] {
        for tensor in tensors {
            let data_type =
                if tensor.data_type == DataType::Bytes { "STRING" } else { tensor.data_type.name() };
            let (name, dims) = (quoted(&tensor.name), &tensor.dims);
            write!(text, "{field} [ {{ name: {name} data_type: TYPE_{data_type} dims: {dims:?}").unwrap();
            if let Some(shape) = &tensor.reshape {
                write!(text, " reshape {{ shape: {shape:?} }}").unwrap();
            }
            if padding::says_optional(tensor) {
                text.push_str(" optional: true");
            }
            if tensor.padding == Some(Padding::Ragged) {
                text.push_str(" allow_ragged_batch: true");
            }
            if let Some(labels) = &tensor.labels {
                write!(text, " label_filename: {}", quoted(&labels.file)).unwrap();
            }
            text.push_str(" } ]\n");
        }
    }
    match &config.version_policy {
        VersionPolicy::All => text.push_str("version_policy { all { } }\n"),
        VersionPolicy::Latest(count) => {
            writeln!(text, "version_policy {{ latest {{ num_versions: {count} }} }}").unwrap();
        }
        VersionPolicy::Specific(versions) => {
            let numbers: Vec<u64> = versions.iter().map(|version| version.get()).collect();
            writeln!(text, "version_policy {{ specific {{ versions: {numbers:?} }} }}").unwrap();
        }
    }
    for group in &config.instances {
        let kind = format!("{:?}", group.kind).to_uppercase();
        let InstanceGroup { count, gpus, .. } = group;
        writeln!(text, "instance_group {{ kind: KIND_{kind} count: {count} gpus: {gpus:?} }}").unwrap();
    }
    writeln!(text, "default_model_filename: {}", quoted(&config.model_file)).unwrap();
    let mut parameter = |key: &str, value: String| {
        writeln!(text, "parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}").unwrap();
    };
    if let Some(threads) = config.threads {
        parameter("INTRA_OP_THREAD_COUNT", threads.to_string());
    }
    parameter("INFERENCE_MODE", config.inference_mode.to_string());
    parameter("DISABLE_OPTIMIZED_EXECUTION", (!config.optimized_execution).to_string());
    parameter("AVAILABILITY", format!("{:?}", config.availability));
    if config.warmup == Warmup::Off {
        parameter("WARMUP", "off".to_owned());
    }
    if let Warmup::Samples(samples) = &config.warmup {
        samples.iter().for_each(|sample| sample_to_pbtxt(sample, &mut text));
    }
    padding::to_pbtxt(config, &mut text);
    ragged::to_pbtxt(config, &mut text);
    scheduling::to_pbtxt(config, &mut text);
    stateful::to_pbtxt(config, &mut text);
    text.push_str("model_operations { op_library_filename: \"/opt/ops.so\" }\n");
    text
}

fn sample_to_pbtxt(sample: &WarmupSample, text: &mut String) {
    let (name, batch_size) = (quoted(&sample.name), sample.batch_size.max(1));
    write!(text, "model_warmup {{ name: {name} batch_size: {batch_size} count: {}", sample.count).unwrap();
    for (name, input) in &sample.inputs {
        let data_type = if input.data_type == DataType::Bytes { "STRING" } else { input.data_type.name() };
        let data = match &input.data {
            WarmupData::Zero => "zero_data: true".to_owned(),
            WarmupData::Random => "random_data: true".to_owned(),
            WarmupData::File(path) => {
                format!("input_data_file: {}", quoted(path.file_name().unwrap().to_str().unwrap()))
            }
        };
        let (name, dims) = (quoted(name), &input.dims);
        let value = format!("data_type: TYPE_{data_type} dims: {dims:?} {data}");
        write!(text, " inputs {{ key: {name} value {{ {value} }} }}").unwrap();
    }
    text.push_str(" }\n");
}

fn model_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("labels.txt"), LABELS).unwrap();
    dir
}

/// Pieces of both formats, so that random text gets deeper into the parsers than the first letter.
fn any_pieces() -> impl Strategy<Value = String> {
    let words = "inputs input outputs name dtype shape versions instances dims reshape latest parameters \
        key value string_value warmup data model_warmup availability batching dynamic_batching \
        queue levels sequence states controls sequence_batching control_input initial_state generate batch_inputs ends_of batch_input target_name max_delay 18446744073709551615s999ms1ms optimization cuda graph_spec 0x \
        1e999 99999999999999999999 FP32 TYPE_FP32 true e";
    let signs = [
        "{\"input\":",
        "\"dims\":",
        ":",
        ": ",
        " ",
        "\n",
        "\n  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "<",
        ">",
        ",",
        ";",
        "\"",
        "'",
        "\\",
        "#",
        "&a",
        "*a",
        "<<",
        "!!x",
        "|",
        "---\n",
        "~",
        "-1",
        "ä",
        "\u{0}",
        "\u{2028}",
        "[a/b.c]",
        ".",
    ];
    let pieces: Vec<&str> = words.split(' ').chain(signs).collect();
    vec(prop_oneof![4 => sample::select(pieces).prop_map(str::to_owned), 1 => any::<String>()], 0..40)
        .prop_map(|pieces| pieces.concat())
}

/// The answer to any text is a configuration or a sentence on one line.
fn answers(dir: &TempDir, text: &str) {
    let results =
        [from_yaml(text, dir.path(), "m"), pbtxt::load(text, dir.path(), "m").map(|(config, _)| config)];
    let in_files =
        results.into_iter().filter_map(Result::err).map(|fault| fault.in_file(Path::new("config")));
    for error in in_files.chain(ModelConfig::from_json(text, dir.path(), "m").err()) {
        let text = error.to_string();
        assert!(!text.chars().any(char::is_control) && text.len() < 4000, "{text:?}");
    }
}

proptest! {
    #[test]
    fn both_formats_say_what_was_meant(config in any_config()) {
        let dir = model_dir();
        let config = placed(config, &dir);
        let (yaml, pbtxt) = (to_yaml(&config), to_pbtxt(&config));
        let from_yaml = from_yaml(&yaml, dir.path(), "m");
        prop_assert_eq!(from_yaml.map_err(|fault| fault.message), Ok(config.clone()), "{}", yaml);
        let from_pbtxt = pbtxt::load(&pbtxt, dir.path(), "m").map(|(config, _)| config);
        prop_assert_eq!(from_pbtxt.map_err(|fault| fault.message), Ok(config), "{}", pbtxt);
    }

    #[test]
    fn json_says_what_the_file_said(config in any_config()) {
        let dir = model_dir();
        // A request names no libraries.
        let config = ModelConfig { op_libraries: Vec::new(), ..placed(config, &dir) };
        let text = to_pbtxt(&config).replace("model_operations { op_library_filename: \"/opt/ops.so\" }", "");
        let (from_pbtxt, message) = pbtxt::load(&text, dir.path(), "m").map_err(|fault| fault.message).unwrap();
        prop_assert_eq!(&from_pbtxt, &config, "{}", text);
        let json = pbtxt::to_json(&text);
        let from_json = ModelConfig::from_json(&json, dir.path(), "m");
        let expected = ModelConfig { source: ConfigSource::Override { message }, ..config };
        prop_assert_eq!(from_json, Ok(expected), "{}", json);
    }

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        answers(&model_dir(), &text);
    }

    #[test]
    fn any_text_of_the_right_pieces_is_answered(text in any_pieces()) {
        answers(&model_dir(), &text);
    }

    #[test]
    fn a_valid_text_that_was_damaged_is_answered(
        config in any_config(),
        cut in any::<sample::Index>(),
        inserted in any_pieces(),
    ) {
        let dir = model_dir();
        let config = placed(config, &dir);
        let pbtxt = to_pbtxt(&config);
        for mut text in [to_yaml(&config), pbtxt::to_json(&pbtxt), pbtxt] {
            let at = cut.index(text.len());
            let at = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.insert_str(at, &inserted);
            answers(&dir, &text);
        }
    }
}
