//! Requests of different lengths: who of those that wait runs together.

use std::sync::Arc;

use sconce_repository::Filler;

use super::*;
use crate::{
    DataType,
    padding::{Extents, Joining, PadRule},
    value::{Arg, Call, Tensor},
};

/// A request of one row of so many bytes, all of which are filled up.
struct Piece {
    length: usize,
    extents: Option<Box<Extents>>,
    cancelled: bool,
    deadline: Option<Instant>,
}

impl Work for Piece {
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn is_cancelled(&self) -> bool {
        self.cancelled
    }
    fn rows(&self) -> usize {
        1
    }
    fn bytes(&self) -> usize {
        self.length
    }
    fn size(&self) -> u8 {
        self.length.ilog2() as u8
    }
    fn joins(&self) -> bool {
        true
    }
    fn joins_with(&self, _: &Self) -> bool {
        true
    }
    fn joins_company(&self, company: &mut Company) -> bool {
        self.extents.as_ref().is_none_or(|extents| extents.join(company))
    }
    fn priority(&self) -> u64 {
        0
    }
    fn timeout(&self) -> Option<Duration> {
        None
    }
    fn threads(&self) -> Option<usize> {
        None
    }
}

fn piece(length: usize) -> Piece {
    let rule = PadRule::new(vec![1], Filler::flag(DataType::Uint8, false).unwrap());
    let tensor = Tensor::host(DataType::Uint8, vec![1, length as i64], vec![0; length].into());
    let rule = Arc::new(Joining::Pad(rule));
    let call = Call { arguments: vec![Arg::Tensor(tensor.joined_by(rule))], ..Call::default() };
    Piece { length, extents: Extents::of(&call, 1), cancelled: false, deadline: None }
}

fn queue(pieces: Vec<Piece>, now: Instant) -> Queue<Piece> {
    let level = Level { limit: 100, timeout: None, delays: false, own_timeout: false };
    let mut queue = Queue::new(&[level], 0);
    for piece in pieces {
        assert!(queue.push(piece, now).is_ok());
    }
    queue
}

fn lengths(pieces: &[Piece]) -> Vec<usize> {
    pieces.iter().map(|piece| piece.length).collect()
}

#[test]
fn what_is_seen_to_fit_is_what_is_taken() {
    let now = Instant::now();
    let mut queue = queue([3, 40, 5, 8, 13, 2, 70].map(piece).into(), now);
    let mut seen = Vec::new();
    while let Some(head) = queue.head(100) {
        let batch = lengths(&queue.take(100, now, now, &mut Vec::new()));
        let largest = batch.iter().max().unwrap().ilog2() as u8;
        assert_eq!((head.rows, head.size), (batch.len(), largest), "{batch:?}");
        seen.push(batch);
    }
    assert_eq!(seen, [vec![3, 5, 8, 2], vec![40, 13], vec![70]]);
    assert_eq!((queue.len(), queue.rows(), queue.bytes()), (0, 0, 0));
}

#[test]
fn who_does_not_run_keeps_nobody_away() {
    let now = Instant::now();
    let late = now + Duration::from_secs(1);
    let gone = Piece { cancelled: true, ..piece(3) };
    let hurried = Piece { deadline: Some(now + Duration::from_millis(1)), ..piece(12) };
    let mut queue = queue(vec![gone, piece(40), hurried, piece(160)], now);
    let mut dead = Vec::new();
    let batch = queue.take(100, now, late, &mut dead);
    assert_eq!(lengths(&batch), [40, 160]);
    let dead: Vec<_> = dead.iter().map(|(piece, fate)| (piece.length, *fate)).collect();
    assert_eq!(dead, [(3, Fate::Unwanted), (12, Fate::Late)]);
}
