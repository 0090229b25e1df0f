//! A call of many requests and many answers: requests are taken in while answers go out in their order.
//!
//! It is the body of the answer, and polled when there is room for one: so a caller who does not read is
//! not read from either, and costs what is in flight for him at that moment.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesOrdered, SelectAll};
use tokio::{sync::watch, time::Sleep};
use tokio_stream::Stream;
use tonic::Status;

use crate::wire;

/// So many requests of one conversation are in flight at once: enough for a batch, and no more of a queue than
/// others can wait behind.
const IN_FLIGHT: usize = 64;

/// Answers that are ready together go out together, up to so many bytes.
const TOGETHER: usize = 16 * 1024;

/// What a message is answered with.
pub(crate) enum Said {
    /// One answer, in the order of the messages.
    One(Bytes),
    /// Any number, each when it is there.
    Many(Many),
}

type Many = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

type Result<T> = std::result::Result<T, Box<Status>>;

/// When a stream that begins now takes in nothing more, and why: when the server stops, or at its age.
pub(crate) async fn closing(mut stop: watch::Receiver<bool>, age: Option<Duration>) -> Status {
    let stopped = async { drop(stop.wait_for(|stop| *stop).await) };
    let aged = async {
        match age {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
    };
    Status::unavailable(tokio::select! {
        () = stopped => "the server is shutting down: what had been taken in is answered; open another stream",
        () = aged => "the stream is as old as --max-stream-age allows: what had been taken in is answered; open another",
    })
}

/// Requests and their answers, as bytes of messages.
pub(crate) struct Conversation<M, A, F: Future> {
    messages: Pin<Box<M>>,
    /// Begins to answer a message. An error ends the conversation.
    answer: A,
    answers: FuturesOrdered<F>,
    /// Of messages that have many answers.
    many: SelectAll<Many>,
    /// When it is over, whatever is in flight.
    deadline: Option<Pin<Box<Sleep>>>,
    /// When nothing more is taken in, and why; what is in flight is answered.
    closing: Pin<Box<dyn Future<Output = Status> + Send>>,
    /// Whether more messages are taken in.
    listens: bool,
    /// How it ends when all is answered.
    end: Option<Box<Status>>,
}

impl<M, A, F> Conversation<M, A, F>
where
    M: Stream<Item = Result<Bytes>>,
    A: FnMut(Bytes) -> F,
    F: Future<Output = Result<Said>>,
{
    /// Over these messages, until `deadline`, or until all is answered that came before `closing`.
    pub(crate) fn new(
        messages: M,
        answer: A,
        deadline: Option<Instant>,
        closing: impl Future<Output = Status> + Send + 'static,
    ) -> Self {
        Self {
            messages: Box::pin(messages),
            answer,
            answers: FuturesOrdered::new(),
            many: SelectAll::new(),
            deadline: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into()))),
            closing: Box::pin(closing),
            listens: true,
            end: None,
        }
    }

    /// Takes in what has come, as far as there is room.
    fn listen(&mut self, context: &mut Context<'_>) {
        if self.listens
            && let Poll::Ready(why) = self.closing.as_mut().poll(context)
        {
            self.hang_up(Some(Box::new(why)));
        }
        while self.listens && self.has_room() {
            match self.messages.as_mut().poll_next(context) {
                Poll::Ready(Some(Ok(message))) => self.answers.push_back((self.answer)(message)),
                Poll::Ready(Some(Err(fault))) => self.hang_up(Some(fault)),
                Poll::Ready(None) => self.hang_up(None),
                Poll::Pending => break,
            }
        }
    }

    fn has_room(&self) -> bool {
        self.answers.len() + self.many.len() < IN_FLIGHT
    }

    fn hang_up(&mut self, end: Option<Box<Status>>) {
        self.listens = false;
        self.end = end;
    }

    /// An answer that is ready.
    fn next(&mut self, context: &mut Context<'_>) -> Option<Result<Bytes>> {
        while let Poll::Ready(Some(said)) = Pin::new(&mut self.answers).poll_next(context) {
            match said {
                Ok(Said::One(answer)) => return Some(Ok(answer)),
                Ok(Said::Many(many)) => self.many.push(many),
                Err(fault) => return Some(Err(fault)),
            }
        }
        match Pin::new(&mut self.many).poll_next(context) {
            Poll::Ready(Some(answer)) => Some(answer),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    /// The answers that are ready, and no more than are worth sending together; `None` at the end.
    fn speak(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let mut first: Option<Bytes> = None;
        let mut together = BytesMut::new();
        loop {
            let answer = match self.next(context) {
                Some(Ok(answer)) => answer,
                Some(Err(fault)) => {
                    // What else is in flight is for nobody any more.
                    self.answers = FuturesOrdered::new();
                    self.many = SelectAll::new();
                    self.hang_up(Some(fault));
                    break;
                }
                None => break,
            };
            match &first {
                None if answer.len() >= TOGETHER => return Poll::Ready(Some(Ok(answer))),
                None => first = Some(answer),
                Some(_) => {
                    if together.is_empty() {
                        together.extend_from_slice(&first.take().unwrap_or_default());
                        first = Some(Bytes::new());
                    }
                    together.extend_from_slice(&answer);
                }
            }
            if together.len() >= TOGETHER {
                break;
            }
        }
        match first {
            Some(_) if !together.is_empty() => Poll::Ready(Some(Ok(together.freeze()))),
            Some(answer) => Poll::Ready(Some(Ok(answer))),
            None if !self.listens && self.answers.is_empty() && self.many.is_empty() => {
                Poll::Ready(self.end.take().map(Err))
            }
            None => Poll::Pending,
        }
    }
}

impl<M, A, F> Stream for Conversation<M, A, F>
where
    M: Stream<Item = Result<Bytes>>,
    A: FnMut(Bytes) -> F + Unpin,
    F: Future<Output = Result<Said>>,
{
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready()) {
            this.deadline = None;
            return Poll::Ready(Some(Err(wire::late("while the stream was open"))));
        }
        loop {
            this.listen(context);
            let was_full = !this.has_room();
            let said = this.speak(context);
            // What has ended without a word has made room, of which nobody else would tell.
            if said.is_ready() || !was_full || !this.has_room() {
                return said;
            }
        }
    }
}
