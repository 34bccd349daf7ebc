//! The directory's part of the configuration. It owns what is allowed in it; it refuses to know
//! where the data lives (wiring does).

use serde::Deserialize;

/// The fewest PBKDF2 iterations (RFC 7677 §4).
pub const ITERATIONS_MIN: u32 = 4_096;
/// The most: a login must not become an attack on ourselves.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// How the directory works.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// PBKDF2 iterations of new SCRAM keys, 4096 to 1000000.
    pub iterations: u32,
    /// Passwords that may be worked on at once; 0 = one per processor.
    pub password_threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            iterations: 10_000,
            password_threads: 0,
        }
    }
}

impl Config {
    /// Every problem, with the field it is in.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&self.iterations) {
            let text = format!(
                "must be {ITERATIONS_MIN} to {ITERATIONS_MAX}, is {}",
                self.iterations
            );
            problems.push(("iterations", text));
        }
        if self.password_threads > 1_024 {
            let text = format!("must be at most 1024, is {}", self.password_threads);
            problems.push(("password_threads", text));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_weak_settings_are_named() {
        assert!(Config::default().problems().is_empty());
        let weak = Config {
            iterations: 100,
            password_threads: 5_000,
        };
        let fields: Vec<_> = weak
            .problems()
            .into_iter()
            .map(|(field, _)| field)
            .collect();
        assert_eq!(fields, ["iterations", "password_threads"]);
    }
}
