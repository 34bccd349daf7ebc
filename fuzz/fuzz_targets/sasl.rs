//! Fuzzes the messages of PLAIN and SCRAM. Owns nothing but the entry: see the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| chancery_fuzz::sasl(data));
