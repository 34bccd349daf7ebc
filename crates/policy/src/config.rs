//! The service's configuration. It refuses to know where the service runs.

use serde::Deserialize;

/// Configuration of the policy service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long verdicts are given on followed facts after the directory was lost, in seconds.
    /// Beyond it there are no verdicts, hence no deliveries.
    pub lease_s: u64,
    /// How long `policy apply` waits for the gateways to confirm, in milliseconds.
    pub confirm_limit_ms: u64,
    /// How long a change in the directory is held unconfirmed while the gateways take over the
    /// policy version that comes of it, in milliseconds.
    pub follow_confirm_limit_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease_s: 300,
            confirm_limit_ms: 5_000,
            follow_confirm_limit_ms: 3_000,
        }
    }
}

impl Config {
    /// Every field whose value cannot be, with the reason.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut range = |field, value: u64, low: u64, high: u64| {
            if !(low..=high).contains(&value) {
                problems.push((field, format!("{value} is not between {low} and {high}")));
            }
        };
        range("lease_s", self.lease_s, 1, 3_600);
        range("confirm_limit_ms", self.confirm_limit_ms, 100, 60_000);
        range(
            "follow_confirm_limit_ms",
            self.follow_confirm_limit_ms,
            100,
            60_000,
        );
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
        let bad: Config = toml::from_str("lease_s = 0\nconfirm_limit_ms = 1").unwrap();
        let fields: Vec<_> = bad.problems().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["lease_s", "confirm_limit_ms"]);
        assert!(toml::from_str::<Config>("lese_s = 1").is_err());
    }
}
