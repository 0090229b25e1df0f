//! Servers as processes of their own: started, measured from outside, ended with their handle.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::Result;

/// A process that is killed when dropped, also by a panic.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself needs no more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts `sconce` on a repository.
    pub(crate) fn sconce(repository: &Path) -> Result<Self> {
        let address = free_address()?;
        let child = Command::new(env!("CARGO_BIN_EXE_sconce"))
            .args(["serve", "--log-level", "warn", "--metrics-address", "off", "--grpc-address", &address])
            .arg("--model-repository")
            .arg(repository)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self { child, address })
    }

    /// Starts the floor on a model file.
    pub(crate) fn floor(binary: &Path, model: &Path) -> Result<Self> {
        let address = free_address()?;
        let child = Command::new(binary).arg(model).arg(&address).stdin(Stdio::null()).spawn()?;
        Ok(Self { child, address })
    }

    /// Starts libtorch alone and waits until it has run the model.
    pub(crate) fn bare(binary: &Path, model: &Path) -> Result<Self> {
        let mut child = Command::new(binary)
            .arg("--bare")
            .arg(model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take();
        let server = Self { child, address: String::new() };
        let mut word = [0; 5];
        output.ok_or("no standard output")?.read_exact(&mut word)?;
        Ok(server)
    }

    /// User and system time of all threads so far, to the nanosecond. Threads that have ended are not counted:
    /// servers keep theirs.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            nanoseconds += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Resident memory in MB: all of it, and the part that no file backs.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no such field")?;
            Result::Ok(kib.parse::<f64>()? * 1024.0 / 1e6)
        };
        Ok((field("VmRSS:")?, field("RssAnon:")?))
    }
}

/// Builds the floor as `sconce` was built, and returns where it is.
pub(crate) fn build_floor() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--package", "sconce-floor"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if !built.success() {
        return Err("sconce-floor could not be built".into());
    }
    Ok(Path::new(env!("CARGO_BIN_EXE_sconce")).with_file_name("sconce-floor"))
}

/// An address that nobody listens on now.
fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
