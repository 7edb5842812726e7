//! The walk of a generation: who is asked what, in which order, what is computed, kept and remembered.
//!
//! A [`Session`] leads one generation under a policy. Whoever holds the values (tensors in the engine, recorded numbers
//! in a replay, closures in tests) answers through [`Forward`], whose value type this crate does not know. There are
//! three entry points and no loop, so that the session can sit inside somebody else's sampling loop:
//!
//! ```text
//! for each step:   begin_step    ask about the step
//!                  branch        for each branch: ask about it, then span by span; compute, or approximate
//!                  end_step      learn from what was computed
//! ```
//!
//! Where somebody else leads the forward too, a branch comes in pieces: `open_branch`, `enter_span`, `leave_span`,
//! `close_branch`.
//!
//! **Measuring has two phases.** A measurement is a handle ([`Forward::Scalar`]) until it is read. What a computed step
//! teaches is read together with the next question that the policy must answer, so that a GPU is waited for at most
//! once a step, and not at all while the first steps are computed anyway.

mod branch;

use super::conversation::Conversation;
use super::records::{Approximated, BranchRecord, StepRecord, WalkError};
use super::references::{Place, References, Refs};
use super::state::SessionState;
use super::store::Store;
use super::unread::{Purpose, Unread};
use super::{
    Approx, Asks, At, Decision, Form, Guarded, Kept, Measurements, Method, Quantity, Run, Scope, Span, Spans, Subject,
};
use crate::guidance::Branch;
use crate::resume::ResumeError;
use crate::solver::skipping::Skip;
use crate::strip::Ran;

pub use branch::Opened;

/// What the walk asks of whoever holds the values.
pub trait Forward {
    /// What is measured, kept and added up: a tensor, or several.
    type Value: Clone;
    /// A measurement that was not read yet.
    type Scalar;
    /// What can go wrong, the walk's own errors among it.
    type Error: From<WalkError>;

    /// The subject at a place. `None` where it does not exist, as a difference of branches in a run of one.
    fn subject(&mut self, place: Place, subject: Subject) -> Result<Option<Self::Value>, Self::Error>;

    /// A measurement of `now`, the subject's value; `None` where its reference point is missing.
    fn measure(
        &mut self,
        place: Place,
        quantity: Quantity,
        now: &Self::Value,
        refs: Refs<'_, Self::Value>,
    ) -> Result<Option<Self::Scalar>, Self::Error>;

    /// Reads measurements, all in one go.
    fn read(&mut self, scalars: Vec<Self::Scalar>) -> Result<Vec<f64>, Self::Error>;

    /// Computes a branch's prediction in full.
    fn compute(&mut self, branch: Branch) -> Result<(), Self::Error>;

    /// Begins a branch's forward that is asked about span by span.
    fn begin(&mut self, branch: Branch, spans: &Spans) -> Result<(), Self::Error>;

    /// Runs the next units, up to `end`.
    fn run_units(&mut self, end: usize) -> Result<(), Self::Error>;

    /// The units before a span have run; its residual begins at `span.since`.
    fn enter(&mut self, span: &Span) -> Result<(), Self::Error>;

    /// Puts an approximated value in the place of the entered span.
    fn replace(&mut self, span: &Span, form: Form, value: Self::Value) -> Result<(), Self::Error>;

    /// Ends the forward that was begun.
    fn finish(&mut self, branch: Branch) -> Result<(), Self::Error>;

    /// What is to be kept of what was just computed: the branch's prediction, its difference to the first branch's, or
    /// the span.
    fn kept(&mut self, branch: Branch, kept: Kept) -> Result<Self::Value, Self::Error>;

    /// The sum of values times weights; `split`: times these weights of its low and its high spatial frequencies.
    fn sum(&mut self, terms: &[(f64, &Self::Value)], split: Option<(f64, f64)>) -> Result<Self::Value, Self::Error>;

    /// Takes `value` for a branch's prediction, or for what was kept in the place of it.
    fn approximate(&mut self, branch: Branch, kept: Kept, value: Self::Value) -> Result<(), Self::Error>;
}

/// What became of a step when it was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// Its branches come next.
    Branches,
    /// No branch runs: the solver skips the step.
    Skipped(Skip),
}

/// One generation under a policy. It is dropped at the generation's end: nothing of it is left for the next.
pub struct Session<V, S> {
    run: Run,
    policy: Conversation,
    asks: Asks,
    references: References<V>,
    store: Store<V>,
    open: Option<Open>,
    records: Vec<StepRecord>,
    /// Measured and not read yet.
    unread: Unread<S>,
    /// Where the branches are learnt from the first step: who starts the policy anew once they are known.
    learning: Option<Box<dyn Method + Send>>,
}

/// A step under way.
struct Open {
    at: At,
    decision: Decision,
    done: Vec<BranchRecord>,
    inside: Option<Inside>,
}

/// A branch under way, to be computed.
struct Inside {
    branch: Branch,
    /// Where it was asked about; `None` where the step had answered for it.
    place: Option<Place>,
    /// Of each unit, whether it is computed.
    units: Vec<bool>,
}

impl<V: Clone, S> Session<V, S> {
    /// Leads a run under a policy that was started for it.
    pub fn new(run: Run, policy: Guarded) -> Self {
        let asks = policy.asks().clone();
        Session {
            references: References::new(&asks),
            store: Store::new(&asks),
            records: Vec::with_capacity(run.steps.len()),
            run,
            policy: Conversation::new(policy),
            asks,
            open: None,
            unread: Unread::default(),
            learning: None,
        }
    }

    /// The same, where the branches are not known before the first step is over. `run.branches` is a guess; the first
    /// step is computed, and when it has other branches, the policy starts anew with these and is told what was
    /// measured.
    ///
    /// # Errors
    /// The method does not fit the run.
    pub fn learning(run: Run, method: Box<dyn Method + Send>) -> Result<Self, WalkError> {
        let policy = start(&*method, &run)?;
        Ok(Session { learning: Some(method), ..Session::new(run, policy) })
    }

    /// Leads a run on from where another session of it was. `policy`: one that was started for the run, whose branches
    /// are the state's; it is told again what was said then.
    ///
    /// # Errors
    /// The state is of another run or method, or damaged.
    pub fn resume(run: Run, policy: Guarded, state: SessionState<V>) -> Result<Self, ResumeError> {
        let SessionState { branches, said, records, waiting, remembered, stocked } = state;
        let names = |branches: &[Branch]| branches.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ");
        ResumeError::unless(branches == run.branches, "branches", names(&branches), names(&run.branches))?;
        records.iter().try_for_each(|record| record.check(&run))?;
        let mut session = Session::new(run, policy);
        session.references = References::resume(&session.asks, &session.run, remembered)?;
        session.store = Store::resume(&session.asks, &session.run, stocked)?;
        session.unread = Unread::resume(&session.run, waiting)?;
        session.policy.again(&session.run, said)?;
        session.policy.take_alarms(); // they are on record
        session.records = records;
        Ok(session)
    }

    /// The run, with the branches as they are known.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// What the policy asks for.
    pub fn asks(&self) -> &Asks {
        &self.asks
    }

    /// The steps that are over.
    pub fn records(&self) -> &[StepRecord] {
        &self.records
    }

    /// 1. Asks about a step as a whole.
    ///
    /// # Errors
    /// The step is outside of the schedule; or the values' holder fails.
    pub fn begin_step<F>(&mut self, step: usize, f: &mut F) -> Result<Begun, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let at = self.run.at(step, Scope::Step)?;
        if step > 0 && self.run.segments.contains(&step) {
            self.forget(f)?;
        }
        self.records.push(StepRecord::new(step));
        let first = self.first_branch();
        let decision = self.ask(Place { at, branch: first }, f)?;
        self.open = Some(Open { at, decision, done: Vec::new(), inside: None });
        let skip = match decision {
            Decision::Reuse(Approx::StepOver) => Some(Skip::Over),
            Decision::Reuse(Approx::Corrected) => Some(Skip::Corrected),
            _ => None,
        };
        if let (Some(_), Some(open)) = (skip, &mut self.open) {
            let nothing = |&branch: &Branch| BranchRecord { branch, units: vec![false; self.run.units.len()] };
            open.done = self.run.branches.iter().map(nothing).collect();
        }
        Ok(skip.map_or(Begun::Branches, Begun::Skipped))
    }

    /// 3. Learns from a step whose branches are through, and says what became of it.
    ///
    /// # Errors
    /// No step was begun; or the values' holder fails.
    pub fn end_step<F>(&mut self, f: &mut F) -> Result<&StepRecord, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let Some(Open { at, decision, done, .. }) = self.open.take() else {
            return Err(WalkError::NoStep { what: "an end" }.into());
        };
        if decision == Decision::Compute {
            self.learn_of_step(at, &done, f)?;
        }
        let is_full = |b: &&BranchRecord| decision == Decision::Compute && b.ran() == Ran::Computed;
        let full: Vec<Branch> = done.iter().filter(is_full).map(|b| b.branch).collect();
        self.references.close(&full, full.len() == done.len());
        self.learn_branches(&done)?;
        self.note();
        let record = self.record();
        record.branches = done;
        Ok(record)
    }

    /// The input of the step under way turned out to be another one than its branches saw.
    pub fn amend_input(&mut self, value: &V) {
        if let Some(open) = &self.open {
            self.references.amend_input(open.at.step, value);
        }
    }

    /// Another network takes over at a step that was not begun yet, where that was not known before. See
    /// [`Run::segments`].
    pub fn begin_segment(&mut self, step: usize) {
        if !self.run.segments.contains(&step) {
            self.run.segments.push(step);
            self.run.segments.sort_unstable();
        }
        self.policy.begin_segment(step);
    }

    /// Lets go of every value, as at the generation's end: those that approximations are made of, and the reference
    /// points of measurements. What was measured stays to be read by [`Session::finish`].
    pub fn release(&mut self) {
        self.references.clear();
        self.store.clear();
        self.policy.forget();
    }

    /// Where the generation stands between two steps: [`Session::resume`] goes on from there. What was measured is
    /// read, and told when it would have been.
    ///
    /// # Errors
    /// A step is under way, or the branches are not known yet; or the values' holder fails.
    pub fn save<F>(&mut self, f: &mut F) -> Result<SessionState<V>, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        if self.open.is_some() || self.learning.is_some() {
            return Err(WalkError::NotBetweenSteps.into());
        }
        self.unread.settle(|scalars| f.read(scalars))?;
        Ok(SessionState {
            branches: self.run.branches.clone(),
            said: self.policy.said().to_vec(),
            records: self.records.clone(),
            waiting: self.unread.save(),
            remembered: self.references.save(&self.run.branches),
            stocked: self.store.save(),
        })
    }

    /// Ends the generation: what was not read is read, and the records are complete.
    ///
    /// # Errors
    /// The values' holder fails.
    pub fn finish<F>(mut self, f: &mut F) -> Result<Vec<StepRecord>, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        self.read(f)?;
        self.note();
        Ok(self.records)
    }

    /// So many steps are to be computed, in equivalents of whole ones: a target that is known only now. It holds from a
    /// step on that was not begun yet.
    pub fn budget(&mut self, from: usize, budget: f64) {
        self.policy.budget(from, budget);
    }

    /// The budgets so far, each from a step on.
    pub fn budgets(&self) -> &[(usize, f64)] {
        self.policy.budgets()
    }

    /// What the guards have to say goes on record.
    fn note(&mut self) {
        let alarms = self.policy.take_alarms();
        if let Some(record) = self.records.last_mut() {
            let threshold = self.policy.threshold(record.step);
            record.threshold = threshold.map(|threshold| threshold.min(f64::MAX)); // JSON has no infinity
            record.alarms.extend(alarms);
        }
    }

    /// What the policy learns of a step that was not reused as a whole.
    fn learn_of_step<F>(&mut self, at: At, done: &[BranchRecord], f: &mut F) -> Result<(), F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let Some(question) = self.asks.step.clone() else { return Ok(()) };
        let (gaps, others): (Vec<Quantity>, Vec<Quantity>) =
            question.to_learn.iter().partition(|q| q.subject == Subject::CfgDifference);
        let mut measured = self.measure(Place { at, branch: self.first_branch() }, &others, f)?;
        if done.len() > 1 && done.iter().all(|b| b.ran() != Ran::Reused) {
            measured.extend(self.measure(Place { at, branch: done[1].branch }, &gaps, f)?);
        }
        self.unread.push(at, Purpose::Lesson, measured);
        Ok(())
    }

    /// Measures what was computed at a place; the policy is told before it has to decide again.
    fn learn<F>(&mut self, place: Place, f: &mut F) -> Result<(), F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let to_learn = self.asks.question(place.at.scope).map(|q| q.to_learn.clone()).unwrap_or_default();
        let measured = self.measure(place, &to_learn, f)?;
        self.unread.push(place.at, Purpose::Lesson, measured);
        Ok(())
    }

    /// Measures what a question needs, and puts it. What is computed in any case is not waited for.
    fn ask<F>(&mut self, place: Place, f: &mut F) -> Result<Decision, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let Some(question) = self.asks.question(place.at.scope) else { return Ok(Decision::Compute) };
        let to_decide = question.to_decide.clone();
        let measured = self.measure(place, &to_decide, f)?;
        self.unread.push(place.at, Purpose::Question, measured);
        let is_first = place.at.step == 0 && self.learning.is_some();
        if is_first || self.policy.is_forced(place.at) {
            return Ok(self.policy.force(place.at));
        }
        let seen = self.read(f)?;
        let decision = self.policy.decide(place.at, &seen);
        if let Decision::Reuse(approx) = decision {
            let branch = if let Approx::FromCond { .. } = approx { Branch::Uncond } else { place.branch };
            let weights = self.policy.recipe(branch, place.at, approx).map(|r| r.weights).unwrap_or_default();
            let anchors = self.policy.anchors(branch, place.at.scope, approx).iter().map(|a| a.step).collect();
            let (step, scope) = (place.at.step, place.at.scope);
            self.record().approximated.push(Approximated { step, scope, approx, weights, anchors });
        }
        Ok(decision)
    }

    /// Measures quantities at a place, without reading them.
    fn measure<F>(&mut self, place: Place, quantities: &[Quantity], f: &mut F) -> Result<Vec<(Quantity, S)>, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let mut measured = Vec::new();
        for of_subject in quantities.chunk_by(|a, b| a.subject == b.subject) {
            let subject = of_subject[0].subject;
            let Some(value) = f.subject(place, subject)? else { continue };
            for &quantity in of_subject {
                let refs = self.references.visit(place, subject, &value);
                if let Some(scalar) = f.measure(place, quantity, &value, refs)? {
                    measured.push((quantity, scalar));
                }
            }
        }
        Ok(measured)
    }

    /// Reads everything that was measured, tells the policy what there is to learn, and hands back what the last
    /// question is about.
    fn read<F>(&mut self, f: &mut F) -> Result<Measurements, F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        self.unread.settle(|scalars| f.read(scalars))?;
        let mut last = Measurements::default();
        for (at, purpose, seen) in self.unread.take() {
            // Steps may be begun at any index, where somebody else's loop leads: the record is looked up.
            if let Some(record) = self.records.iter_mut().rev().find(|record| record.step == at.step) {
                record.measured.extend(seen.iter().map(|(quantity, value)| (at.scope, quantity, value)));
            }
            match purpose {
                Purpose::Lesson => self.policy.computed(at, &seen),
                Purpose::Question => last = seen,
            }
        }
        Ok(last)
    }

    /// Keeps what was computed, in the forms that are wanted.
    fn keep<F>(&mut self, branch: Branch, forms: &[Kept], f: &mut F) -> Result<(), F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        for &kept in forms {
            if self.store.wants(kept) {
                self.store.keep(branch, kept, f.kept(branch, kept)?);
            }
        }
        Ok(())
    }

    /// A branch's prediction is approximated.
    fn approximate<F>(&mut self, at: At, branch: Branch, approx: Approx, f: &mut F) -> Result<(), F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let (kept, value) = self.recall(at, branch, approx, f)?;
        f.approximate(branch, kept, value)
    }

    /// The weighted sum of what was kept.
    fn recall<F>(&mut self, at: At, branch: Branch, approx: Approx, f: &mut F) -> Result<(Kept, V), F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        let Some(recipe) = self.policy.recipe(branch, at, approx) else {
            return Err(WalkError::NoStep { what: "a step over" }.into());
        };
        let nothing = || WalkError::NothingKept { step: at.step, branch, kept: recipe.kept };
        let terms = self.store.terms(&recipe).ok_or_else(nothing)?;
        Ok((recipe.kept, f.sum(&terms, recipe.split)?))
    }

    /// Another network takes over: what was kept and remembered is dropped, what was learnt stays.
    fn forget<F>(&mut self, f: &mut F) -> Result<(), F::Error>
    where
        F: Forward<Value = V, Scalar = S>,
    {
        self.read(f)?;
        self.references.clear();
        self.store.clear();
        self.policy.forget();
        Ok(())
    }

    /// After the first step the branches are known. The policy that was started for others starts anew; it was asked
    /// nothing yet.
    fn learn_branches(&mut self, done: &[BranchRecord]) -> Result<(), WalkError> {
        let Some(method) = self.learning.take() else { return Ok(()) };
        let branches: Vec<Branch> = done.iter().map(|b| b.branch).collect();
        if branches != self.run.branches {
            self.run.branches = branches;
            let policy = start(&*method, &self.run)?;
            self.asks = policy.asks().clone();
            self.policy = Conversation::new(policy);
        }
        Ok(())
    }

    fn first_branch(&self) -> Branch {
        self.run.branches.first().copied().unwrap_or(Branch::Cond)
    }

    /// The record of the step under way: the last one.
    fn record(&mut self) -> &mut StepRecord {
        let last = self.records.len() - 1;
        &mut self.records[last]
    }
}

fn start(method: &dyn Method, run: &Run) -> Result<Guarded, WalkError> {
    method.try_start(run).map_err(|reason| WalkError::Refused { method: method.name().to_string(), reason })
}
