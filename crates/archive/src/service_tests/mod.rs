//! The whole archive with its threads, its disk and both wirings.

mod disk_tests;
mod history_tests;
mod house;
mod local_tests;
mod wire_tests;
