//! The closed lists of words in a record. A number once given is never given again: evidence is
//! not rewritten. Zero is no word, so that empty bytes are not a record.

use crate::EvidenceError;

macro_rules! terms {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $term:ident = $number:literal $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $term = $number,)+ }

        impl $name {
            /// Every word of the list.
            pub const ALL: &'static [Self] = &[$(Self::$term,)+];

            /// The word, as exports and logs show it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$term => $text,)+ }
            }

            /// The word with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$term),)+ _ => None }
            }

            /// The number in stored records.
            pub fn number(self) -> u8 {
                self as u8
            }

            /// The word with this number.
            pub fn from_number(number: u8) -> Result<Self, EvidenceError> {
                match number {
                    $($number => Ok(Self::$term),)+
                    _ => Err(EvidenceError::Malformed(concat!("unknown ", stringify!($name)))),
                }
            }
        }
    };
}

terms! {
    /// What a record is about.
    Kind {
        Message = 1 "message",
        Presence = 2 "presence",
        Iq = 3 "iq",
        /// An account, group or setting was changed.
        Administrative = 4 "administrative",
        /// A sign of life each minute, with the counters of the gateways.
        Heartbeat = 5 "heartbeat",
        /// The wall clock moved by more than a second.
        ClockStep = 6 "clock-step",
        PolicyChange = 7 "policy-change",
        /// Somebody read evidence.
        Reading = 8 "reading",
        /// Somebody exported evidence.
        Export = 9 "export",
        /// A gateway with a newer policy refused what an older verdict had allowed.
        DeliveryDenied = 10 "delivery-denied",
        /// A writer took the shard.
        Opening = 11 "opening",
    }
}

terms! {
    /// Where a stanza came from and went to.
    Direction {
        /// From here to here, or no stanza at all.
        Internal = 1 "internal",
        Inbound = 2 "inbound",
        Outbound = 3 "outbound",
    }
}

terms! {
    /// What became of it.
    Outcome {
        /// Evidence, and no entry in any mailbox.
        Recorded = 1 "recorded",
        /// Entries were made: it may be delivered.
        Logged = 2 "logged",
        Denied = 3 "denied",
        /// The mailbox had no room.
        Full = 4 "full",
    }
}

terms! {
    /// What policy said.
    Verdict {
        /// Not a thing that policy is asked about.
        NotAsked = 1 "not-asked",
        Allow = 2 "allow",
        Deny = 3 "deny",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn names_and_numbers_lead_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()).unwrap(), *kind);
            assert_eq!(Kind::from_name(kind.name()), Some(*kind));
        }
        assert!(Kind::from_number(0).is_err() && Verdict::from_number(0).is_err());
        assert!(Outcome::from_number(5).is_err() && Direction::from_name("up").is_none());
    }
}
