//! What the server says about a model, and what that means for inputs and outputs.

use sconce_proto::inference::{ModelConfig, ModelMetadataResponse};
use sconce_repository::DataType;

/// A model as its server describes it. Both descriptions may be missing.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) metadata: ModelMetadataResponse,
    /// `None` where the server does not tell its configuration.
    pub(super) config: Option<ModelConfig>,
}

/// What is known of an input before it is built.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Expected {
    pub(super) data_type: Option<DataType>,
    pub(super) shape: Option<Vec<i64>>,
    /// Whether the first dimension is the batch; `None` where nobody says.
    pub(super) batched: Option<bool>,
}

impl Model {
    /// Whether nobody wrote down names, dtypes and shapes: the model takes what it can.
    fn open(&self) -> bool {
        self.metadata.inputs.is_empty() || self.config.as_ref().is_some_and(|config| config.input.is_empty())
    }

    /// Whether that may be so: models without a config show their arguments as FP32 of shape [-1], which
    /// a config may say too. The server's word is waited for then.
    fn perhaps_open(&self) -> bool {
        let tensors = self.metadata.inputs.iter().chain(&self.metadata.outputs);
        self.config.as_ref().is_none_or(|config| config.max_batch_size == 0)
            && tensors.map(|tensor| &tensor.shape[..]).all(|shape| shape == [-1])
    }

    /// Whether the metadata has an input of this name.
    pub(super) fn has_input(&self, name: &str) -> bool {
        self.metadata.inputs.iter().any(|input| input.name == name)
    }

    /// What an input must be; `None` where there is no such input.
    pub(super) fn expected(&self, name: &str) -> Option<Expected> {
        let input = self.metadata.inputs.iter().find(|input| input.name == name);
        let data_type = input.and_then(|input| DataType::from_name(&input.datatype));
        let loose = self.open() || self.perhaps_open();
        // FP32 then stands for any dtype; the others are what the model takes.
        let data_type = data_type.filter(|&known| !loose || known != DataType::Fp32);
        let batched = self.config.as_ref().map(|config| config.max_batch_size > 0);
        match input {
            Some(input) if !self.open() => {
                Some(Expected { data_type, shape: Some(input.shape.clone()), batched })
            }
            Some(_) | None if loose => Some(Expected { data_type, ..Expected::default() }),
            Some(_) | None => None,
        }
    }

    /// The names of the outputs that have labels.
    pub(super) fn labelled(&self) -> Vec<&str> {
        let outputs = self.config.iter().flat_map(|config| &config.output);
        outputs
            .filter(|output| !output.label_filename.is_empty())
            .map(|output| output.name.as_str())
            .collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use sconce_proto::inference::{ModelInput, ModelOutput, model_metadata_response::TensorMetadata};

    use super::*;

    /// A model with one input, and one output `scores`.
    pub(in super::super) fn model(input: &str, datatype: &str, shape: &[i64], max_batch_size: i32) -> Model {
        let tensor = |name: &str| TensorMetadata {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
        };
        Model {
            metadata: ModelMetadataResponse {
                name: "m".to_owned(),
                inputs: vec![tensor(input)],
                outputs: vec![tensor("scores"), tensor("other")],
                ..Default::default()
            },
            config: Some(ModelConfig {
                max_batch_size,
                input: vec![ModelInput { name: input.to_owned(), ..Default::default() }],
                output: vec![ModelOutput {
                    name: "scores".to_owned(),
                    label_filename: "labels.txt".to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        }
    }

    #[test]
    fn a_model_without_a_config_is_open() {
        let mut open = model("x", "FP32", &[-1], 0);
        assert!(!open.open() && open.perhaps_open());
        assert_eq!(open.expected("x").unwrap().data_type, None, "FP32 of [-1] may be anything");
        assert_eq!(open.expected("anything"), Some(Expected::default()));
        if let Some(config) = &mut open.config {
            config.input.clear();
        }
        assert!(open.open());
        assert_eq!(open.expected("anything"), Some(Expected::default()));
        open.metadata.inputs[0].datatype = "INT64".to_owned();
        assert_eq!(open.expected("x").unwrap().data_type, Some(DataType::Int64));
        assert!(Model::default().open());
    }

    #[test]
    fn what_the_config_says_of_batches_and_labels_is_known() {
        let mut model = model("x", "UINT8", &[-1, 4], 8);
        assert_eq!(
            model.expected("x").unwrap(),
            Expected { data_type: Some(DataType::Uint8), shape: Some(vec![-1, 4]), batched: Some(true) }
        );
        assert_eq!(model.expected("y"), None);
        assert_eq!(model.labelled(), ["scores"]);
        model.config = None;
        assert_eq!(model.expected("x").unwrap().batched, None);
        assert!(model.labelled().is_empty() && !model.open());
    }
}
