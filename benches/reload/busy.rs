//! The floor of loading: another process at the lowest priority that does nothing but read a file and copy
//! it. What that costs a server which is not even told of it is the machine's price for work beside it.

use std::{fs::File, hint::black_box, io::Read, path::Path};

use crate::support::{Result, process::Server};

/// The argument that makes this benchmark be that process.
pub(crate) const WORD: &str = "busy";
const PIECE: usize = 1 << 20;

/// Starts it. It ends with its handle.
pub(crate) fn start(file: &Path) -> Result<Server> {
    Server::nice(&[WORD.as_ref(), file.as_os_str()])
}

/// Never returns but with an error.
pub(crate) fn run(file: &Path) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let mut copy = Vec::new();
        let mut file = File::open(file)?;
        loop {
            let length = file.read(&mut piece)?;
            if length == 0 {
                break;
            }
            copy.extend_from_slice(&piece[..length]);
        }
        black_box(copy.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    }
}
