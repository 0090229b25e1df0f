//! Ragged batches, as Triton's fields, where its file does not say it itself.

use sconce_proto::inference::{self as pb, batch_input, batch_output};
use sconce_repository::{BatchInput, BatchInputKind, ModelConfig, Padding, TensorConfig};

/// Shows what is ragged, made and scattered; what a file in Triton's format says stands there already.
pub(super) fn show(config: &ModelConfig, shown: &mut pb::ModelConfig) {
    for (shown, input) in shown.input.iter_mut().zip(&config.inputs) {
        shown.allow_ragged_batch = input.padding == Some(Padding::Ragged);
    }
    if shown.batch_input.is_empty() {
        shown.batch_input = config.batch_inputs.iter().map(made).collect();
    }
    if shown.batch_output.is_empty() {
        shown.batch_output = config.outputs.iter().filter_map(scattered).collect();
    }
}

fn made(input: &BatchInput) -> pb::BatchInput {
    use batch_input::Kind;
    pb::BatchInput {
        kind: match input.kind {
            BatchInputKind::Counts => Kind::BatchElementCount,
            BatchInputKind::Ends => Kind::BatchAccumulatedElementCount,
            BatchInputKind::Offsets => Kind::BatchAccumulatedElementCountWithZero,
            BatchInputKind::Longest => Kind::BatchMaxElementCountAsShape,
            BatchInputKind::Shapes => Kind::BatchItemShape,
            BatchInputKind::FlatShapes => Kind::BatchItemShapeFlatten,
        }
        .into(),
        target_name: vec![input.name.clone()],
        data_type: super::data_type(input.data_type).into(),
        source_input: vec![input.source.clone()],
    }
}

fn scattered(output: &TensorConfig) -> Option<pb::BatchOutput> {
    let Some(Padding::ScatterLike(source)) = &output.padding else { return None };
    Some(pb::BatchOutput {
        target_name: vec![output.name.clone()],
        kind: batch_output::Kind::BatchScatterWithInputShape.into(),
        source_input: vec![source.clone()],
    })
}
