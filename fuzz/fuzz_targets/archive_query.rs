//! Fuzzes what a client says to its archive: forms, pages, times, preferences. Owns nothing but the entry: see the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| chancery_fuzz::archive_query(data));
