//! Scenario and story tests live in the test targets of this package; it has no code of its own.
