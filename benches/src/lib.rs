//! The load generator is a binary of this package, the criterion benches are its bench targets.
