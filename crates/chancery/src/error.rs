//! What a command ends with: an exit code, or a failure in the user's words. Owns the codes.

use std::fmt;

use crate::config::Problem;

/// It worked.
pub const OK: u8 = 0;
/// It did not; what was wrong is on standard error. (2 is clap's, for a wrong command line.)
pub const FAILED: u8 = 1;

/// Exit code, or why not.
pub type Outcome = Result<u8, Failure>;

/// Why a command failed: one line each.
#[derive(Debug)]
pub struct Failure(pub Vec<String>);

impl Failure {
    /// One reason.
    pub fn new(text: impl Into<String>) -> Self {
        Self(vec![text.into()])
    }

    /// Everything that is wrong with a configuration.
    #[allow(clippy::needless_pass_by_value)] // handed on as it comes from a Result
    pub fn problems(problems: Vec<Problem>) -> Self {
        Self(problems.iter().map(ToString::to_string).collect())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        // The chain of causes, outermost first: the operating system's word comes last.
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            if !text.ends_with(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            cause = inner.source();
        }
        Self::new(text)
    }
}
