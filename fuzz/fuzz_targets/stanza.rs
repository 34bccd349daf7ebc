//! Fuzzes single stanzas of a client. Owns nothing but the entry: see the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| chancery_fuzz::stanza(data));
