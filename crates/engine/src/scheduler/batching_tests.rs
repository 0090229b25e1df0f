//! When a batch is run as it is.

use super::*;
use crate::scheduler::Class;

fn policy(max_rows: usize, delay: u64, preferred: &[usize]) -> Policy {
    Policy {
        class: Class::Traffic,
        max_rows,
        max_delay: Duration::from_millis(delay),
        preferred: preferred.to_vec(),
        ..Policy::background(0)
    }
}

#[test]
fn as_triton_does() {
    let now = Instant::now();
    let ago = |millis| now - Duration::from_millis(millis);
    let at = |policy: &Policy, rows, millis| {
        let head = Head { rows, least: 1, since: ago(millis), size: 0, threads: None, due: None };
        ready(policy, &head, rows, &Pace::default(), &Costs::default(), now)
    };
    let some = Ready::Now { exactly: None };
    let exactly = |rows| Ready::Now { exactly: Some(rows) };
    // Nothing is waited for unless somebody asks for it.
    assert_eq!(at(&policy(8, 0, &[]), 1, 0), some);
    // A batch grows until it is full or has waited long enough.
    assert_eq!(at(&policy(8, 5, &[]), 7, 1), Ready::At(ago(1) + Duration::from_millis(5)));
    assert_eq!(at(&policy(8, 5, &[]), 7, 5), exactly(7));
    assert_eq!(at(&policy(8, 5, &[]), 8, 0), exactly(8));
    // The largest preferred size that can be had is taken at once, and only that.
    assert_eq!(at(&policy(8, 5, &[2, 4]), 7, 0), exactly(4));
    assert_eq!(at(&policy(8, 5, &[2, 4]), 3, 0), exactly(2));
    assert_eq!(at(&policy(8, 5, &[2, 4]), 1, 0), Ready::At(ago(0) + Duration::from_millis(5)));
    assert_eq!(at(&policy(8, 5, &[2, 4]), 1, 6), exactly(1));
    assert_eq!(at(&policy(8, 0, &[2, 4]), 1, 0), some);
}

#[test]
fn a_batch_that_stands_behind_one_that_waits_for_company_sends_it_off() {
    let (now, policy) = (Instant::now(), policy(8, 5, &[4]));
    let head = Head { rows: 1, least: 1, since: now, size: 0, threads: None, due: None };
    let with = |backlog| ready(&policy, &head, backlog, &Pace::default(), &Costs::default(), now);
    assert!(matches!(with(4), Ready::At(_)));
    assert_eq!(with(5), Ready::Now { exactly: Some(1) });
}
