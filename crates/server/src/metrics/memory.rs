//! Memory of GPUs, asked for where nobody waits for the answer: a driver may take long to give it, or never do so,
//! and whoever looks at metrics or health then wants to be told of the rest.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use sconce_engine::{
    backend::{Device, DeviceMemory},
    pool::Pool,
};

/// Between two questions; a scrape is seldom sooner after the one before.
const EVERY: Duration = Duration::from_secs(5);
/// What is older is not told any more: nobody knows whether it still holds.
const HOLDS: Duration = Duration::from_secs(30);

/// What was answered last, and when.
type Last = Mutex<Option<(Instant, DeviceMemory)>>;

/// What is known of the memory of each GPU. Cloning gives another handle.
#[derive(Clone, Debug)]
pub(crate) struct Memories(Arc<[(Device, Last)]>);

impl Memories {
    /// Asks for each GPU from now on, on a thread of its own: one that hangs is no reason to know nothing of the others.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(pool: &Pool) -> std::io::Result<Self> {
        let gpus = pool.devices().iter().filter(|device| matches!(device, Device::Gpu(_)));
        let this = Self(gpus.map(|gpu| (*gpu, Mutex::default())).collect());
        for (index, (gpu, _)) in this.0.iter().enumerate() {
            let (this, pool) = (this.clone(), pool.clone());
            thread::Builder::new().name(format!("memory {gpu}")).spawn(move || {
                let (gpu, last) = &this.0[index];
                loop {
                    let answer = pool.memory(*gpu);
                    *lock(last) = answer.map(|memory| (Instant::now(), memory));
                    thread::sleep(EVERY);
                }
            })?;
        }
        Ok(this)
    }

    /// Memory of the device, where it has its own and that was known a moment ago.
    pub(super) fn of(&self, device: Device) -> Option<DeviceMemory> {
        self.at(device, Instant::now())
    }

    fn at(&self, device: Device, now: Instant) -> Option<DeviceMemory> {
        let (_, last) = self.0.iter().find(|(gpu, _)| *gpu == device)?;
        let last = *lock(last);
        last.filter(|(asked, _)| now.saturating_duration_since(*asked) <= HOLDS).map(|(_, memory)| memory)
    }
}

fn lock(last: &Last) -> std::sync::MutexGuard<'_, Option<(Instant, DeviceMemory)>> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use sconce_engine::{backend::Backend, fake::Fake, pool::PoolSettings};

    use super::*;
    use crate::metrics::{server, text::Text};

    /// Nothing takes this long; whatever does has failed.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn until(what: &str, is: impl Fn() -> bool) {
        let begin = Instant::now();
        while !is() {
            assert!(begin.elapsed() < PATIENCE, "never: {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn a_driver_that_does_not_answer_holds_up_no_metrics() {
        let (hangs, answers) = (Device::Gpu(0), Device::Gpu(1));
        let fake = Arc::new(Fake::new(2));
        fake.hang_memory(hangs);
        let backend: Arc<dyn Backend> = fake.clone();
        let settings = PoolSettings { cpu_workers: 1, cores: 1, queued_bytes: 1, hung_after: PATIENCE };
        let pool = Pool::start(&backend, settings).unwrap();
        let memories = Memories::start(&pool).unwrap();
        until("the other one answers", || memories.of(answers).is_some());

        let (tell, told) = mpsc::channel();
        let asked = memories.clone();
        thread::spawn(move || {
            let mut text = Text::default();
            server::devices(&mut text, &pool, &asked);
            tell.send(String::from(text)).unwrap();
        });
        let text = told.recv_timeout(PATIENCE).expect("the metrics, while the driver hangs");
        assert!(text.contains("sconce_device_memory_used_bytes{device=\"gpu:1\"} 1048576"), "{text}");
        assert!(!text.contains("sconce_device_memory_used_bytes{device=\"gpu:0\"}"), "{text}");
        assert!(text.contains("sconce_device_healthy{device=\"gpu:0\"} 1"), "{text}");

        fake.open_memory_gate();
        until("it answers", || memories.of(hangs).is_some());
        let now = Instant::now();
        assert!(memories.at(hangs, now + HOLDS / 2).is_some());
        assert_eq!(memories.at(hangs, now + HOLDS + EVERY), None, "it has not answered for long");
        assert_eq!(memories.of(Device::Cpu), None);
    }
}
