//! Histograms count what they are given, and numbers go with their versions.

use super::*;

#[test]
fn a_bucket_holds_what_is_at_most_its_bound() {
    let histogram = Buckets::of(&[Duration::from_nanos(20), Duration::from_nanos(10)]).histogram();
    for value in [0, 10, 11, 20, 21] {
        histogram.record(value, 1);
    }
    histogram.record(10, 3);
    let counts = histogram.counts();
    assert_eq!(counts.buckets, [(10, 5), (20, 7)]);
    assert_eq!((counts.count, counts.sum), (8, 92));
    assert_eq!(histogram.total(), (8, 92));
}

#[test]
fn a_version_goes_on_counting_when_it_is_loaded_again_and_is_forgotten_when_it_is_gone() {
    let stats = Stats::default();
    let (model, one) = (Arc::<str>::from("m"), Version::new(1).unwrap());
    let first = stats.version(&model, one);
    first.ended(Reason::Ok, Duration::from_millis(1), 3);
    stats.load(&model, LoadOutcome::Loaded, Some(Duration::from_secs(1)));
    assert_eq!(stats.version(&model, one).outcome(Reason::Ok), 1);
    // A request still holds it.
    stats.forget(&Snapshot::default());
    assert_eq!(stats.versions().len(), 1);
    assert!(stats.loads().is_empty(), "no model is there any more");
    drop(first);
    stats.forget(&Snapshot::default());
    assert!(stats.versions().is_empty());
}

#[test]
fn every_reason_has_a_place_and_a_name_of_its_own() {
    for (index, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
    }
    let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
}

#[test]
fn what_is_told_apart_is_bounded() {
    let stats = VersionStats::new(&Buckets::durations());
    for number in 0..5_000 {
        stats.response(number, Duration::ZERO, |counts, _| counts.success += 1);
    }
    assert_eq!(stats.by_response().len(), 1024);
}
