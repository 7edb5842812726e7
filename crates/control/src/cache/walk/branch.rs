//! One branch of a step under the walk: asked about as a whole, then span by span.

use super::{Forward, Inside, Session};
use crate::cache::records::{BranchRecord, WalkError};
use crate::cache::references::Place;
use crate::cache::unread::Purpose;
use crate::cache::{Approx, Decision, Form, Kept, Scope, Span, Spans};
use crate::guidance::Branch;
use crate::strip::Ran;

/// What becomes of a branch.
#[derive(Debug, Clone, PartialEq)]
pub enum Opened {
    /// It was approximated.
    Approximated,
    /// It is to be computed in one go.
    Whole,
    /// It is to be computed from span to span.
    Spans(Spans),
}

impl<V: Clone, S> Session<V, S> {
    /// 2. One branch of the step, computed or approximated. The branches come in the run's order.
    ///
    /// # Errors
    /// No step was begun, or the run has no such branch; or the values' holder fails.
    pub fn branch<F>(&mut self, branch: Branch, f: &mut F) -> Result<Ran, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        match self.open_branch(branch, f)? {
            Opened::Approximated => return Ok(Ran::Reused),
            Opened::Whole => f.compute(branch)?,
            Opened::Spans(spans) => {
                f.begin(branch, &spans)?;
                for (index, span) in spans.cut.iter().enumerate() {
                    f.run_units(span.units.start)?;
                    if self.enter_span(index, f)? {
                        f.run_units(span.units.end)?;
                        self.leave_span(index, f)?;
                    }
                }
                f.run_units(self.run.units.len())?;
                f.finish(branch)?;
            }
        }
        self.close_branch(f)
    }

    /// 2a. The same piece by piece, for a forward that somebody else leads: asks about a branch. What is not
    /// approximated is to be computed then, in whole or from span to span, and closed.
    ///
    /// # Errors
    /// No step was begun, or the run has no such branch; or the values' holder fails.
    pub fn open_branch<F>(&mut self, branch: Branch, f: &mut F) -> Result<Opened, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let all = self.run.units.len();
        let (at, decision, is_first) = match &self.open {
            Some(open) if self.learning.is_some() || open.done.len() < self.run.branches.len() => {
                (open.at, open.decision, open.done.is_empty())
            }
            _ => return Err(WalkError::NoStep { what: "a branch" }.into()),
        };
        if self.learning.is_none() && !self.run.branches.contains(&branch) {
            let known = self.run.branches.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ");
            return Err(WalkError::UnknownBranch { step: at.step, branch, known }.into());
        }
        let place = Place { at: self.run.at(at.step, Scope::Branch(branch))?, branch };
        let (place, decision) = match decision {
            Decision::Reuse(Approx::FromCond { .. }) if is_first => (None, Decision::Compute),
            Decision::Reuse(approx) => {
                self.approximate(at, branch, approx, f)?;
                (None, decision)
            }
            Decision::Compute => {
                let decision = self.ask(place, f)?;
                if let Decision::Reuse(approx) = decision {
                    self.approximate(place.at, branch, approx, f)?;
                }
                (Some(place), decision)
            }
        };
        if let Decision::Reuse(_) = decision {
            self.done(BranchRecord { branch, units: vec![false; all] });
            return Ok(Opened::Approximated);
        }
        let opened = match (place, self.asks.spans.clone()) {
            (Some(_), Some(spans)) => Opened::Spans(spans),
            _ => Opened::Whole,
        };
        if let Some(open) = &mut self.open {
            open.inside = Some(Inside { branch, place, units: vec![true; all] });
        }
        Ok(opened)
    }

    /// 2b. Asks about a span of the branch that is open, when the units before it have run. Whether its own are to run
    /// next; else it was replaced.
    ///
    /// # Errors
    /// No branch is open that has this span; or the values' holder fails.
    pub fn enter_span<F>(&mut self, index: usize, f: &mut F) -> Result<bool, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let (place, span) = self.span(index)?;
        f.enter(&span)?;
        let decision = if span.reusable { self.ask(place, f)? } else { Decision::Compute };
        let Decision::Reuse(approx) = decision else { return Ok(true) };
        let (kept, value) = self.recall(place.at, place.branch, approx, f)?;
        let form = if let Kept::Span(_, form) = kept { form } else { Form::Residual };
        f.replace(&span, form, value)?;
        if let Some(inside) = self.open.as_mut().and_then(|open| open.inside.as_mut()) {
            inside.units[span.units].fill(false);
        }
        Ok(false)
    }

    /// 2c. The units of a span that was entered have run.
    ///
    /// # Errors
    /// No branch is open that has this span; or the values' holder fails.
    pub fn leave_span<F>(&mut self, index: usize, f: &mut F) -> Result<(), F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let (place, span) = self.span(index)?;
        self.keep(place.branch, &[Kept::Span(index, Form::Residual), Kept::Span(index, Form::Output)], f)?;
        if span.watched {
            self.learn(place, f)?;
        } else {
            self.unread.push(place.at, Purpose::Lesson, Vec::new());
        }
        Ok(())
    }

    /// 2d. The branch that is open was computed.
    ///
    /// # Errors
    /// No branch is open; or the values' holder fails.
    pub fn close_branch<F>(&mut self, f: &mut F) -> Result<Ran, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let Some((Inside { branch, place, units }, before)) =
            self.open.as_mut().and_then(|open| Some((open.inside.take()?, open.done.first().map(BranchRecord::ran))))
        else {
            return Err(WalkError::NoStep { what: "the end of a branch" }.into());
        };
        if let (Some(place), true) = (place, units.contains(&true)) {
            self.keep(branch, &[Kept::Prediction(Form::Residual), Kept::Prediction(Form::Output)], f)?;
            // A difference to something approximated is no difference of two predictions.
            if before.is_some_and(|ran| ran != Ran::Reused) {
                self.keep(branch, &[Kept::CfgDifference], f)?;
            }
            self.learn(place, f)?;
        }
        let record = BranchRecord { branch, units };
        let ran = record.ran();
        self.done(record);
        Ok(ran)
    }

    /// A span of the branch that is open, and its place.
    fn span(&self, index: usize) -> Result<(Place, Span), WalkError> {
        let no_step = WalkError::NoStep { what: "a span" };
        let inside = self.open.as_ref().and_then(|open| Some((open.at.step, open.inside.as_ref()?)));
        let span = self.asks.spans.as_ref().and_then(|spans| spans.cut.get(index));
        let (Some((step, &Inside { branch, .. })), Some(span)) = (inside, span) else { return Err(no_step) };
        Ok((Place { at: self.run.at(step, Scope::Span { branch, span: index })?, branch }, span.clone()))
    }

    /// A branch of the step under way is through.
    fn done(&mut self, record: BranchRecord) {
        if let Some(open) = &mut self.open {
            open.done.push(record);
        }
    }
}
