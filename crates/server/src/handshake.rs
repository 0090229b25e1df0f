//! What an HTTP/2 client says first: its preface and its settings. A connection without them is of no use, so there
//! is a bound for how long one is kept, which hyper has only for what comes after them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// How every client begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The type of the frame behind it.
const SETTINGS: u8 = 4;
/// There are some ten settings, of six bytes each: whoever has so many is answered by hyper.
const LONGEST: usize = 16 << 10;
/// Enough for all of it, as a rule.
const EXPECTED: usize = 256;

/// Reads until all of it has come, or something else; with what came behind it.
///
/// # Errors
/// The connection has failed.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut said = Vec::with_capacity(EXPECTED);
    while !is_over(&said) {
        if stream.read_buf(&mut said).await? == 0 {
            break;
        }
    }
    Ok(said)
}

/// Whether nothing is missing, or nothing will come of it.
fn is_over(said: &[u8]) -> bool {
    if !said.iter().zip(PREFACE).all(|(is, expected)| is == expected) {
        return true;
    }
    let frame = said.get(PREFACE.len()..).unwrap_or_default();
    let [a, b, c, kind, _, _, _, _, _, payload @ ..] = frame else { return false };
    let length = [*a, *b, *c].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    *kind != SETTINGS || length > LONGEST || payload.len() >= length
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use tokio::io::AsyncWriteExt;

    use super::*;

    const EMPTY: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    const ONE: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";

    /// What is read of these, where the client says nothing more and stays; nothing if more is awaited.
    async fn read_of(said: &[u8]) -> Option<Vec<u8>> {
        let (mut client, mut server) = tokio::io::duplex(64 << 10);
        client.write_all(said).await.unwrap();
        let reading = pin!(read(&mut server));
        match reading.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => Some(read.unwrap()),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn every_part_of_a_handshake_is_awaited_and_no_more() {
        for settings in [EMPTY, ONE] {
            let whole = [PREFACE, settings].concat();
            for end in 0..whole.len() {
                assert_eq!(read_of(&whole[..end]).await, None, "{end} bytes");
            }
            assert_eq!(read_of(&whole).await.as_deref(), Some(&*whole));
            let more = [&whole, &b"more"[..]].concat();
            assert_eq!(read_of(&more).await.as_deref(), Some(&*more), "and what is behind it");
        }
    }

    #[tokio::test]
    async fn what_is_no_handshake_is_not_waited_for() {
        let large = [PREFACE, b"\xff\xff\xff\x04\0\0\0\0\0"].concat();
        let other = [PREFACE, b"\0\0\x08\x06\0\0\0\0\0"].concat();
        for said in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"PRX", &large, &other] {
            assert_eq!(read_of(said).await.as_deref(), Some(said));
        }
        let (client, mut server) = tokio::io::duplex(64);
        drop(client);
        assert!(read(&mut server).await.unwrap().is_empty(), "nobody is there any more");
    }
}
