//! What acts lead to: envelopes for gateways, and how the stanzas in them look. It refuses to know who
//! must hear.

use std::sync::Arc;

use bytes::Bytes;
use chancery_api::presence::{AttachUp, PublishItem};

use crate::store::{Said, SessionKey};

/// What an act leads to.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Gateway and what it is sent, in order.
    pub deliveries: Vec<(Arc<str>, AttachUp)>,
    /// Sessions that are sent something, with repetition.
    pub copies: u32,
    /// Targets, or the session itself, that a limit kept out.
    pub refused: u32,
    /// Sessions out of reach, of whom they were not told, and whether that was `unavailable`.
    pub(crate) missed: Vec<(SessionKey, Box<str>, bool)>,
}

/// One stanza on its way to several sessions.
pub(crate) struct Copy<'a> {
    pub(crate) from: &'a str,
    pub(crate) payload: Bytes,
    pub(crate) policy_version: u64,
    pub(crate) unavailable: bool,
    /// The address of directed presence.
    pub(crate) to: &'a str,
    pub(crate) traceparent: &'a str,
}

impl Effects {
    /// One envelope for each gateway that has any of the sessions, which are sorted.
    pub(crate) fn copy(&mut self, copy: &Copy<'_>, receivers: &[&SessionKey]) {
        for of_gateway in receivers.chunk_by(|one, next| one.gateway == next.gateway) {
            let Some(SessionKey { gateway, .. }) = of_gateway.first() else {
                continue;
            };
            let sessions: Vec<u64> = of_gateway.iter().map(|key| key.session).collect();
            let copies = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
            self.copies = self.copies.saturating_add(copies);
            let up = AttachUp {
                from: copy.from.to_owned(),
                payload: copy.payload.clone(),
                policy_version: copy.policy_version,
                unavailable: copy.unavailable,
                sessions,
                to: copy.to.to_owned(),
                traceparent: copy.traceparent.to_owned(),
                resync: false,
            };
            self.deliveries.push((Arc::clone(gateway), up));
        }
    }

    pub(crate) fn refuse(&mut self, count: usize) {
        self.refused = self
            .refused
            .saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

pub(crate) fn said(item: &PublishItem) -> Said {
    Said {
        payload: item.payload.clone(),
        priority: item.priority,
        policy_version: item.policy_version,
    }
}

pub(crate) fn shows(item: &PublishItem) -> Copy<'_> {
    Copy {
        from: &item.from,
        payload: item.payload.clone(),
        policy_version: item.policy_version,
        unavailable: false,
        to: "",
        traceparent: &item.traceparent,
    }
}

/// `unavailable` to who saw us needs no verdict.
pub(crate) fn hides<'a>(
    from: &'a str,
    payload: Bytes,
    to: &'a str,
    traceparent: &'a str,
) -> Copy<'a> {
    Copy {
        from,
        payload,
        policy_version: 0,
        unavailable: true,
        to,
        traceparent,
    }
}

/// What is said for a session that cannot, or does not know that it should.
pub(crate) fn gone(full: &str) -> Bytes {
    let mut stanza = String::from("<presence xmlns='jabber:client' type='unavailable'");
    chancery_xml::push_attr(&mut stanza, "from", full);
    stanza.push_str("/>");
    stanza.into()
}
