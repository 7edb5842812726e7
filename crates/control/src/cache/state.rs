//! Where a generation stands between two steps: all that its walk remembers, as a value.

use serde::{Deserialize, Serialize};

use super::conversation::Said;
use super::records::StepRecord;
use super::references::Remembered;
use super::store::Stocked;
use super::unread::Waiting;
use crate::guidance::Branch;
use crate::resume::Convert;

/// Where a generation stands between two steps, over values that this crate does not know. The same state is the same
/// text, whatever it is written as: its lists are in order.
///
/// Made by [`Session::save`](super::walk::Session::save), taken by [`Session::resume`](super::walk::Session::resume).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionState<V> {
    /// The branches of every step.
    pub(super) branches: Vec<Branch>,
    /// What was said to the policy.
    pub(super) said: Vec<Said>,
    /// The steps that are over.
    pub(super) records: Vec<StepRecord>,
    /// What was measured and not told to the policy yet.
    pub(super) waiting: Vec<Waiting>,
    /// The reference points of measurements.
    pub(super) remembered: Vec<Remembered<V>>,
    /// What approximations are made of.
    pub(super) stocked: Vec<Stocked<V>>,
}

impl<V> SessionState<V> {
    /// The branches of every step, which a session may have learnt from its first.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The steps that are over.
    pub fn records(&self) -> &[StepRecord] {
        &self.records
    }

    /// What was said to the policy, in order.
    pub fn said(&self) -> &[Said] {
        &self.said
    }

    /// The same over other values: each is handed over with its name, which no other value has.
    ///
    /// # Errors
    /// The first of a conversion.
    pub fn map<W, E>(self, convert: Convert<V, W, E>) -> Result<SessionState<W>, E> {
        Ok(SessionState {
            remembered: self.remembered.into_iter().map(|one| one.map(convert)).collect::<Result<_, E>>()?,
            stocked: self.stocked.into_iter().map(|one| one.map(convert)).collect::<Result<_, E>>()?,
            branches: self.branches,
            said: self.said,
            records: self.records,
            waiting: self.waiting,
        })
    }

    /// The same without values: enough where no step is left that could need them.
    pub fn without_values(self) -> Self {
        SessionState { remembered: Vec::new(), stocked: Vec::new(), ..self }
    }
}
