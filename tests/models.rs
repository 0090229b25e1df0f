//! Real TorchScript models through the wire: every kind of signature, with the numbers it must give.
#![cfg(feature = "torch")]

mod arguments;
mod faults;
mod names;
mod outputs;
mod padding;
mod ragged;
mod running;
mod shapes;
mod stateful;
mod strings;
mod versions;

use sconce_proto::inference::{
    ModelInferResponse, RepositoryIndexRequest, repository_index_response::ModelIndex,
};

use crate::harness::{Repo, Server, as_fp32, fp32, output};

/// An input of a request: name, datatype, shape, raw contents.
pub(crate) type Input<'a> = (&'a str, &'a str, &'a [i64], Vec<u8>);

/// A repository of models at version 1: name, source, and `config.yaml` unless it is empty.
pub(crate) fn models(models: &[(&str, &str, &str)]) -> Repo {
    let repo = Repo::new();
    for (name, source, config) in models {
        repo.script(&format!("{name}/1/model.pt"), source, &[]);
        if !config.is_empty() {
            repo.file(&format!("{name}/config.yaml"), config);
        }
    }
    repo
}

/// An FP32 input.
pub(crate) fn floats<'a>(name: &'a str, shape: &'a [i64], values: &[f32]) -> Input<'a> {
    (name, "FP32", shape, fp32(values))
}

/// The elements of an output that must be FP32 and of this shape.
#[track_caller]
pub(crate) fn values(response: &ModelInferResponse, name: &str, shape: &[i64]) -> Vec<f32> {
    let (datatype, got, data) = output(response, name);
    assert_eq!((datatype, got), ("FP32", shape), "{name}");
    as_fp32(data)
}

/// The names of a response's outputs, in their order.
pub(crate) fn names(response: &ModelInferResponse) -> Vec<&str> {
    response.outputs.iter().map(|output| output.name.as_str()).collect()
}

/// The rows of a model in the repository index.
pub(crate) async fn index(server: &Server, model: &str) -> Vec<ModelIndex> {
    let index = server.client().await.repository_index(RepositoryIndexRequest::default()).await;
    let rows = index.expect("an index").into_inner().models;
    rows.into_iter().filter(|row| row.name == model).collect()
}

/// Asserts that a model does not serve, for a reason of one line that has all these parts.
#[track_caller]
pub(crate) fn unavailable(rows: &[ModelIndex], parts: &[&str]) {
    let [row] = rows else { panic!("one row is expected: {rows:?}") };
    assert_eq!(row.state, "UNAVAILABLE", "{row:?}");
    assert!(!row.reason.is_empty() && !row.reason.contains('\n'), "{:?}", row.reason);
    for part in parts {
        assert!(row.reason.contains(part), "{part:?} is not in: {}", row.reason);
    }
}
