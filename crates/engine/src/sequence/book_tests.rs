//! Any requests of any sequences: each runs once or is refused, in order, on what those before it left.

use proptest::prelude::*;

use super::*;

const IDLE: Duration = Duration::from_secs(10);

fn book(lanes: &[usize], waiting: usize) -> Book<u32, u32> {
    Book::new(Limits { lanes: lanes.to_vec(), waiting, requests: 5, idle: IDLE, rows: false })
}

fn number(id: u64) -> SequenceId {
    SequenceId::Number(id)
}

fn item(work: u32, start: bool, end: bool) -> Item<u32> {
    Item { work, start, end }
}

/// What ran: the request, and the state that it was given.
fn ran(runs: &[Run<u32, u32>]) -> Vec<(u32, Option<u32>)> {
    runs.iter().map(|run| (run.item.work, run.state)).collect()
}

#[test]
fn requests_of_a_sequence_run_one_after_the_other_on_what_was_left() {
    let (mut book, now) = (book(&[2], 0), Instant::now());
    let (taken, runs) = book.arrive(&number(7), item(1, true, false), now);
    assert!(taken.is_ok());
    assert_eq!(ran(&runs), [(1, None)]);
    let life = runs[0].life;
    assert_eq!(ran(&book.arrive(&number(7), item(2, false, false), now).1), []);
    assert_eq!(ran(&book.arrive(&number(7), item(3, false, true), now).1), []);
    assert_eq!(
        book.arrive(&number(7), item(4, false, false), now).0.unwrap_err().1,
        No::NotBegun,
        "it ends with 3"
    );
    assert_eq!(ran(&book.ended(&number(7), life, Some(10), now).runs), [(2, Some(10))]);
    assert_eq!(ran(&book.ended(&number(7), life, Some(20), now).runs), [(3, Some(20))]);
    assert_eq!(ran(&book.ended(&number(7), life, Some(30), now).runs), []);
    assert!(book.is_empty());
    assert_eq!(book.arrive(&number(7), item(5, false, false), now).0.unwrap_err().1, No::NotBegun);
}

#[test]
fn a_failure_changes_no_state_and_refuses_those_who_counted_on_it() {
    let (mut book, now) = (book(&[2], 0), Instant::now());
    let life = book.arrive(&number(1), item(1, true, false), now).1[0].life;
    book.ended(&number(1), life, Some(10), now);
    for work in 2..5 {
        book.arrive(&number(1), item(work, false, false), now).0.unwrap();
    }
    let next = book.ended(&number(1), life, None, now);
    assert_eq!(next.refused.iter().map(|item| item.work).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(ran(&next.runs), []);
    assert_eq!(ran(&book.arrive(&number(1), item(5, false, false), now).1), [(5, Some(10))]);

    // One whose first request fails has not begun.
    let life = book.arrive(&number(2), item(6, true, false), now).1[0].life;
    book.ended(&number(2), life, None, now);
    assert_eq!(book.arrive(&number(2), item(7, false, false), now).0.unwrap_err().1, No::NotBegun);
}

#[test]
fn a_start_begins_anew_under_the_same_id() {
    let (mut book, now) = (book(&[1], 0), Instant::now());
    let life = book.arrive(&number(1), item(1, true, false), now).1[0].life;
    book.arrive(&number(1), item(2, false, true), now).0.unwrap();
    book.arrive(&number(1), item(3, true, false), now).0.unwrap();
    book.arrive(&number(1), item(4, false, false), now).0.unwrap();
    assert_eq!(ran(&book.ended(&number(1), life, Some(1), now).runs), [(2, Some(1))]);
    assert_eq!(ran(&book.ended(&number(1), life, Some(2), now).runs), [(3, None)]);
    assert_eq!(ran(&book.ended(&number(1), life, Some(3), now).runs), [(4, Some(3))]);
}

#[test]
fn who_finds_no_place_waits_for_one_or_is_refused() {
    let (mut book, now) = (book(&[1, 1], 1), Instant::now());
    let first = &book.arrive(&number(1), item(1, true, false), now).1[0];
    let (lane, life) = (first.lane, first.life);
    let other = book.arrive(&number(2), item(2, true, false), now).1[0].lane;
    assert_ne!(lane, other, "the lane with the least");
    let (taken, runs) = book.arrive(&number(3), item(3, true, false), now);
    assert!(taken.is_ok() && runs.is_empty());
    assert_eq!(book.arrive(&number(4), item(4, true, false), now).0.unwrap_err().1, No::Sequences);
    book.arrive(&number(1), item(5, false, true), now).0.unwrap();
    assert_eq!(ran(&book.ended(&number(1), life, Some(1), now).runs), [(5, Some(1))]);
    let next = book.ended(&number(1), life, Some(1), now);
    assert_eq!((ran(&next.runs), next.runs[0].lane), (vec![(3, None)], lane));
}

#[test]
fn who_is_idle_too_long_makes_room() {
    let (mut book, start) = (book(&[1], 1), Instant::now());
    let life = book.arrive(&number(1), item(1, true, false), start).1[0].life;
    // Busy is not idle.
    assert!(book.expire(start + 3 * IDLE).is_empty());
    let ended = start + 3 * IDLE;
    book.ended(&number(1), life, Some(1), ended);
    book.arrive(&number(2), item(2, true, false), ended).0.unwrap();
    assert!(book.expire(ended + IDLE - Duration::from_millis(1)).is_empty());
    assert_eq!(ran(&book.expire(ended + IDLE)), [(2, None)]);
    let (gone, _) = book.arrive(&number(1), item(3, false, false), ended + IDLE);
    assert_eq!(gone.unwrap_err().1, No::NotBegun);
}

#[test]
fn a_run_of_a_sequence_that_was_forgotten_changes_nothing() {
    let (mut book, now) = (book(&[1], 0), Instant::now());
    let life = book.arrive(&number(1), item(1, true, false), now).1[0].life;
    book.arrive(&number(1), item(2, false, false), now).0.unwrap();
    assert_eq!(book.close().len(), 1);
    assert!(book.ended(&number(1), life, Some(1), now).runs.is_empty());
    assert_eq!(book.arrive(&number(1), item(3, true, false), now).0.unwrap_err().1, No::Closed);
}

#[test]
fn who_left_the_line_holds_nobody_up() {
    let (mut book, now) = (book(&[1], 2), Instant::now());
    let life = book.arrive(&number(1), item(1, true, true), now).1[0].life;
    book.arrive(&number(2), item(2, true, false), now).0.unwrap();
    book.arrive(&number(3), item(3, true, false), now).0.unwrap();
    assert_eq!(book.sweep(|work| *work == 2).dropped.len(), 1);
    assert_eq!(ran(&book.ended(&number(1), life, Some(1), now).runs), [(3, None)]);
}

#[derive(Clone, Debug)]
enum Event {
    Arrive {
        id: u64,
        start: bool,
        end: bool,
    },
    /// One of those that run, by its place among them, ends, well or not.
    End {
        which: usize,
        well: bool,
    },
    Pass {
        seconds: u64,
    },
    Sweep,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => (0u64..4, prop::bool::weighted(0.3), prop::bool::weighted(0.2))
            .prop_map(|(id, start, end)| Event::Arrive { id, start, end }),
        5 => (0usize..4, prop::bool::weighted(0.8)).prop_map(|(which, well)| Event::End { which, well }),
        1 => (0u64..8).prop_map(|seconds| Event::Pass { seconds }),
        1 => Just(Event::Sweep),
    ]
}

/// And each that has a place has a row of its own, where it is to have one.
fn all_who_may_run_do(book: &Book<u32, u32>, running: &[Run<u32, u32>], lanes: &[usize]) {
    let rows = book.limits.rows;
    let busy = |lane| rows && running.iter().any(|run| Some(run.lane) == lane);
    let may_run = |s: &&Sequence<u32, u32>| s.lane.is_some() && s.running.is_none() && !busy(s.lane);
    let stuck = book.sequences.values().filter(may_run).any(|s| !s.pending.is_empty());
    assert!(!stuck, "who may run does");
    let row = |s: &Sequence<u32, u32>| (s.lane, s.row);
    let mut placed: Vec<_> = book.sequences.values().filter(|s| s.lane.is_some()).map(row).collect();
    placed.sort_unstable();
    placed.dedup();
    let all = book.sequences.values().filter(|s| s.lane.is_some()).count();
    assert!(!rows || placed.len() == all, "a row for each");
    assert!(placed.iter().all(|(lane, row)| *row < lanes[lane.unwrap()]));
}

proptest! {
    #[test]
    fn nothing_is_lost_and_every_run_has_the_state_of_the_one_before(
        events in prop::collection::vec(event(), 0..80), lanes in prop::collection::vec(1usize..3, 1..3),
        waiting in 0usize..3, rows: bool,
    ) {
        let (mut book, mut now) = (book(&lanes, waiting), Instant::now());
        book.limits.rows = rows;
        let mut running: Vec<Run<u32, u32>> = Vec::new();
        let (mut sent, mut over, mut taken_in) = (0u32, 0usize, 0usize);
        // The request whose state a sequence has, by its id.
        let mut last: HashMap<SequenceId, u32> = HashMap::new();
        let mut newest: HashMap<SequenceId, u32> = HashMap::new();
        for event in events {
            let mut runs = Vec::new();
            match event {
                Event::Arrive { id, start, end } => {
                    sent += 1;
                    let (taken, next) = book.arrive(&number(id), item(sent, start, end), now);
                    taken_in += usize::from(taken.is_ok());
                    runs = next;
                }
                Event::End { which, well } if !running.is_empty() => {
                    let run = running.swap_remove(which % running.len());
                    over += 1;
                    let next = book.ended(&run.id, run.life, well.then_some(run.item.work), now);
                    if well {
                        last.insert(run.id.clone(), run.item.work);
                    } else if run.item.start {
                        last.remove(&run.id);
                    }
                    over += next.refused.len();
                    prop_assert!(well || next.refused.iter().all(|item| !item.start));
                    runs = next.runs;
                }
                Event::End { .. } => {}
                Event::Pass { seconds } => {
                    now += Duration::from_secs(seconds);
                    runs = book.expire(now);
                }
                Event::Sweep => {
                    let swept = book.sweep(|work| work % 3 == 0);
                    prop_assert!(swept.refused.iter().flat_map(|(_, items)| items).all(|item| !item.start));
                    runs = swept.runs;
                    over += swept.dropped.len() + swept.refused.iter().map(|(_, items)| items.len()).sum::<usize>();
                }
            }
            for run in runs {
                prop_assert_eq!(run.state, if run.item.start { None } else { last.get(&run.id).copied() });
                let before = newest.insert(run.id.clone(), run.item.work);
                prop_assert!(before.is_none_or(|before| before < run.item.work), "in their order");
                prop_assert!(running.iter().all(|other| other.id != run.id), "one at a time");
                running.push(run);
            }
            let (sequences, pending) = book.counts();
            prop_assert_eq!(taken_in, over + running.len() + pending);
            prop_assert!(sequences <= lanes.iter().sum::<usize>() + waiting);
            prop_assert!(pending <= 5);
            for (lane, most) in lanes.iter().enumerate() {
                let on = book.sequences.values().filter(|sequence| sequence.lane == Some(lane)).count();
                prop_assert_eq!(on, book.taken[lane]);
                prop_assert!(on <= *most);
            }
            all_who_may_run_do(&book, &running, &lanes);
            let room = book.free_lane().is_some();
            prop_assert!(!(room && book.waiting > 0), "who may have a place has it");
        }
        prop_assert!(book.close().len() + running.len() + over == taken_in);
    }
}
