//! The service's configuration. It refuses to know where the service runs.

use serde::Deserialize;

/// Configuration of the presence service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Sessions of all gateways together; the presence of a further one is not taken.
    pub sessions_limit: usize,
    /// How long the sessions of a lost gateway stay, and how long one that returns has to publish
    /// them again, in seconds.
    pub grace_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sessions_limit: 1_000_000,
            grace_s: 15,
        }
    }
}

impl Config {
    /// Every field whose value cannot be, with the reason.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.sessions_limit == 0 {
            problems.push(("sessions_limit", "must be at least 1".to_owned()));
        }
        if !(1..=300).contains(&self.grace_s) {
            problems.push((
                "grace_s",
                format!("{} is not between 1 and 300", self.grace_s),
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_default_is_sound_and_nonsense_is_named() {
        assert!(Config::default().problems().is_empty());
        let bad: Config = toml::from_str("sessions_limit = 0\ngrace_s = 0").unwrap();
        assert_eq!(bad.problems().len(), 2);
        assert!(toml::from_str::<Config>("grace = 1").is_err());
    }
}
