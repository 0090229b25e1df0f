//! What a look-up answers in each state of a model.

use super::*;

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

fn table(versions: &[(u64, State)], problem: Option<&str>) -> Table {
    let table = Table::default();
    let versions = versions.iter().map(|(number, state)| (version(*number), state.clone())).collect();
    let route = Route { versions, problem: problem.map(str::to_owned), ..Route::default() };
    table.change(|snapshot| drop(snapshot.routes.insert("m".into(), route.into())));
    table
}

fn refusal(table: &Table, model: &str, number: Option<u64>) -> String {
    table.get(model, number.map(version)).unwrap_err().to_string()
}

fn broken(reason: &str) -> State {
    State::Unavailable(reason.to_owned())
}

#[test]
fn unknown_names_are_quoted_as_triton_does() {
    let table = table(&[], None);
    assert_eq!(refusal(&table, "x", None), "Request for unknown model: 'x' is not found");
    assert_eq!(refusal(&table, "x", Some(1)), "Request for unknown model: 'x' is not found");
    assert_eq!(
        refusal(&table, "x\n\u{202e}", None),
        "Request for unknown model: 'x\\n\\u{202e}' is not found"
    );
    assert!(refusal(&table, &"x".repeat(100_000), None).len() < 300);
    assert_eq!(refusal(&table, "m", Some(9)), "Request for unknown model: 'm' version 9 is not found");
}

#[test]
fn no_version_says_why() {
    let text = |versions: &[(u64, State)], problem| refusal(&table(versions, problem), "m", None);
    let none = "Request for unknown model: 'm' has no available versions";
    assert_eq!(text(&[], None), none);
    assert_eq!(text(&[], Some("its config is wrong")), format!("{none}: its config is wrong"));
    let both = [(1, broken("old")), (2, broken("truncated"))];
    assert_eq!(text(&both, None), format!("{none}: version 2: truncated"));
}

#[test]
fn what_is_loading_may_be_asked_again() {
    let table = table(&[(1, State::Loading), (2, broken("truncated"))], None);
    for number in [None, Some(1)] {
        let error = table.get("m", number.map(version)).unwrap_err();
        let why = "it is loading".to_owned();
        assert_eq!(error, Error::NotReady { model: "m".to_owned(), version: "1".to_owned(), why });
    }
    assert!(refusal(&table, "m", Some(2)).contains("version 2 is not at ready state: truncated"));
}

#[test]
fn ready_is_settled_and_not_draining() {
    let table = table(&[], None);
    assert!(!table.snapshot().ready());
    table.change(|snapshot| snapshot.settled = true);
    assert!(table.snapshot().ready());
    table.change(|snapshot| snapshot.draining = true);
    assert!(!table.snapshot().ready());
    // What still comes is looked up as ever.
    assert!(matches!(table.get("m", None), Err(Error::NoVersion { .. })));
}

#[test]
fn a_snapshot_does_not_change_and_a_watcher_is_told() {
    let table = table(&[], None);
    let (before, mut watcher) = (table.snapshot(), table.watch());
    assert!(!watcher.has_changed().unwrap());
    table.change(|snapshot| snapshot.routes.clear());
    assert!(watcher.has_changed().unwrap());
    watcher.mark_unchanged();
    assert_eq!((before.routes.len(), table.snapshot().routes.len()), (1, 0));
    assert!(matches!(before.find("m", None), Err(Error::NoVersion { .. })));
    assert!(matches!(table.get("m", None), Err(Error::ModelNotFound { .. })));
}
