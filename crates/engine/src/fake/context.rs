//! What the scripted backend keeps per worker thread, and the memory that it lends.

use std::sync::Arc;

use super::Stage;
use crate::backend::{Device, HostBuffer, WorkerContext};

pub(super) struct FakeContext(pub(super) Device, pub(super) Arc<Stage>);

impl WorkerContext for FakeContext {
    fn set_threads(&mut self, threads: usize) {
        self.1.seen().threads.insert(threads);
    }

    fn host_buffer(&mut self, bytes: usize) -> Option<Box<dyn HostBuffer>> {
        if self.0 == Device::Cpu {
            return None;
        }
        let mut seen = self.1.seen();
        seen.lent.push(bytes);
        seen.held += 1;
        // As memory that has been used before.
        Some(Box::new(FakeBuffer(vec![0xa5; bytes], Arc::clone(&self.1))))
    }
}

struct FakeBuffer(Vec<u8>, Arc<Stage>);

impl HostBuffer for FakeBuffer {}

impl AsRef<[u8]> for FakeBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for FakeBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for FakeBuffer {
    fn drop(&mut self) {
        self.1.seen().held -= 1;
        self.1.changed.notify_all();
    }
}
