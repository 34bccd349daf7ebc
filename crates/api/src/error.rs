//! [`ApiError`]: what one service answers another when it cannot do as asked.
//!
//! Becomes a gRPC status with a detail on the wire; becoming a stanza error is the gateway's affair.

use std::time::Duration;

use prost::Message;
use tonic::Status;

use crate::wire::api::v1::{Code, ErrorDetail};

/// An error between services. `message` is for operators: it never carries a body, a secret or a JID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct ApiError {
    /// What kind of failure it is.
    pub code: Code,
    /// For the operator's log.
    pub message: String,
    /// When to ask again, if that makes sense.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error of `code`.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    /// The thing asked for does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// The thing to be made exists already.
    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::Exists, message)
    }

    /// The caller may not do this.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(Code::Denied, message)
    }

    /// The service, or one that it needs, cannot be reached.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// A written limit is reached.
    pub fn resource(message: impl Into<String>) -> Self {
        Self::new(Code::Resource, message)
    }

    /// The service failed in a way that the caller cannot mend.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// True when trying again later may succeed: our own outage, never a statement about a user.
    pub fn is_wait(&self) -> bool {
        matches!(
            self.code,
            Code::Unavailable
                | Code::Resource
                | Code::Deadline
                | Code::Internal
                | Code::Unspecified
        )
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = match error.code {
            Code::Invalid => tonic::Code::InvalidArgument,
            Code::NotFound => tonic::Code::NotFound,
            Code::Exists => tonic::Code::AlreadyExists,
            Code::Denied => tonic::Code::PermissionDenied,
            Code::Unavailable => tonic::Code::Unavailable,
            Code::Resource => tonic::Code::ResourceExhausted,
            Code::Conflict => tonic::Code::Aborted,
            Code::Deadline => tonic::Code::DeadlineExceeded,
            Code::Internal | Code::Unspecified => tonic::Code::Internal,
        };
        let detail = ErrorDetail {
            code: error.code.into(),
            message: error.message.clone(),
            retry_after_ms: error
                .retry_after
                .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        };
        Status::with_details(code, error.message, detail.encode_to_vec().into())
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        if let Ok(detail) = ErrorDetail::decode(status.details())
            && detail.code() != Code::Unspecified
        {
            let retry = detail.retry_after_ms;
            return Self {
                code: detail.code(),
                message: detail.message,
                retry_after: (retry > 0).then(|| Duration::from_millis(retry)),
            };
        }
        let code = match status.code() {
            tonic::Code::InvalidArgument => Code::Invalid,
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::AlreadyExists => Code::Exists,
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Code::Denied,
            tonic::Code::ResourceExhausted => Code::Resource,
            tonic::Code::Aborted => Code::Conflict,
            tonic::Code::DeadlineExceeded => Code::Deadline,
            tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown => {
                Code::Unavailable
            }
            _ => Code::Internal,
        };
        Self::new(code, status.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        let error = ApiError {
            code: Code::Conflict,
            message: "epoch moved".into(),
            retry_after: Some(Duration::from_millis(250)),
        };
        assert_eq!(ApiError::from(Status::from(error.clone())), error);
    }

    #[test]
    fn a_foreign_status_is_our_outage_or_worse() {
        assert!(ApiError::from(Status::unknown("h2 closed")).is_wait());
        assert!(!ApiError::from(Status::permission_denied("no")).is_wait());
    }
}
