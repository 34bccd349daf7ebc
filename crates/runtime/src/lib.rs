//! What every process of Chancery runs on: time, randomness, tracked tasks and staged shutdown,
//! logs, metrics, traces and failpoints. It owns every ambient thing that a test has to steer, and hands
//! each out as a value. It refuses to know any service, stanza or store.

pub mod clock;
pub mod failpoint;
pub mod ids;
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
pub mod trace;

pub use clock::Clock;
pub use failpoint::{FailpointError, Failpoints, Injected};
pub use ids::Ids;
pub use metrics::Metrics;
pub use shutdown::{Drained, Shutdown, Stage, Tasks};
pub use telemetry::{Redacted, redact};
pub use trace::Tracer;
