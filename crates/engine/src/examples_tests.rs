//! What is kept of requests, and what is not.

use super::*;
use crate::{
    fixtures::{House, bind, config, floats, forward, input, request, texts, value, zeros},
    value::Tensor,
};

fn example(binding: &Binding, inputs: &[Input]) -> Example {
    Example::of(binding, inputs).unwrap()
}

#[test]
fn shapes_and_scalars_are_kept_and_nothing_else() {
    let schema = forward(&[
        ("x", ArgumentKind::Tensor),
        ("texts", ArgumentKind::Strings),
        ("k", ArgumentKind::Int),
        ("secret", ArgumentKind::Str),
    ]);
    let binding = bind(&config(0, Vec::new(), Vec::new()), &schema);
    let k = Tensor::host(DataType::Int32, vec![1], vec![7, 0, 0, 0].into());
    let inputs = [
        input("x", floats(&[1, 2], &[0.25, 0.5])),
        input("texts", texts(&[1], &["private"])),
        input("k", k),
        input("secret", texts(&[1], &["private"])),
    ];
    let kept = example(&binding, &inputs).inputs;
    let shown: Vec<_> = kept.iter().map(|input| (&*input.name, input.data_type, &*input.shape)).collect();
    assert_eq!(
        shown,
        [
            ("x", DataType::Fp32, &[1, 2][..]),
            ("texts", DataType::Bytes, &[1]),
            ("k", DataType::Int32, &[1]),
            ("secret", DataType::Bytes, &[1]),
        ]
    );
    let scalars: Vec<_> = kept.iter().map(|input| input.scalar.as_deref()).collect();
    assert_eq!(scalars, [None, None, Some(&[7, 0, 0, 0][..]), None]);
}

#[test]
fn what_is_too_large_is_not_kept() {
    let schema = forward(&[("x", ArgumentKind::Tensors), ("k", ArgumentKind::Int)]);
    let binding = bind(&config(0, Vec::new(), Vec::new()), &schema);
    let many: Vec<_> =
        (0..=MAX_INPUTS).map(|index| input(&format!("x__{index}"), floats(&[1], &[1.0]))).collect();
    assert!(Example::of(&binding, &many).is_none());
    assert!(Example::of(&binding, &many[1..]).is_some());
    let large = Tensor::host(DataType::Fp32, vec![1 << 40], Bytes::new());
    assert!(Example::of(&binding, &[input("x", large)]).is_none());
    assert!(Example::of(&binding, &[input(&"x".repeat(MAX_NAMES + 1), floats(&[1], &[1.0]))]).is_none());
    assert!(Example::of(&binding, &[input("k", zeros(DataType::Int64, &[1000]))]).is_none());
}

#[test]
fn the_first_and_each_1024th_are_looked_at_and_the_latest_four_kept() {
    let schema = forward(&[("x", ArgumentKind::Tensor)]);
    let binding = bind(&config(0, Vec::new(), Vec::new()), &schema);
    let examples = Examples::default();
    for request in 0..EACH as i64 * 6 + 1 {
        let looked_at = examples.due();
        assert_eq!(looked_at, request % EACH as i64 == 0, "{request}");
        let shape = [1, request / EACH as i64];
        examples.served(looked_at.then(|| example(&binding, &[input("x", zeros(DataType::Fp32, &shape))])));
    }
    let shapes = || examples.list().iter().map(|example| example.inputs[0].shape[1]).collect::<Vec<_>>();
    assert_eq!(shapes(), [3, 4, 5, 6]);
    // One that comes again is kept once, and longest.
    examples.served(Some(example(&binding, &[input("x", zeros(DataType::Fp32, &[1, 4]))])));
    assert_eq!(shapes(), [3, 5, 6, 4]);
}

#[tokio::test]
async fn only_what_was_answered_is_an_example() {
    let house = House::new(1, 0);
    let broken = house.on_cpu("fail always");
    assert!(broken.infer(request(1.0)).await.is_err());
    assert_eq!(broken.examples(), []);
    let good = house.on_cpu("");
    assert!(good.infer(crate::model::Request::default()).await.is_err());
    assert_eq!(good.examples(), []);
    assert_eq!(value(good.infer(request(1.0)).await), 1.0);
    assert_eq!(good.examples()[0].inputs[0].shape, [1]);
}
