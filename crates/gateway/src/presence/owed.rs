//! Why presence is published, and what could not be published yet. Pure.

/// Why presence is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The client said so.
    Changed,
    /// The policy changed.
    Refresh,
    /// The roster changed.
    Roster,
    /// Colleagues came or went.
    Colleagues,
    /// The presence of some that it hears is still to be asked for.
    Probe,
    /// The presence service lost its state.
    Resync,
}

/// What could not be published, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Owed {
    changed: bool,
    resync: bool,
    refresh: bool,
    roster: bool,
    colleagues: bool,
    probe: bool,
}

impl Owed {
    /// One more reason.
    pub(crate) fn add(&mut self, why: Why) {
        match why {
            Why::Changed => self.changed = true,
            Why::Resync => self.resync = true,
            Why::Refresh => self.refresh = true,
            Why::Roster => self.roster = true,
            Why::Colleagues => self.colleagues = true,
            Why::Probe => self.probe = true,
        }
    }

    /// What is still owed when the client says its presence anew: what others said, or are.
    pub(crate) fn superseded(self) -> Self {
        Self {
            colleagues: self.colleagues,
            probe: self.probe,
            ..Self::default()
        }
    }

    /// What has to be done: a change says everything that the others would.
    pub(crate) fn reasons(self) -> impl Iterator<Item = Why> {
        let all = [
            (Why::Resync, self.resync && !self.changed),
            (Why::Refresh, self.refresh && !self.changed),
            (Why::Roster, self.roster && !self.refresh && !self.changed),
            (Why::Changed, self.changed),
            (Why::Colleagues, self.colleagues),
            (Why::Probe, self.probe),
        ];
        all.into_iter()
            .filter(|(_, owed)| *owed)
            .map(|(why, _)| why)
    }
}
