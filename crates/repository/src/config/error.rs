//! What can be wrong with a configuration.

use std::path::{Path, PathBuf};

use crate::escape::{list, shown};

/// Why a model's configuration cannot be used; each is one sentence on one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {reason}", shown(file))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the operating system, or the limit on its size, said.
        reason: String,
    },
    /// The file was read and something in it is wrong.
    #[error("{}{place}: {message}", shown(file))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Where in the file.
        place: Place,
        /// What is wrong, what is expected, and what to write instead.
        message: String,
    },
    /// A configuration that came with a request to load the model, and something in it is wrong.
    #[error("the parameter `config`{place}: {message}")]
    Override {
        /// Where in the text.
        place: Place,
        /// What is wrong, what is expected, and what to write instead.
        message: String,
    },
    /// There are two configurations.
    #[error(
        "{} holds both config.yaml and config.pbtxt, and only one can be right: delete \
         config.pbtxt, or delete config.yaml to go on with Triton's format",
        shown(dir)
    )]
    TwoFormats {
        /// The model's directory.
        dir: PathBuf,
    },
    /// The file would not be found under its name.
    #[error("{} is not read under this name: rename it to config.yaml", shown(file))]
    Misnamed {
        /// The file.
        file: PathBuf,
    },
    /// Several repositories hold a model of this name.
    #[error(
        "model appears in two or more repositories: {}; a name can be served from one place only, \
         so rename or remove all but one",
        list(dirs.iter().map(|dir| shown(dir)))
    )]
    Duplicate {
        /// The directories of the models.
        dirs: Vec<PathBuf>,
    },
}

/// A place in a configuration file, as exact as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line and column, both counted from 1.
    pub position: Option<(usize, usize)>,
    /// The path of keys that leads there, such as `inputs[0].dtype`; empty for the whole file.
    pub key: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        Ok(())
    }
}

/// Something wrong inside a file whose name is not known here; whoever read the file adds it.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) place: Place,
    pub(super) message: String,
}

impl Fault {
    /// At this path of keys.
    pub(super) fn at(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: Place { position: None, key: key.into() }, message: message.into() }
    }

    pub(super) fn in_file(self, file: &Path) -> ConfigError {
        ConfigError::Invalid { file: file.to_owned(), place: self.place, message: self.message }
    }
}
