//! Servers as processes of their own: started, measured from outside, ended with their handle.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
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
        Self::serving(repository, &[], Stdio::inherit())
    }

    /// The same with more arguments, whose log nobody sees.
    pub(crate) fn sconce_with(repository: &Path, arguments: &[&str]) -> Result<Self> {
        Self::serving(repository, arguments, Stdio::null())
    }

    fn serving(repository: &Path, arguments: &[&str], log: Stdio) -> Result<Self> {
        let address = free_address()?;
        let child = Command::new(env!("CARGO_BIN_EXE_sconce"))
            .args(["serve", "--log-level", "warn", "--metrics-address", "off", "--grpc-address", &address])
            .args(arguments)
            .arg("--model-repository")
            .arg(repository)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { child, address })
    }

    /// Starts `sconce` on a repository; its log comes as JSON, which must be read lest it stop there.
    pub(crate) fn sconce_with_log(repository: &Path) -> Result<(Self, ChildStderr)> {
        let address = free_address()?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_sconce"))
            .args(["serve", "--log-format", "json", "--log-level", "info"])
            .args(["--metrics-address", "off", "--grpc-address", &address])
            .arg("--model-repository")
            .arg(repository)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take();
        let server = Self { child, address };
        Ok((server, log.ok_or("no standard error")?))
    }

    /// Starts this benchmark again with other arguments, at the lowest priority.
    pub(crate) fn nice(arguments: &[&std::ffi::OsStr]) -> Result<Self> {
        let child = Command::new("nice")
            .args(["-n", "19"])
            .arg(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self { child, address: String::new() })
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

    /// Starts libtorch alone on a model, to be asked how fast it is: on its standard input, answered on its output.
    pub(crate) fn measured(
        binary: &Path,
        model: &Path,
        vocabulary: i64,
        shape: &[i64],
    ) -> Result<(Self, ChildStdin, ChildStdout)> {
        let shape: Vec<String> = shape.iter().map(i64::to_string).collect();
        let mut child = Command::new(binary)
            .arg("--measure")
            .arg(model)
            .args([vocabulary.to_string(), shape.join("x")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let server = Self { child, address: String::new() };
        Ok((server, input.ok_or("no standard input")?, output.ok_or("no standard output")?))
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

    /// User and system time so far, also of threads that have ended, to a hundredth of a second.
    pub(crate) fn cpu_time_of_all(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name of the program may contain anything.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(str::parse::<u64>).sum::<std::result::Result<_, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// A line of /proc/PID/smaps_rollup in MB, such as `Rss`, `Pss` or `Anonymous`.
    pub(crate) fn mapped(&self, name: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no such field")?;
        Ok(kib.parse::<f64>()? * 1024.0 / 1e6)
    }

    /// How many threads there are now.
    pub(crate) fn threads(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/task", self.child.id()))?.count())
    }

    /// How many directories are watched.
    pub(crate) fn watches(&self) -> Result<usize> {
        let mut watches = 0;
        for file in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            // A descriptor may be closed meanwhile.
            let text = fs::read_to_string(file?.path()).unwrap_or_default();
            watches += text.lines().filter(|line| line.starts_with("inotify wd:")).count();
        }
        Ok(watches)
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
