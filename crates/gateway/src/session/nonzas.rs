//! Elements that are no stanzas on a bound stream: XEP-0198 `<enable/>`, `<r/>`, `<a/>`, `<resume/>`, and
//! XEP-0352 `<active/>`, `<inactive/>`.

use std::time::Duration;

use bytes::Bytes;
use chancery_api::archive::{Acknowledge, Credit, Handled, attach_down};
use chancery_xml::{Element, push_attr};
use chancery_xmpp::{StreamCondition, ns};
use tokio::time::Instant;

use super::resumption::handled_too_high;
use super::stream_management::StreamManagement;
use super::{CREDIT, DRAIN_LIMIT, Session};

/// `<r/>` is answered after so long with the count reached.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Out of its order, or a second time.
const UNEXPECTED: &str = "<failed xmlns='urn:xmpp:sm:3'><unexpected-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>";

impl Session {
    pub(super) fn on_stream_management(&mut self, element: &Element, now: Instant) {
        match &*element.header.name {
            "enable" => self.enable(element),
            "r" if self.management.is_some() => {
                self.window.request(now + ANSWER_LIMIT);
            }
            "a" if self.management.is_some() => self.acknowledged(element),
            // §5: only before a resource is bound.
            "resume" | "r" | "a" => self.connection.queue(UNEXPECTED.as_bytes()),
            _ => self.fail(StreamCondition::UnsupportedStanzaType),
        }
    }

    pub(super) fn on_client_state(&mut self, element: &Element) {
        match &*element.header.name {
            "inactive" => self.client_state.set(true),
            "active" => {
                self.client_state.set(false);
                self.hand_on_held();
            }
            _ => self.fail(StreamCondition::UnsupportedStanzaType),
        }
    }

    /// §3: once, on a bound stream.
    fn enable(&mut self, element: &Element) {
        if self.management.is_some() {
            self.connection.queue(UNEXPECTED.as_bytes());
            return;
        }
        let config = &self.gateway.config;
        let mut queue = StreamManagement::new(config.sm_queue_stanzas, config.sm_queue_bytes);
        queue.resumable_seconds = seconds(element, config.resume_seconds);
        // Without `resume` the session ends with its stream. The id serves `<failed h=''/>`.
        let id = hex(&self.handle.identity.sm_id);
        let mut enabled = format!("<enabled xmlns='{}' id='{id}'", ns::SM);
        if let Some(seconds) = queue.resumable_seconds {
            enabled.push_str(" resume='true'");
            push_attr(&mut enabled, "max", &seconds.to_string());
            if !config.location.is_empty() {
                push_attr(&mut enabled, "location", &config.location);
            }
            self.gateway.sessions.resumable(&self.handle);
        }
        enabled.push_str("/>");
        self.management = Some(Box::new(queue));
        // §4: both sides count from here.
        self.count = 0;
        self.say_handled(true);
        self.connection.queue(enabled.as_bytes());
        self.grant(self.managed_credit() - CREDIT);
    }

    pub(super) fn acknowledged(&mut self, element: &Element) {
        let Some(h) = element.header.attr("h").and_then(|h| h.parse::<u32>().ok()) else {
            self.fail(StreamCondition::BadFormat);
            return;
        };
        let Some(management) = &mut self.management else {
            return;
        };
        let Ok(entries) = management.acknowledge(h) else {
            self.end(Some(handled_too_high()), DRAIN_LIMIT);
            return;
        };
        self.asked_at = None;
        if !management.waits() {
            self.ask_at = None;
        }
        self.acknowledge(entries);
    }

    /// Tells the shard that entries are with the client, and that there is room again.
    pub(super) fn acknowledge(&mut self, numbers: Vec<u64>) {
        if numbers.is_empty() {
            return;
        }
        let credit = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let session = self.handle.identity.number;
        self.tell(attach_down::Item::Acknowledge(Acknowledge {
            session,
            numbers,
        }));
        self.grant(credit);
    }

    /// Grants credit.
    pub(super) fn grant(&mut self, credit: u32) {
        let session = self.handle.identity.number;
        self.tell(attach_down::Item::Credit(Credit { session, credit }));
    }

    /// `<a/>`, when it is about something.
    pub(super) fn write_answer(&mut self) {
        self.say_handled(false);
        if let Some(management) = &mut self.management {
            let answer = management.answer();
            self.connection.queue(answer.as_bytes());
        }
    }

    /// The shard hears of a count that the log does not have, before the client is told it: whoever
    /// resumes elsewhere, or too late, is told no less (XEP-0198 §5).
    pub(super) fn say_handled(&mut self, again: bool) {
        let Some(management) = &mut self.management else {
            return;
        };
        if management.take_beyond_log() || again {
            let count = self.count - management.unhandled(self.count);
            let sm_id = Bytes::copy_from_slice(&self.handle.identity.log_id);
            self.tell(attach_down::Item::Handled(Handled { sm_id, count }));
        }
    }

    /// `<r/>`, unless one is out or nothing waits. True when it was written.
    pub(super) fn request_acknowledgement(&mut self, now: Instant) -> bool {
        let Some(management) = &mut self.management else {
            return false;
        };
        if management.requested || !management.waits() || self.ending.is_some() {
            return false;
        }
        let request = management.request();
        self.connection.queue(request.as_bytes());
        self.asked_at = Some(now);
        true
    }
}

/// For how many seconds a session may be resumed (§5): as many as the client wants and the server
/// has, `None` when one of them wants none.
fn seconds(enable: &Element, most: u32) -> Option<u32> {
    let wanted = matches!(enable.header.attr("resume"), Some("true" | "1"));
    let max = enable.header.attr("max");
    let max = max
        .and_then(|max| max.parse::<u32>().ok())
        .filter(|max| *max > 0);
    (wanted && most > 0).then(|| max.map_or(most, |max| max.min(most)))
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse, for an id of 16 bytes.
pub(super) fn unhex(text: &str) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_travel_as_hex() {
        let id = [0, 1, 0xfe, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff];
        assert_eq!(unhex(&hex(&id)), Some(id));
        for bad in [
            "",
            "00",
            "zz0102030405060708090a0b0c0d0e0f",
            "ä0102030405060708090a0b0c0d0e0",
            "+10102030405060708090a0b0c0d0e0f",
        ] {
            assert_ne!(unhex(bad), Some(id), "{bad}");
        }
    }
}
