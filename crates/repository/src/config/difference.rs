//! What has to be done when the configuration of a model changes.

use super::{Labels, ModelConfig, TensorConfig};

/// What a change of configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// Nothing: no one can tell the two apart, wherever they were read from.
    None,
    /// The weights that are loaded go on serving, under other limits and with another text.
    InPlace,
    /// The versions have to be loaded again.
    Reload,
}

impl ModelConfig {
    /// What has to be done so that a model that is served as `self` says is served as `new` says.
    ///
    /// Whatever decides how weights are read, placed and rewritten, or what `forward` is checked
    /// against, asks for a reload, because that is where it is checked: a version that does not fit the
    /// new configuration must not serve under it, and the old one must go on. What only says how many
    /// runs there are at once and where, which versions are chosen, what is done at the next change,
    /// or what is shown to clients, holds for weights that are already there. (When other instances ask
    /// for a device on which the weights are not, they have to be loaded there all the same; that is
    /// for whoever knows the devices.)
    ///
    /// Where the text came from is no difference, but what it said beyond the fields is: the ModelConfig
    /// RPC shows it.
    pub fn difference(&self, new: &Self) -> Difference {
        // Every field is named here, so that a new one is not forgotten.
        let Self {
            name,
            max_batch_size,
            inputs,
            batch_inputs,
            outputs,
            version_policy,
            instances,
            batching,
            queue,
            weight,
            availability,
            warmup,
            model_file,
            threads,
            optimize,
            inference_mode,
            optimized_execution,
            stateful,
            sequences,
            generate,
            op_libraries,
            source,
            notes,
        } = self;
        let same_model = *name == new.name
            && *max_batch_size == new.max_batch_size
            && same_tensors(inputs, &new.inputs)
            && *batch_inputs == new.batch_inputs
            && same_tensors(outputs, &new.outputs)
            && *model_file == new.model_file
            && *optimize == new.optimize
            && *inference_mode == new.inference_mode
            && *optimized_execution == new.optimized_execution
            && *stateful == new.stateful
            && *sequences == new.sequences
            && *generate == new.generate
            && *op_libraries == new.op_libraries;
        if !same_model {
            return Difference::Reload;
        }
        let same_service = *version_policy == new.version_policy
            && *instances == new.instances
            && *batching == new.batching
            && *queue == new.queue
            && *weight == new.weight
            && *availability == new.availability
            && *warmup == new.warmup
            && *threads == new.threads
            && *notes == new.notes
            && source.message() == new.source.message()
            && labels(inputs).eq(labels(&new.inputs))
            && labels(outputs).eq(labels(&new.outputs));
        if same_service { Difference::None } else { Difference::InPlace }
    }
}

/// Whether they are the same but for the text of their labels, which `forward` knows nothing of.
fn same_tensors(old: &[TensorConfig], new: &[TensorConfig]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(old, new)| same_tensor(old, new))
}

fn same_tensor(old: &TensorConfig, new: &TensorConfig) -> bool {
    let TensorConfig { name, data_type, dims, reshape, optional, labels: _, padding } = old;
    *name == new.name
        && *data_type == new.data_type
        && *dims == new.dims
        && *reshape == new.reshape
        && *optional == new.optional
        && *padding == new.padding
}

fn labels(tensors: &[TensorConfig]) -> impl Iterator<Item = Option<&Labels>> {
    tensors.iter().map(|tensor| tensor.labels.as_ref())
}

#[cfg(test)]
#[path = "difference_tests.rs"]
mod tests;
