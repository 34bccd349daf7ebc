//! Fuzzes what a client says to its archive: queries with their forms and pages (XEP-0313, XEP-0004,
//! XEP-0059), times (XEP-0082) and preferences (XEP-0441). Whatever was scanned is read or refused,
//! and what is read keeps its limits.
//!
//! Owns no corpus.
#![no_main]

use bytes::Bytes;
use chancery_xml::{Limits, scan};
use chancery_xmpp::mam::{self, Preferences, Query};
use chancery_xmpp::{datetime, rsm, tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = datetime::parse(text);
    }
    let Ok(element) = scan(&Bytes::copy_from_slice(data), &Limits::after_auth()) else {
        return;
    };
    let Ok(root) = tree::tree(&element) else {
        return;
    };
    for child in std::iter::once(&root).chain(root.children()) {
        let _ = rsm::Request::read(child);
        let _ = Preferences::read(child);
        if let Ok(query) = Query::read(child) {
            assert!(query.ids.len() <= mam::IDS_MAX);
            assert!(query.page.index.is_none_or(|index| index == 0));
            assert_ne!(query.page.after.as_deref(), Some(""));
        }
    }
});
