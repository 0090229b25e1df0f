//! What settings hold for whom, after which changes.

use proptest::prelude::*;

use super::{MODELS, Settings, Values};

fn values(pairs: &[(&str, &[&str])]) -> Values {
    let owned = |list: &&[&str]| list.iter().map(|value| (*value).to_owned()).collect();
    pairs.iter().map(|(name, list)| ((*name).to_owned(), owned(list))).collect()
}

/// Level, rate and count.
fn shown(settings: &Settings, model: Option<&str>) -> [String; 3] {
    let shown = settings.show(model);
    ["trace_level", "trace_rate", "trace_count"].map(|name| shown[name][0].clone())
}

/// How many of so many requests are traced.
fn taken(settings: &Settings, model: &str, requests: u128) -> usize {
    (0..requests).filter(|id| settings.on(Some(model)) && settings.takes(model, *id)).count()
}

#[test]
fn what_a_model_has_of_its_own_holds_and_the_rest_is_as_for_all() {
    let settings = Settings::new(0.5);
    assert_eq!(shown(&settings, None), ["TIMESTAMPS", "2", "-1"]);
    settings.change(Some("a"), &values(&[("trace_rate", &["3"])])).expect("a change");
    settings.change(None, &values(&[("trace_rate", &["5"]), ("trace_level", &["OFF"])])).expect("a change");
    assert_eq!(shown(&settings, None), ["OFF", "5", "-1"]);
    assert_eq!(shown(&settings, Some("a")), ["OFF", "3", "-1"]);
    assert_eq!(shown(&settings, Some("b")), ["OFF", "5", "-1"]);
    assert_eq!(taken(&settings, "a", 30), 0);
    settings.change(Some("a"), &values(&[("trace_level", &["TIMESTAMPS"])])).expect("a change");
    assert_eq!(taken(&settings, "a", 30), 10);
    assert_eq!(taken(&settings, "b", 30), 0);
}

#[test]
fn an_empty_list_clears_a_models_setting_to_that_of_all_and_that_of_all_to_the_flags() {
    let settings = Settings::new(0.01);
    settings.change(None, &values(&[("trace_rate", &["7"]), ("trace_count", &["4"])])).expect("a change");
    settings.change(Some("a"), &values(&[("trace_rate", &["9"])])).expect("a change");
    settings.change(Some("a"), &values(&[("trace_rate", &[])])).expect("a change");
    assert_eq!(shown(&settings, Some("a")), ["TIMESTAMPS", "7", "4"]);
    let clear: Vec<_> = ["trace_file", "trace_level", "trace_rate", "trace_count", "log_frequency"]
        .map(|name| (name, &[][..]))
        .to_vec();
    settings.change(None, &values(&clear)).expect("a change");
    assert_eq!(shown(&settings, None), ["TIMESTAMPS", "100", "-1"]);
}

#[test]
fn what_a_model_has_of_its_own_goes_with_it() {
    let settings = Settings::new(1.0);
    for model in ["a", "b"] {
        settings.change(Some(model), &values(&[("trace_rate", &["9"])])).expect("a change");
    }
    settings.change(None, &values(&[("trace_rate", &["7"])])).expect("a change");
    settings.keep(|model| model == "b");
    assert_eq!(["a", "b"].map(|model| shown(&settings, Some(model))[1].clone()), ["7", "9"]);
}

#[test]
fn a_count_bounds_what_its_scope_traces() {
    let settings = Settings::new(1.0);
    settings.change(None, &values(&[("trace_count", &["3"])])).expect("a change");
    settings.change(Some("own"), &values(&[("trace_count", &["2"])])).expect("a change");
    assert_eq!(taken(&settings, "own", 10), 2);
    assert_eq!(taken(&settings, "a", 2) + taken(&settings, "b", 10), 3);
    assert_eq!(shown(&settings, None)[2], "0");
    settings.change(None, &values(&[("trace_count", &["-1"])])).expect("a change");
    assert_eq!(taken(&settings, "a", 10), 10);
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    let settings = Settings::new(1.0);
    let cases: &[(&str, &[&str], &str)] = &[
        ("trace_level", &["LOUD"], "OFF or TIMESTAMPS is expected"),
        ("trace_level", &["TIMESTAMPS", "TENSORS"], "cannot be TENSORS"),
        ("trace_level", &["OFF", "TIMESTAMPS"], "has 2 values"),
        ("trace_rate", &["-1"], "is '-1': a whole number"),
        ("trace_rate", &["1", "2"], "has 2 values"),
        ("trace_rate", &["4294967296"], "a whole number"),
        ("trace_count", &["-2"], "-1 for no bound"),
        ("trace_count", &["many"], "'many'"),
        ("trace_file", &["trace.json"], "'trace_file' cannot be changed"),
        ("log_frequency", &["5"], "'log_frequency' cannot be changed"),
        ("trace_mode", &["triton"], "'trace_mode' cannot be changed"),
        ("trace_colour", &["red"], "'trace_colour' is no trace setting"),
        ("trace_colour", &[], "'trace_colour' is no trace setting"),
        ("line\nbreak", &["x"], "'line\\nbreak' is no trace setting"),
    ];
    for (name, list, expected) in cases {
        let asked = values(&[("trace_count", &["9"]), (name, list)]);
        let refused = settings.change(None, &asked).expect_err(name);
        assert!(refused.contains(expected), "{refused}");
        assert!(!refused.contains('\n'), "{refused}");
        assert_eq!(shown(&settings, None), ["TIMESTAMPS", "1", "-1"], "{name}");
    }
}

#[test]
fn what_is_shown_can_be_sent_back() {
    let settings = Settings::new(1.0);
    settings.change(None, &settings.show(None)).expect("no change");
    assert_eq!(shown(&settings, None), ["TIMESTAMPS", "1", "-1"]);
}

#[test]
fn models_with_settings_of_their_own_have_a_bound() {
    let settings = Settings::new(1.0);
    let own = values(&[("trace_rate", &["2"])]);
    for number in 0..MODELS {
        settings.change(Some(&number.to_string()), &own).expect("a change");
    }
    assert!(settings.change(Some("more"), &own).expect_err("a bound").contains("clear those of another"));
    settings.change(Some("7"), &own).expect("no more than before");
    settings.change(Some("7"), &values(&[("trace_rate", &[])])).expect("one less");
    settings.change(Some("more"), &own).expect("room");
}

proptest! {
    #[test]
    fn no_settings_break_it(
        other in ".{0,200}",
        name in "trace_(level|rate|count|file|mode)",
        lists in proptest::array::uniform2(proptest::collection::vec("(-?[0-9]{1,20}|[A-Z]{1,12}|.{0,200})", 0..3)),
    ) {
        let settings = Settings::new(1.0);
        let [list, others] = lists;
        if let Err(refused) = settings.change(None, &Values::from([(name, list), (other, others)])) {
            prop_assert!(!refused.contains('\n') && refused.len() < 2000, "{refused}");
        }
    }
}
