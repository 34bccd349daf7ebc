//! The sequencer, step by step and by seed.

mod append_tests;
mod attach_tests;
mod away_tests;
mod lag_tests;
mod random_tests;
mod rig;
