//! From what policy and the shard said to what the sender hears: one table each.
//!
//! Our own outage is `resource-constraint`/wait, never a statement about the recipient. Whether an
//! error may be written at all (never to an error) is decided where it is written.

use chancery_api::archive::Outcome;
use chancery_api::{ApiError, Code, Denial, LaneError, Verdict};
use chancery_xmpp::{Condition, ErrorType, StanzaError, StreamCondition, StreamError, ns};

/// How a stanza ends for its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Handled, nothing to say.
    Silent,
    /// Handled, and answered with this error.
    Bounce(StanzaError),
    /// Not known to be handled: the stream ends and the stanza is not counted.
    Stream(StreamError),
    /// Neither handled nor to be: its client has been told on another stream that it was not, and says it
    /// there. The session is over.
    Late,
}

/// Our own outage.
pub(crate) fn outage() -> StanzaError {
    StanzaError::new(Condition::ResourceConstraint).with_type(ErrorType::Wait)
}

/// Nobody is there, or it must look so.
pub(crate) fn absent() -> StanzaError {
    StanzaError::new(Condition::ServiceUnavailable).with_type(ErrorType::Cancel)
}

/// A denial as the sender sees it.
pub(crate) fn denied(verdict: &Verdict) -> StanzaError {
    match verdict.denial() {
        Denial::PolicyViolation => {
            let error = StanzaError::new(Condition::PolicyViolation).with_type(ErrorType::Cancel);
            if verdict.text.is_empty() {
                error
            } else {
                error.with_text(verdict.text.as_str())
            }
        }
        Denial::RemoteServerNotFound => {
            StanzaError::new(Condition::RemoteServerNotFound).with_type(ErrorType::Cancel)
        }
        // XEP-0191 §3.2
        Denial::Blocked => StanzaError::new(Condition::NotAcceptable)
            .with_type(ErrorType::Cancel)
            .with_app(ns::BLOCKING_ERRORS, "blocked"),
        Denial::ServiceUnavailable | Denial::Unspecified => absent(),
    }
}

/// An error of a service as the client sees it. Exhaustive: a new code has to find its place.
pub(crate) fn api_error(error: &ApiError) -> StanzaError {
    match error.code {
        Code::Invalid => StanzaError::new(Condition::BadRequest),
        Code::NotFound => StanzaError::new(Condition::ItemNotFound),
        Code::Exists | Code::Conflict => StanzaError::new(Condition::Conflict),
        Code::Denied => StanzaError::new(Condition::NotAllowed),
        // Also what a service could not mend: the client may try again, and is not told why.
        Code::Unavailable
        | Code::Resource
        | Code::Deadline
        | Code::Internal
        | Code::Unspecified => outage(),
    }
}

/// What the shard said of an allowed stanza.
pub(crate) fn allowed(outcome: Outcome) -> End {
    match outcome {
        Outcome::Committed => End::Silent,
        // RFC 6121 §8.5: the shard says so only where the table calls for an error.
        Outcome::Gone | Outcome::Full => End::Bounce(absent()),
        Outcome::Wait | Outcome::Never => End::Bounce(outage()),
        Outcome::Late => End::Late,
        Outcome::Refused | Outcome::Unspecified => End::Bounce(
            StanzaError::new(Condition::InternalServerError).with_type(ErrorType::Cancel),
        ),
    }
}

/// What the shard said of a denied one: only whether the evidence is written matters.
pub(crate) fn refused(outcome: Outcome, verdict: &Verdict) -> End {
    match outcome {
        Outcome::Committed | Outcome::Gone | Outcome::Full => End::Bounce(denied(verdict)),
        other => allowed(other),
    }
}

/// The lane gave no answer. `request`: an IQ of type get or set.
pub(crate) fn unanswered(error: LaneError, ephemeral: bool, request: bool) -> End {
    match error {
        LaneError::NotSubmitted => End::Bounce(outage()),
        // Cannot be settled: only who waits for an answer gets one.
        LaneError::Lost | LaneError::Unknown if ephemeral => {
            if request {
                End::Bounce(outage())
            } else {
                End::Silent
            }
        }
        // Unknown is not failed: never bounced.
        LaneError::Lost | LaneError::Unknown => {
            End::Stream(StreamError::new(StreamCondition::ResourceConstraint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unknown_is_never_bounced_when_recorded() {
        for error in [LaneError::Lost, LaneError::Unknown] {
            assert!(matches!(unanswered(error, false, true), End::Stream(_)));
            assert_eq!(unanswered(error, true, false), End::Silent);
            assert_eq!(unanswered(error, true, true), End::Bounce(outage()));
        }
        assert_eq!(
            unanswered(LaneError::NotSubmitted, false, false),
            End::Bounce(outage())
        );
    }

    #[test]
    fn a_concealed_denial_equals_absence() {
        let verdict = Verdict {
            denial: Denial::ServiceUnavailable.into(),
            ..Verdict::default()
        };
        assert_eq!(
            refused(Outcome::Committed, &verdict),
            allowed(Outcome::Gone)
        );
        // but our outage is told as such, whatever the verdict
        assert_eq!(refused(Outcome::Wait, &verdict), End::Bounce(outage()));
    }

    #[test]
    fn an_open_wall_says_what_its_author_wrote() {
        let verdict = Verdict {
            denial: Denial::PolicyViolation.into(),
            text: "ask compliance".into(),
            ..Verdict::default()
        };
        let End::Bounce(error) = refused(Outcome::Committed, &verdict) else {
            unreachable!()
        };
        assert_eq!(error.condition, Condition::PolicyViolation);
        assert_eq!(error.text.as_deref(), Some("ask compliance"));
    }
}
