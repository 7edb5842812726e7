//! Guards at run time: rules on scalars that tell a run that goes wrong while it runs, and what is done about it.
//!
//! Statistics of the latents do not tell a wrecked video from a good one: they depend on what it shows. What does is
//! how long runs of reuse are, and how far the reused values missed, which is known at the next computed step:
//! docs/targets.md has the figures. So a step is computed now and then whatever the method says, and most rules look
//! at steps that end a run of reuse.

use serde::{Deserialize, Serialize};

use super::{Approx, Asks, Measure, Measurements, Quantity, Question, Subject};

/// What is done when a guard raises the alarm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, strum::EnumString)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_mode)]
pub enum Mode {
    /// Nothing is watched.
    Off,
    /// A warning.
    Warn,
    /// A warning, and less is reused.
    #[default]
    Act,
}

fn unknown_mode(_: &str) -> String {
    "expected off, warn or act".to_string()
}

/// The rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Rule {
    /// So many steps in a row were reused as no good run reuses.
    LongRun,
    /// Reused values missed the computed ones by too much.
    Collapse,
    /// The latents have become far larger than noise and videos are.
    Explosion,
    /// Reused values miss by far more than the method reckons with.
    ForecastOff,
    /// Nothing was reused where videos usually allow it.
    Inert,
    /// The difference of the branches has all but vanished, and guidance with it.
    GuidanceLost,
}

impl Rule {
    /// In reports.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing but a warning.
    Warned,
    /// The threshold was lowered; where there is none to lower, the longest run of reuse.
    Lowered,
    /// Everything is computed from here.
    ComputesRest,
}

/// An alarm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// The step whose measurement raised it.
    pub step: usize,
    /// The rule.
    pub guard: Rule,
    /// What was measured.
    pub value: f64,
    /// What a good run stays below; for lost guidance and inert runs, above.
    pub limit: f64,
    /// What was done.
    pub action: Action,
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Alarm { step, value, limit, .. } = self;
        match self.guard {
            Rule::LongRun => {
                write!(f, "step {step}: {value} steps in a row were reused, good runs reuse fewer than {limit}")
            }
            Rule::Collapse => write!(
                f,
                "step {step}: what was reused was off by {:.0} %, that of good runs by {:.0} % at most",
                100.0 * value,
                100.0 * limit
            ),
            Rule::Explosion => {
                write!(
                    f,
                    "step {step}: the latents are {value:.3} times as large as the noise was, expected up to {limit}"
                )
            }
            Rule::ForecastOff => {
                write!(f, "step {step}: reused values miss {value:.1} times as much as the method reckons with")
            }
            Rule::Inert => {
                write!(
                    f,
                    "step {step}: nothing was reused so far, where {limit:.0} steps are usual: the threshold is too small"
                )
            }
            Rule::GuidanceLost => {
                write!(
                    f,
                    "step {step}: the difference of the branches, and guidance with it, fell to {:.0} %",
                    100.0 * value
                )
            }
        }?;
        f.write_str(match self.action {
            Action::Warned => "",
            Action::Lowered => "; less is reused from here",
            Action::ComputesRest => "; everything is computed from here",
        })
    }
}

/// How far reused values miss, by their form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Miss {
    /// Held values: by how much the output has changed.
    Held,
    /// Values on a line or a curve.
    Line,
    /// Nothing is approximated; the solver says how far it was off.
    Solver,
    /// What is reused is a part of the forward that the output does not tell of.
    Unknown,
}

const OUTPUT_CHANGE: Quantity = Subject::Output.by(Measure::RelativeChangeSinceCompute);
const LINE_ERROR: Quantity = Subject::Residual.by(Measure::LineError);
const SOLVER_ERROR: Quantity = Subject::SolverError.by(Measure::Magnitude);
const SAMPLE: Quantity = Subject::Sample.by(Measure::Magnitude);
const LATENTS: Quantity = Subject::Input.by(Measure::Magnitude);
const DIFFERENCE: Quantity = Subject::CfgDifference.by(Measure::Norm);

impl Miss {
    fn of(asks: &Asks, units: usize) -> Miss {
        let of_form = |approx: &Approx| match approx {
            Approx::StepOver | Approx::Corrected => Miss::Solver,
            Approx::Residual | Approx::Output | Approx::Scaled { .. } | Approx::Taylor { order: 0, .. } => Miss::Held,
            Approx::Linear | Approx::Quadratic | Approx::Taylor { .. } | Approx::TwoAnchors { .. } => Miss::Line,
            Approx::FromCond { .. } => Miss::Unknown,
        };
        let of_steps = asks.step.iter().chain(&asks.branch).flat_map(|question| &question.to_reuse).next();
        let most =
            asks.spans.iter().flat_map(|s| &s.cut).filter(|span| span.reusable).map(|span| span.units.len()).max();
        let of_spans = asks.spans.iter().flat_map(|spans| &spans.question.to_reuse).next();
        match (of_steps, of_spans) {
            (Some(form), _) => of_form(form),
            (None, Some(form)) if most.is_some_and(|most| 2 * most >= units) => of_form(form),
            _ => Miss::Unknown,
        }
    }

    fn quantities(self) -> &'static [Quantity] {
        match self {
            Miss::Held => &[OUTPUT_CHANGE],
            Miss::Line => &[LINE_ERROR],
            Miss::Solver => &[SOLVER_ERROR, SAMPLE],
            Miss::Unknown => &[],
        }
    }

    /// Relative to the value.
    fn measured(self, measured: &Measurements) -> Option<f64> {
        match self {
            Miss::Held => measured.get(OUTPUT_CHANGE),
            Miss::Line => measured.get(LINE_ERROR),
            Miss::Solver => Some(measured.get(SOLVER_ERROR)? / measured.get(SAMPLE)?),
            Miss::Unknown => None,
        }
    }

    /// What the worst of good runs missed, with room: measured on the built-in model, in 50 steps; fewer steps are
    /// longer ones. Other families were not measured; there a miss must be as large as the value itself.
    fn limit(self, family: &str, steps: usize) -> f64 {
        let limit = match (self, family) {
            (Miss::Held, "demo") => 0.5,
            (Miss::Line, "demo") => 0.3,
            (Miss::Solver, "demo") => 0.3,
            (Miss::Solver, _) => 0.5,
            _ => 1.0,
        };
        limit * longer_steps(steps)
    }

    /// The same of the error of the latents, where it was measured.
    fn limit_of_latents(self, family: &str, steps: usize) -> f64 {
        match (self, family) {
            (Miss::Solver, "demo") => 0.6 * longer_steps(steps),
            (_, "demo") => 0.1 * longer_steps(steps),
            _ => f64::INFINITY,
        }
    }

    /// The longest run of reuse without a look at what it does: a quarter of the steps, of values on a line a sixth,
    /// since they go astray sooner. Good runs of few steps have such runs, and are left to them.
    fn longest_run(self, steps: usize) -> usize {
        match self {
            _ if steps < FEW_STEPS => steps,
            Miss::Line => steps.div_ceil(6).max(9),
            _ => steps.div_ceil(4).max(12),
        }
    }

    /// The error of the latents, where values missed by `miss` at the end of a run across so much noise: a value that
    /// is held is wrong in proportion to the distance, a line to its square.
    fn of_latents(self, miss: f64, across: f64) -> f64 {
        match self {
            Miss::Held => miss * across / 2.0,
            Miss::Line => miss * across / 3.0,
            Miss::Solver | Miss::Unknown => miss,
        }
    }
}

/// Limits were measured in runs of so many steps.
const MEASURED_STEPS: f64 = 50.0;
/// In fewer steps no run of reuse is told to be long, and none is missed.
const FEW_STEPS: usize = 30;

/// Whether a value is too large, or no number.
fn is_over(value: f64, limit: f64) -> bool {
    value > limit || value.is_nan()
}

/// How much further off values are in runs of fewer steps.
fn longer_steps(steps: usize) -> f64 {
    (MEASURED_STEPS / steps.max(1) as f64).powf(1.25).max(1.0)
}

/// Latents may grow to so many times the noise.
const LARGEST: f64 = 4.0;
/// Beyond so many times the limit a lower threshold is no help.
const HOPELESS: f64 = 2.0;
/// Misses that the forecast is compared with, and how far off their geometric mean may be.
const FORECASTS: usize = 3;
const FORECAST_OFF: f64 = 3.0;
/// Fewer expected steps of reuse are no reason for a warning.
const INERT_LEAST: f64 = 4.0;
/// What the difference of branches may fall to.
const GUIDANCE_LEAST: f64 = 0.2;

/// What is watched, and what was seen.
#[derive(Debug, Clone)]
pub struct Watch {
    mode: Mode,
    miss: Miss,
    limit: f64,
    limit_of_latents: f64,
    steps: usize,
    /// Whether branches are approximated apart from each other.
    watches_guidance: bool,
    /// Of the latents at the first step.
    noise: Option<f64>,
    /// Logarithms of measured over expected misses.
    forecasts: Vec<f64>,
    /// Of the branches, at the last step computed in full.
    difference: Option<f64>,
    /// Reused steps that are usual before each step, where it is known.
    usual: Vec<f64>,
    /// Alarms so far, with what was done.
    raised: Vec<(Rule, Action)>,
}

impl Watch {
    /// Over a run of so many steps and units a forward.
    pub fn new(mode: Mode, asks: &Asks, family: &str, steps: usize, units: usize) -> Watch {
        let miss = Miss::of(asks, units);
        let inside = asks.branch.iter().chain(asks.spans.iter().map(|spans| &spans.question));
        let watches_guidance = inside.into_iter().any(|question| !question.to_reuse.is_empty());
        Watch {
            mode,
            miss,
            limit: miss.limit(family, steps),
            limit_of_latents: miss.limit_of_latents(family, steps),
            steps,
            watches_guidance,
            noise: None,
            forecasts: Vec::new(),
            difference: None,
            usual: Vec::new(),
            raised: Vec::new(),
        }
    }

    /// The same where it is known how many reused steps are usual before each step.
    pub fn expecting(self, usual: Vec<f64>) -> Watch {
        Watch { usual, ..self }
    }

    /// Whether alarms have consequences.
    pub fn acts(&self) -> bool {
        self.mode == Mode::Act
    }

    /// What a policy asks for, and what is looked at beside it.
    pub fn asks(&self, own: &Asks) -> Asks {
        let mut asks = own.clone();
        let step = asks.step.get_or_insert_with(Question::default);
        let also = |quantities: &mut Vec<Quantity>, quantity: Quantity| {
            if !quantities.contains(&quantity) {
                quantities.push(quantity);
            }
        };
        also(&mut step.to_learn, LATENTS);
        self.miss.quantities().iter().for_each(|&quantity| also(&mut step.to_learn, quantity));
        if self.watches_guidance {
            also(&mut step.to_learn, DIFFERENCE);
        }
        // Quantities of a subject stand together, so that it is looked at once.
        let mut order: Vec<Subject> = Vec::new();
        step.to_learn.iter().for_each(|q| {
            if !order.contains(&q.subject) {
                order.push(q.subject)
            }
        });
        step.to_learn.sort_by_key(|q| order.iter().position(|subject| *subject == q.subject));
        asks
    }

    /// Looks at a step before it is decided on, when so many steps were reused.
    pub fn before(&mut self, step: usize, reused: usize) -> Option<Alarm> {
        let is_due = step == self.steps.div_ceil(3) || step == (2 * self.steps).div_ceil(3);
        let usual = self.usual.get(step).copied().unwrap_or(0.0);
        if is_due && reused == 0 && usual >= INERT_LEAST && self.steps >= FEW_STEPS {
            return self.raise(Rule::Inert, step, 0.0, usual, Action::Warned);
        }
        None
    }

    /// Looks at a step that was computed, in full or in part.
    ///
    /// * `across` - the noise across which steps before it were reused, if it was computed in full and they were not
    /// * `expected` - the miss that the method reckoned with
    pub fn after(
        &mut self,
        step: usize,
        measured: &Measurements,
        full: bool,
        across: Option<f64>,
        expected: Option<f64>,
    ) -> Option<Alarm> {
        if let Some(latents) = measured.get(LATENTS) {
            let times = latents / *self.noise.get_or_insert(latents);
            if times > LARGEST {
                return self.raise(Rule::Explosion, step, times, LARGEST, Action::ComputesRest);
            }
        }
        if let (Some(now), true) = (measured.get(DIFFERENCE), self.watches_guidance) {
            let before = self.difference.filter(|before| *before > 0.0);
            if full {
                self.difference = Some(now);
            } else if let Some(part) = before.map(|before| now / before).filter(|part| *part < GUIDANCE_LEAST) {
                return self.raise(Rule::GuidanceLost, step, part, GUIDANCE_LEAST, Action::ComputesRest);
            }
        }
        let miss = self.miss.measured(measured)?;
        let of_latents = self.miss.of_latents(miss, across?);
        // At the last steps values change much and matter little: there the error of the latents counts.
        let limit = if step + 1 < self.steps { self.limit } else { f64::INFINITY };
        if is_over(miss, limit) {
            let hopeless = is_over(miss, HOPELESS * limit);
            let action = if hopeless { Action::ComputesRest } else { Action::Lowered };
            return self.raise(Rule::Collapse, step, miss, limit, action);
        }
        if is_over(of_latents, self.limit_of_latents) {
            return self.raise(Rule::Collapse, step, of_latents, self.limit_of_latents, Action::Lowered);
        }
        let off = (miss / expected.filter(|expected| *expected > 0.0)?).ln();
        self.forecasts.push(off);
        let newest = &self.forecasts[self.forecasts.len().saturating_sub(FORECASTS)..];
        let mean = (newest.iter().sum::<f64>() / newest.len() as f64).exp();
        if newest.len() == FORECASTS && mean > FORECAST_OFF {
            return self.raise(Rule::ForecastOff, step, mean, FORECAST_OFF, Action::Lowered);
        }
        None
    }

    /// The longest run of reuse without a look at what it does.
    pub fn longest_run(&self) -> usize {
        self.miss.longest_run(self.steps)
    }

    /// So many steps in a row were reused.
    pub fn long_run(&mut self, step: usize, run: usize) -> Option<Alarm> {
        let limit = self.longest_run();
        self.raise(Rule::LongRun, step, run as f64, limit as f64, Action::Lowered)
    }

    /// Each rule once; where reuse was lowered and that was not enough, once more, and then nothing more is reused.
    fn raise(&mut self, guard: Rule, step: usize, value: f64, limit: f64, action: Action) -> Option<Alarm> {
        let before = self.raised.iter().filter(|(rule, _)| *rule == guard).count();
        let again = action == Action::Lowered && self.raised.iter().any(|(_, action)| *action == Action::Lowered);
        if before >= if self.acts() && again { 2 } else { 1 } {
            return None;
        }
        let action = match (self.acts(), again) {
            (false, _) => Action::Warned,
            (true, true) => Action::ComputesRest,
            (true, false) => action,
        };
        self.raised.push((guard, action));
        let value = if value.is_finite() { value } else { f64::MAX }; // JSON has no other
        Some(Alarm { step, guard, value, limit, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(mode: Mode, form: Approx) -> Watch {
        let question = Question { to_reuse: vec![form], ..Question::default() };
        Watch::new(mode, &Asks { step: Some(question), ..Asks::default() }, "demo", 50, 4)
    }

    fn seen(quantity: Quantity, value: f64) -> Measurements {
        [(quantity, value)].into_iter().collect()
    }

    #[test]
    fn a_collapse_is_told_by_the_form_of_reuse() {
        // what is measured where the last of the run was so far off: whether it is told, and what is done
        let held = (Approx::Residual, OUTPUT_CHANGE);
        let line = (Approx::Linear, LINE_ERROR);
        for ((form, quantity), miss, action) in [
            (held, 0.4, None),
            (held, 0.7, Some(Action::Lowered)),
            (held, 1.1, Some(Action::ComputesRest)),
            (held, f64::NAN, Some(Action::ComputesRest)),
            (line, 0.25, None),
            (line, 1.1, Some(Action::ComputesRest)),
        ] {
            let alarm = watch(Mode::Act, form).after(9, &seen(quantity, miss), true, Some(0.1), None);
            assert_eq!(alarm.map(|alarm| alarm.action), action, "{form:?} {miss}");
            let not_after_reuse = watch(Mode::Act, form).after(9, &seen(quantity, miss), true, None, None);
            assert_eq!(not_after_reuse, None);
        }
        let mut again = watch(Mode::Act, Approx::Residual);
        let mut collapse = |step| again.after(step, &seen(OUTPUT_CHANGE, 0.7), true, Some(0.1), None).map(|a| a.action);
        assert_eq!([collapse(5), collapse(9), collapse(12)], [Some(Action::Lowered), Some(Action::ComputesRest), None]);
        // At the last step what counts is what the run did to the latents.
        let last =
            |across| watch(Mode::Act, Approx::Residual).after(49, &seen(OUTPUT_CHANGE, 0.7), true, Some(across), None);
        assert_eq!((last(0.1), last(0.9).map(|alarm| alarm.guard)), (None, Some(Rule::Collapse)));
    }

    #[test]
    fn long_runs_are_told_of_and_the_second_is_the_last() {
        let mut acting = watch(Mode::Act, Approx::Residual);
        let mut long = |step| acting.long_run(step, 9).map(|alarm| alarm.action);
        assert_eq!([long(11), long(21), long(31)], [Some(Action::Lowered), Some(Action::ComputesRest), None]);
        let mut acting = watch(Mode::Act, Approx::Residual);
        let collapse = |watch: &mut Watch| watch.after(15, &seen(OUTPUT_CHANGE, 0.7), true, Some(0.1), None);
        acting.long_run(11, 9);
        assert_eq!(collapse(&mut acting).map(|alarm| alarm.action), Some(Action::ComputesRest), "whichever was first");
    }

    #[test]
    fn latents_may_not_explode() {
        let mut watch = watch(Mode::Act, Approx::Residual);
        let mut at = |step, size| watch.after(step, &seen(LATENTS, size), true, None, None);
        assert_eq!([at(0, 0.8), at(1, 3.0)], [None; 2]);
        let alarm = at(2, 8e5).unwrap();
        assert_eq!((alarm.guard, alarm.action), (Rule::Explosion, Action::ComputesRest));
        assert!(alarm.to_string().contains("1000000"), "{alarm}");
    }

    #[test]
    fn a_forecast_is_off_three_times_in_a_row() {
        let mut watch = watch(Mode::Act, Approx::Residual);
        let mut miss = |step, expected| watch.after(step, &seen(OUTPUT_CHANGE, 0.2), true, Some(0.1), Some(expected));
        assert_eq!([miss(5, 0.05), miss(8, 0.05), miss(11, 0.2), miss(14, 0.05)], [None; 4]);
        assert_eq!(miss(17, 0.01).map(|alarm| alarm.guard), Some(Rule::ForecastOff));
    }

    #[test]
    fn inert_where_reuse_is_usual() {
        let usual: Vec<f64> = (0..50).map(|step| step as f64 / 2.0).collect();
        let mut watch = watch(Mode::Act, Approx::Residual).expecting(usual);
        let told = |watch: &mut Watch, reused| {
            (0..50).filter_map(|step| watch.before(step, reused)).map(|a| a.step).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut watch.clone(), 1), [0usize; 0]);
        assert_eq!(told(&mut watch, 0), [17]);
    }

    #[test]
    fn guidance_is_lost_where_the_difference_goes() {
        let question = Question { to_reuse: vec![Approx::FromCond { low: 1.0, high: 1.0 }], ..Question::default() };
        let asks = Asks { branch: Some(question), ..Asks::default() };
        let mut watch = Watch::new(Mode::Act, &asks, "demo", 50, 4);
        assert_eq!(watch.after(3, &seen(DIFFERENCE, 1.0), true, None, None), None);
        assert_eq!(watch.after(4, &seen(DIFFERENCE, 0.5), false, None, None), None);
        let alarm = watch.after(5, &seen(DIFFERENCE, 0.1), false, None, None).unwrap();
        assert_eq!(alarm.guard, Rule::GuidanceLost);
    }

    #[test]
    fn a_warning_is_all_that_warn_does() {
        let mut watch = watch(Mode::Warn, Approx::Residual);
        let mut collapse = |step| watch.after(step, &seen(OUTPUT_CHANGE, 0.9), true, Some(0.1), None).map(|a| a.action);
        assert_eq!([collapse(5), collapse(9)], [Some(Action::Warned), None]);
    }
}
