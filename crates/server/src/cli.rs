//! The command line.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use sconce_engine::text::quote;
use sconce_repository::{Digests, VersionOnDisk};

use crate::{client, options::ServeArgs, serve};

/// Serves TorchScript models from a directory over gRPC.
///
/// It speaks the Open Inference Protocol in Triton's dialect: clients of Triton and KServe work as they
/// are.
#[derive(Debug, Parser)]
#[command(name = "sconce", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models
    Serve(Box<ServeArgs>),
    /// Send one request to a running server and print the answer
    Infer(client::InferArgs),
    /// Print what a running server tells of its models
    Models(client::ModelsArgs),
    /// About configurations of models
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write manifest.yaml: which bytes make a version, so that it is served when all of them are there
    Manifest {
        /// The directory of the version
        version_dir: PathBuf,
    },
    /// Print versions, devices and CPU features
    Version,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the JSON Schema of config.yaml, for editors
    Schema,
    /// Check the models of a repository without serving them
    Check {
        /// A directory of models
        repository: PathBuf,
    },
}

/// Runs the command line. The exit code is 0, 1 after one line on standard error that says why, or 2
/// when the command line itself is wrong.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(arguments) => serve::run(*arguments),
        Command::Infer(arguments) => wait_for(client::infer(arguments, &mut std::io::stdout())),
        Command::Models(arguments) => wait_for(client::models(arguments, &mut std::io::stdout())),
        Command::Config(ConfigCommand::Schema) => print(&schema()),
        Command::Config(ConfigCommand::Check { repository }) => check(repository),
        Command::Manifest { version_dir } => manifest(&version_dir),
        Command::Version => print(&version()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// To standard output; a reader that has gone, as `head` does, is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn wait_for(asking: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(asking)
}

fn schema() -> String {
    format!("{:#}\n", sconce_repository::config_schema())
}

fn check(repository: PathBuf) -> anyhow::Result<()> {
    let snapshot = sconce_repository::scan(&[repository]);
    let digests = Digests::default();
    let mut lines = String::new();
    let mut wrong = snapshot.problems.len();
    for problem in &snapshot.problems {
        lines.push_str(&format!("{problem}\n"));
    }
    for model in snapshot.models.values() {
        match &model.config {
            Err(error) => {
                wrong += 1;
                lines.push_str(&format!("{}: {error}\n", quote(&model.name)));
            }
            Ok(config) => {
                for note in &config.notes {
                    lines.push_str(&format!("{}: note: {note}\n", quote(&model.name)));
                }
                for version in &model.wanted {
                    match check_version(&model.versions[version], &digests) {
                        Ok(()) => lines.push_str(&format!("{} version {version}: ok\n", quote(&model.name))),
                        Err(error) => {
                            wrong += 1;
                            lines.push_str(&format!("{} version {version}: {error}\n", quote(&model.name)));
                        }
                    }
                }
                for version in &model.missing {
                    wrong += 1;
                    lines.push_str(&format!(
                        "{} version {version}: there is no such directory\n",
                        quote(&model.name)
                    ));
                }
            }
        }
    }
    print(&lines)?;
    anyhow::ensure!(wrong == 0, "{wrong} of the above {} wrong", if wrong == 1 { "is" } else { "are" });
    Ok(())
}

/// Checks a version as the server does before it is loaded.
fn check_version(version: &VersionOnDisk, digests: &Digests) -> Result<(), String> {
    sconce_repository::verify(version, digests).map_err(|error| error.to_string())?;
    sconce_repository::archive::verify(&version.model_file()).map_err(|error| error.to_string())
}

fn manifest(version_dir: &Path) -> anyhow::Result<()> {
    let files = sconce_repository::files_to_list(version_dir).map_err(anyhow::Error::msg)?;
    let path = sconce_repository::write_manifest(version_dir, &files).map_err(anyhow::Error::msg)?;
    print(&format!("{}: {} files\n", path.display(), files.len()))
}

fn version() -> String {
    let mut text = format!("sconce {}\n", env!("CARGO_PKG_VERSION"));
    text.push_str(&serve::runtime_info());
    text.push_str(&format!("cores: {}\ncpu features: {}\n", serve::cores(), cpu_features()));
    text
}

/// The vector instructions that decide how fast models run.
fn cpu_features() -> String {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("sse4.2", std::is_x86_feature_detected!("sse4.2")),
        ("avx", std::is_x86_feature_detected!("avx")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let found: [(&str, bool); 1] = [("neon", cfg!(target_feature = "neon"))];
    let names: Vec<&str> = found.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    names.join(" ")
}
