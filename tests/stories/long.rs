//! Clients that we did not write and that take too long for every change: `cargo xtask test clients`,
//! and `cargo xtask test long`, run them one at a time. Owns nothing but the list.

mod aioxmpp;
mod desktop;
mod dino;
mod profanity;
