//! A thread that loads makes no team of threads, which would take cores from traffic. A process of its
//! own, because it counts threads.
#![cfg(feature = "define")]
#![allow(clippy::unwrap_used)] // tests, all of it

use std::{fs, thread};

use sconce_engine::backend::{Backend, Device};
use sconce_torch::{Torch, define};

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn loading_stays_on_its_thread() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("m/1/model.pt");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    // Freezing computes the product, an operator of many threads.
    define("def forward(self, x):\n    return x + torch.mm(self.w, self.w).exp()\n", &["w:700x700"], &file)
        .unwrap();
    let snapshot = sconce_repository::scan(&[root.path().to_owned()]);
    let config = snapshot.models["m"].config.clone().unwrap();
    let torch = Torch::new();
    let load = |loader: bool| {
        let (before, after) = thread::scope(|scope| {
            let work = || {
                let before = threads();
                if loader {
                    torch.enter_loader();
                }
                let opened = torch.open(file.clone(), &config).unwrap();
                opened.load(Device::Cpu).map(drop).unwrap();
                (before, threads())
            };
            scope.spawn(work).join().unwrap()
        });
        after - before
    };
    assert_eq!(load(true), 0);
    if thread::available_parallelism().unwrap().get() > 1 {
        assert!(load(false) > 0, "without being told, libtorch makes a team: this test can fail");
    }
}
