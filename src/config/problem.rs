//! What is wrong with a configuration: where, which key, what, and what would be right.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// Where a value comes from; the later beats the earlier.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "from")]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The configuration file.
    File {
        /// Its path, as it was given.
        file: PathBuf,
        /// The line, from 1; without it the file as a whole is meant.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: &'static str,
    },
    /// The command line.
    Flag {
        /// Its name, with the dashes.
        flag: &'static str,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line: Some(line) } => write!(f, "{}:{line}", file.display()),
            Self::File { file, line: None } => write!(f, "{}", file.display()),
            Self::Environment { variable } => f.write_str(variable),
            Self::Flag { flag } => f.write_str(flag),
        }
    }
}

/// What is wrong with one value, and what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}; {remedy}")]
pub struct Wrong {
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub remedy: String,
}

impl Wrong {
    /// Both halves of the sentence.
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// One thing that is wrong: a line for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where; [`Origin::Default`] when it is said nowhere.
    pub origin: Origin,
    /// The key with its tables, if it is about one.
    pub key: Option<String>,
    /// What, and what would be right.
    pub wrong: Wrong,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        self.wrong.fmt(f)
    }
}

/// Everything that is wrong, in the order of the file; never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Errors(pub(super) Vec<Problem>);

impl Errors {
    /// One by one.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }

    /// Whether nothing is wrong but that something was said nowhere: neither file nor environment nor flags.
    #[must_use]
    pub fn only_missing(&self) -> bool {
        self.0.iter().all(|problem| problem.origin == Origin::Default)
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Text as it was given, short enough for a message.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?} and so on", &text[..end]),
        None => format!("{text:?}"),
    }
}
