//! How long a message takes beside a stream that sends as many as it can.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    START_LIMIT,
    support::{
        IDENTITY, Result,
        load::{self, Client, Traffic},
        process::Server,
        report::{Spread, percentile},
    },
};

/// Pairs of rounds.
const PAIRS: usize = 9;
/// Messages of a round, so that its p99 is more than one of them.
const MESSAGES: usize = 500;
const PAUSE: Duration = Duration::from_millis(2);
/// In flight on the stream that sends as many as it can.
const IN_FLIGHT: usize = 64;

/// Sends as many as it can until told to stop, on a thread and a connection of its own.
fn saturate(address: String, stop: Arc<AtomicBool>) -> thread::JoinHandle<Result<()>> {
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = Client::connect(&address).await?;
            while !stop.load(Ordering::Relaxed) {
                client.streamed(&Traffic::new(IDENTITY, 16), 10_000, 1, IN_FLIGHT).await?;
            }
            Ok(())
        })
    })
}

async fn p99(client: &mut Client) -> Result<f64> {
    let took = client.paced(&Traffic::new(IDENTITY, 16), MESSAGES, PAUSE).await?;
    Ok(percentile(&took.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(), 0.99))
}

pub(crate) async fn measure(server: &Server) -> Result<()> {
    let mut client = load::ready(&server.address, &Traffic::new(IDENTITY, 16), START_LIMIT).await?;
    p99(&mut client).await?;
    let mut pairs = Vec::with_capacity(PAIRS);
    for _ in 0..PAIRS {
        let rest = p99(&mut client).await?;
        let stop = Arc::<AtomicBool>::default();
        let busy = saturate(server.address.clone(), Arc::clone(&stop));
        let beside = p99(&mut client).await;
        stop.store(true, Ordering::Relaxed);
        busy.join().map_err(|_| "the other stream panicked")??;
        pairs.push((rest, beside?));
    }
    let ratio = Spread::of(pairs.iter().map(|(rest, beside)| beside / rest));
    let of = |part: fn(&(f64, f64)) -> f64| Spread::of(pairs.iter().map(part)).median * 1e3;
    println!(
        "\np99 of a message each {PAUSE:?} on a stream: {:.2} ms at rest, {:.2} ms beside a stream of {IN_FLIGHT} in \
         flight: {:.2} ({:.2} - {:.2}) times, {PAIRS} pairs",
        of(|pair| pair.0),
        of(|pair| pair.1),
        ratio.median,
        ratio.min,
        ratio.max
    );
    Ok(())
}
