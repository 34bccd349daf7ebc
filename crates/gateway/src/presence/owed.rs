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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_says_anew_supersedes_what_it_said_and_not_what_others_are() {
        let mut owed = Owed::default();
        let all = [
            Why::Probe,
            Why::Colleagues,
            Why::Roster,
            Why::Refresh,
            Why::Resync,
        ];
        all.into_iter().for_each(|why| owed.add(why));
        let order: Vec<Why> = owed.reasons().collect();
        assert_eq!(
            order,
            [Why::Resync, Why::Refresh, Why::Colleagues, Why::Probe]
        );
        let left: Vec<Why> = owed.superseded().reasons().collect();
        assert_eq!(left, [Why::Colleagues, Why::Probe]);
        owed.add(Why::Changed);
        let order: Vec<Why> = owed.reasons().collect();
        assert_eq!(order, [Why::Changed, Why::Colleagues, Why::Probe]);
    }
}
