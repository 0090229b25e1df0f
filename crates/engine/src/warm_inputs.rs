//! What a version is warmed with: the samples of its configuration, inputs made from it, or the shapes
//! that the version before it has served.

use half::{bf16, f16};
use sconce_repository::{Warmup, WarmupData, WarmupSample};
use tracing::debug;

use crate::{
    DataType,
    backend::LoadError,
    binding::{Binding, Spec},
    check::Input,
    examples::{Example, ExampleInput},
    model::LiveVersion,
    schema::ArgumentKind,
    value::{Tensor, element_count},
};

/// Inputs that nobody asked for are not made larger than this.
const MAX_MADE: usize = 256 << 20;

/// One input to warm up with.
pub(crate) struct Trial {
    /// What it is, for messages.
    pub(crate) name: String,
    pub(crate) inputs: Vec<Input>,
    /// It is run so often even when the runs have settled before.
    pub(crate) at_least: u32,
    /// What to do about a failure, where one means that the version must not serve; `None` where the
    /// input may be what is wrong.
    pub(crate) advice: Option<&'static str>,
}

/// All inputs to warm a version with.
///
/// # Errors
/// When a file of a sample cannot be used.
pub(crate) fn trials(live: &LiveVersion, examples: &[Example]) -> Result<Vec<Trial>, LoadError> {
    match &live.config.warmup {
        Warmup::Off => Ok(Vec::new()),
        Warmup::Samples(samples) => samples.iter().map(from_sample).collect(),
        Warmup::Auto => Ok(match from_binding(&live.binding) {
            Some(trial) => vec![trial],
            None => examples.iter().map(from_example).collect(),
        }),
    }
}

fn from_sample(sample: &WarmupSample) -> Result<Trial, LoadError> {
    let name = format!("warm-up sample '{}'", sample.name);
    let inputs = sample.inputs.iter().map(|(input, what)| {
        let shape = what.shape(sample.batch_size);
        let read = what.read(sample.batch_size).map_err(|why| LoadError::new(format!("{name}: {why}")))?;
        let tensor = match (read, &what.data) {
            (Some(bytes), _) => Some(Tensor::host(what.data_type, shape.clone(), bytes.into())),
            (None, WarmupData::Zero) => made(what.data_type, &shape, Fill::Zeros),
            (None, WarmupData::Random | WarmupData::File(_)) => made(what.data_type, &shape, Fill::Any),
        };
        let tensor = tensor.ok_or_else(|| {
            LoadError::new(format!(
                "{name}: its input '{input}' is larger than memory; give it a smaller shape"
            ))
        })?;
        Ok(Input { name: input.clone(), tensor })
    });
    let inputs = inputs.collect::<Result<_, LoadError>>()?;
    let advice = Some("correct the sample or the model");
    Ok(Trial { name, inputs, at_least: sample.count.get(), advice })
}

/// A batch of one, where the configuration tells every shape.
fn from_binding(binding: &Binding) -> Option<Trial> {
    if binding.open || binding.inputs.is_empty() {
        return None;
    }
    let mut total = 0usize;
    let mut inputs = Vec::with_capacity(binding.inputs.len());
    for slot in &binding.inputs {
        let Spec { data_type, dims, .. } = slot.spec.as_ref()?;
        let batch = (binding.max_batch_size > 0).then_some(1);
        let shape: Vec<i64> = batch.into_iter().chain(dims.iter().copied()).collect();
        total = total.checked_add(bytes(*data_type, &shape)?)?;
        if total > MAX_MADE {
            debug!(model = %binding.model, "not warmed: its inputs are too large to be made up");
            return None;
        }
        let tensor = made(*data_type, &shape, Fill::Harmless)?;
        inputs.push(Input { name: slot.name.to_string(), tensor });
    }
    let name = "input made from its configuration".to_owned();
    let advice = "correct the model or the configuration, or, if the model cannot take made-up inputs, give \
                  `warmup` samples or `warmup: off` in config.yaml";
    Some(Trial { name, inputs, at_least: 1, advice: takes_any_value(binding).then_some(advice) })
}

/// Whether a model of these inputs should take whatever is in them. A text, a number that means
/// something by itself, and inputs which need not be there together say more than their shape.
fn takes_any_value(binding: &Binding) -> bool {
    binding.inputs.iter().all(|slot| {
        let kind = &binding.arguments[slot.place.argument()].kind;
        slot.required && matches!(kind, ArgumentKind::Tensor | ArgumentKind::Tensors | ArgumentKind::Dict)
    })
}

fn from_example(example: &Example) -> Trial {
    let input = |input: &ExampleInput| {
        let ExampleInput { name, data_type, shape, scalar } = input;
        let tensor = match scalar {
            Some(data) => Tensor::host(*data_type, shape.clone(), data.clone()),
            None => made(*data_type, shape, Fill::Harmless)?,
        };
        Some(Input { name: name.clone(), tensor })
    };
    // One that cannot be made is missing, which the check of the call then says.
    let inputs = example.inputs.iter().filter_map(input).collect();
    let name = "shapes that the version before it has served".to_owned();
    Trial { name, inputs, at_least: 1, advice: None }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Zeros,
    /// What most models take: no zeros where a matrix may have to be inverted, and no integer but 0,
    /// which is an index that every table has.
    Harmless,
    /// Integers of 0 and 1.
    Any,
}

/// How many bytes the tensor has; `None` for a shape that is free or larger than memory.
fn bytes(data_type: DataType, shape: &[i64]) -> Option<usize> {
    element_count(shape)?.checked_mul(data_type.size().unwrap_or(4))
}

/// A tensor with made-up elements, the same each time; strings are empty.
fn made(data_type: DataType, shape: &[i64], fill: Fill) -> Option<Tensor> {
    use DataType::{
        Bf16, Bool, Bytes, Fp16, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64,
    };
    let mut data = vec![0; bytes(data_type, shape)?];
    let size = data_type.size().unwrap_or(4);
    let mut random = Random(0x5eed);
    let elements = data.chunks_exact_mut(size).filter(|_| fill != Fill::Zeros);
    match data_type {
        Fp64 => elements.for_each(|to| to.copy_from_slice(&random.unit().to_le_bytes())),
        Fp32 => elements.for_each(|to| to.copy_from_slice(&(random.unit() as f32).to_le_bytes())),
        Fp16 => elements.for_each(|to| to.copy_from_slice(&f16::from_f64(random.unit()).to_le_bytes())),
        Bf16 => elements.for_each(|to| to.copy_from_slice(&bf16::from_f64(random.unit()).to_le_bytes())),
        Bool | Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64 => {
            elements.filter(|_| fill == Fill::Any).for_each(|to| to[0] = u8::from(random.unit() < 0.5));
        }
        Bytes => {}
    }
    Some(Tensor::host(data_type, shape.to_vec(), data.into()))
}

/// The same sequence each time, so that a failure can be seen again: splitmix64.
struct Random(u64);

impl Random {
    /// In [0, 1), of so few bits that FP16 and BF16 hold it without rounding to 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from((mixed >> 56) as u8) / 256.0
    }
}

#[cfg(test)]
#[path = "warm_inputs_tests.rs"]
mod tests;
