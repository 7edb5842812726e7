//! Measures what a policy asks for, and keeps the tensors that the next question refers to.

use std::collections::{HashMap, VecDeque};

use candle_core::{DType, Tensor};
use navicache_control::cache::{Asks, Measure, Quantity, Question, Seen, Subject};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Timestep;

use crate::Result;

/// Whose subject it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    branch: Branch,
    /// Index of the span that it was seen at.
    span: Option<usize>,
    subject: Subject,
}

/// A subject at a step: one tensor, or one a block.
type Value = Vec<Tensor>;

/// What the next measurements of a subject refer to. Tensors are shared, not copied.
#[derive(Default)]
struct References {
    /// At the step visited last, with its index, and at the one before.
    visited: Option<(usize, Value)>,
    visited_before: Option<Value>,
    /// At the steps computed in full, newest first.
    computed: VecDeque<(Timestep, Value)>,
    /// At this step; it becomes `computed` when the forward turns out to be one in full.
    pending: Option<Value>,
}

/// The reference points of one generation's measurements.
pub(crate) struct Meter {
    /// What must be remembered of each subject.
    needs: HashMap<Subject, Needs>,
    references: HashMap<Key, References>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Needs {
    visited: bool,
    computed: usize,
}

/// The place and time of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub branch: Branch,
    pub span: Option<usize>,
    pub step: usize,
    pub timestep: Timestep,
}

impl Meter {
    pub fn new(asks: &Asks) -> Self {
        Meter { needs: needs(asks), references: HashMap::new() }
    }

    /// Measures `quantities` of subjects that `value_of` hands over; those it has no value for are absent. All of them are read
    /// back at once.
    pub fn see(
        &mut self,
        place: Place,
        quantities: &[Quantity],
        value_of: &mut dyn FnMut(Subject) -> Result<Option<Value>>,
    ) -> Result<Seen> {
        let mut subjects: Vec<Subject> = quantities.iter().map(|q| q.subject).collect();
        subjects.dedup();
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for subject in subjects {
            let Some(value) = value_of(subject)? else { continue };
            let key = Key { branch: place.branch, span: place.span, subject };
            let references = self.references.entry(key).or_default();
            references.visit(place.step, &value, self.needs.get(&subject).copied().unwrap_or_default());
            for &quantity in quantities.iter().filter(|q| q.subject == subject) {
                if let Some(scalar) = references.measure(quantity.measure, &value, place.timestep)? {
                    names.push(quantity);
                    values.push(scalar);
                }
            }
        }
        if values.is_empty() {
            return Ok(Seen::default());
        }
        let values = Tensor::stack(&values, 0)?.to_vec1::<f64>()?;
        Ok(names.into_iter().zip(values).collect())
    }

    /// The step is over: what was seen of the `full` branches, which were computed in full, is what later changes refer to.
    /// `all` says whether every branch was.
    pub fn close(&mut self, full: &[Branch], all: bool, timestep: Timestep) {
        for (key, references) in &mut self.references {
            let Some(value) = references.pending.take() else { continue };
            let is_full = if key.subject == Subject::Gap { all } else { full.contains(&key.branch) };
            let depth = self.needs.get(&key.subject).map_or(0, |needs| needs.computed);
            if is_full && depth > 0 {
                references.computed.push_front((timestep, value));
                references.computed.truncate(depth);
            }
        }
    }

    /// Most tensors that will be remembered of latents' size and of features' size, for one branch.
    pub fn remembered(asks: &Asks, blocks: usize) -> Remembered {
        let mut remembered = Remembered::default();
        let needs = needs(asks);
        let spans = asks.spans.as_ref().map_or(0, |s| s.cut.iter().filter(|span| span.watched).count());
        for (subject, needs) in needs {
            // The value of this step is pending beside those remembered.
            let tensors = if needs.visited { 2 } else { 0 } + if needs.computed > 0 { needs.computed + 1 } else { 0 };
            match subject {
                Subject::Input | Subject::Output | Subject::Residual | Subject::Gap => remembered.latents += tensors,
                Subject::ModulatedInput | Subject::FilteredInput => remembered.features += tensors,
                Subject::SpanResidual | Subject::SpanOutput => remembered.features += tensors * spans,
                Subject::BlockOutputs => remembered.features += tensors * blocks,
                Subject::Trial { .. } | Subject::TimeEmbedding | Subject::TimeProjection => {}
            }
        }
        remembered
    }
}

/// Numbers of remembered tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub latents: usize,
    pub features: usize,
}

/// What must be remembered of each subject for all questions.
fn needs(asks: &Asks) -> HashMap<Subject, Needs> {
    let spans = asks.spans.as_ref().map(|spans| &spans.question);
    let questions: Vec<&Question> = [asks.step.as_ref(), asks.branch.as_ref(), spans].into_iter().flatten().collect();
    let mut needs: HashMap<Subject, Needs> = HashMap::new();
    for quantity in questions.iter().flat_map(|q| q.to_decide.iter().chain(&q.to_learn)) {
        let entry = needs.entry(quantity.subject).or_default();
        entry.visited |= quantity.measure.since_visit();
        entry.computed = entry.computed.max(quantity.measure.anchors());
    }
    needs
}

impl References {
    /// A subject may be looked at twice in a step; the step visited before stays the same.
    fn visit(&mut self, step: usize, value: &Value, needs: Needs) {
        if needs.visited && self.visited.as_ref().is_none_or(|(visited, _)| *visited != step) {
            let last = self.visited.replace((step, value.clone()));
            self.visited_before = last.map(|(_, value)| value);
        }
        if needs.computed > 0 {
            self.pending = Some(value.clone());
        }
    }

    /// Reduced on the device, not read yet. Values of several tensors give the mean of theirs.
    fn measure(&self, measure: Measure, value: &Value, now: Timestep) -> Result<Option<Tensor>> {
        let mut scalars = Vec::with_capacity(value.len());
        for (i, a) in value.iter().enumerate() {
            let visited = self.visited_before.as_ref().and_then(|v| v.get(i));
            let computed = |lag: usize| self.computed.get(lag).and_then(|(t, v)| Some((*t, v.get(i)?)));
            match one(measure, a, visited, &computed, now)? {
                Some(scalar) => scalars.push(scalar),
                None => return Ok(None),
            }
        }
        Ok(match scalars.len() {
            0 => None,
            1 => scalars.pop(),
            _ => Some(Tensor::stack(&scalars, 0)?.mean_all()?),
        })
    }
}

/// One measure of one tensor; absent where its reference point is.
fn one<'a>(
    measure: Measure,
    a: &Tensor,
    visited: Option<&Tensor>,
    computed: &dyn Fn(usize) -> Option<(Timestep, &'a Tensor)>,
    now: Timestep,
) -> Result<Option<Tensor>> {
    // What the measure refers to: the value at the step before, so many computed steps ago, or at the last of them.
    let earlier = match measure {
        Measure::Magnitude => return mean_abs(a).map(Some),
        Measure::Norm => return norm(a).map(Some),
        Measure::Lag(lag) | Measure::LagDistance(lag) => lag.checked_sub(1).and_then(computed).map(|(_, c)| c),
        _ if measure.since_visit() => visited,
        _ => computed(0).map(|(_, c)| c),
    };
    let Some(earlier) = earlier else { return Ok(None) };
    Ok(Some(match measure {
        Measure::Magnitude | Measure::Norm => return Ok(None), // refer to nothing: answered above
        Measure::ChangeSinceVisit | Measure::ChangeSinceCompute | Measure::Lag(_) => mean_abs(&(a - earlier)?)?,
        Measure::RelativeChangeSinceVisit | Measure::RelativeChangeSinceCompute => {
            (mean_abs(&(a - earlier)?)? / mean_abs(earlier)?)?
        }
        Measure::DistanceSinceVisit | Measure::LagDistance(_) => norm(&(a - earlier)?)?,
        Measure::TokenRatioSinceVisit => {
            let sizes = |t: &Tensor| t.to_dtype(DType::F64)?.sqr()?.sum(1)?.sqrt();
            (sizes(a)? / sizes(earlier)?)?.mean_all()?
        }
        Measure::CosineSinceCompute => {
            let product = (a.to_dtype(DType::F64)? * earlier.to_dtype(DType::F64)?)?.sum_all()?;
            (product / (norm(a)? * norm(earlier)?)?)?
        }
        Measure::AnchorPosition => {
            let Some((_, b)) = computed(1) else { return Ok(None) };
            (mean_abs(&(a - b)?)? / mean_abs(&(earlier - b)?)?)?
        }
        Measure::LineError => {
            let (Some((tc, c)), Some((tb, b))) = (computed(0), computed(1)) else { return Ok(None) };
            if tc == tb {
                return Ok(None); // no line through two values at one place
            }
            let along = (now.0 - tc.0) / (tc.0 - tb.0);
            let line = (c + ((c - b)? * along)?)?;
            (mean_abs(&(a - line)?)? / mean_abs(a)?)?
        }
    }))
}

/// Mean of absolute values, summed in f64 so that the size of a video does not blur a decision.
fn mean_abs(t: &Tensor) -> Result<Tensor> {
    Ok(t.abs()?.to_dtype(DType::F64)?.mean_all()?)
}

/// Euclidean norm, in f64.
fn norm(t: &Tensor) -> Result<Tensor> {
    Ok(t.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?)
}

/// Whether every element is a finite number.
pub(crate) fn is_finite(t: &Tensor) -> Result<bool> {
    Ok(mean_abs(t)?.to_scalar::<f64>()?.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn asks(quantities: Vec<Quantity>) -> Asks {
        Asks { step: Some(Question { to_learn: quantities, ..Question::default() }), ..Asks::default() }
    }

    /// A subject's values, step by step, and whether the step was computed in full: what is measured at each.
    fn play(measure: Measure, steps: &[(&[f32], bool)]) -> Vec<Option<f64>> {
        let quantity = Subject::Output.by(measure);
        let mut meter = Meter::new(&asks(vec![quantity]));
        let mut seen = Vec::new();
        for (step, (values, full)) in steps.iter().enumerate() {
            let timestep = Timestep(1000.0 - 10.0 * step as f64);
            let place = Place { branch: Branch::Cond, span: None, step, timestep };
            let see = &mut |_| Ok(Some(vec![tensor(values)]));
            seen.push(meter.see(place, &[quantity], see).unwrap().get(quantity));
            let full: &[Branch] = if *full { &[Branch::Cond] } else { &[] };
            meter.close(full, !full.is_empty(), timestep);
        }
        seen
    }

    #[test]
    fn reference_points_are_the_step_before_and_the_last_full_one() {
        let steps: [(&[f32], bool); 3] = [(&[0.0, 2.0], true), (&[1.0, -1.0], false), (&[2.0, -1.0], true)];
        assert_eq!(play(Measure::ChangeSinceVisit, &steps), [None, Some(2.0), Some(0.5)]);
        assert_eq!(play(Measure::ChangeSinceCompute, &steps), [None, Some(2.0), Some(2.5)]);
        assert_eq!(play(Measure::RelativeChangeSinceVisit, &steps), [None, Some(2.0), Some(0.5)]);
        assert_eq!(play(Measure::RelativeChangeSinceCompute, &steps), [None, Some(2.0), Some(2.5)]);
        assert_eq!(play(Measure::Magnitude, &steps), [Some(1.0), Some(1.0), Some(1.5)]);
    }

    #[test]
    fn measures_of_two_anchors() {
        let steps: [(&[f32], bool); 4] = [(&[1.0], true), (&[2.0], true), (&[9.0], false), (&[6.0], true)];
        assert_eq!(play(Measure::AnchorPosition, &steps), [None, None, Some(8.0), Some(5.0)]);
        // the line through 1 and 2 is at 4 in step 3
        assert_eq!(play(Measure::LineError, &steps)[3], Some(2.0 / 6.0));
        assert_eq!(play(Measure::Lag(2), &steps), [None, None, Some(8.0), Some(5.0)]);
    }

    #[test]
    fn norms_and_angles() {
        let steps: [(&[f32], bool); 2] = [(&[3.0, 4.0], true), (&[4.0, -3.0], true)];
        assert_eq!(play(Measure::Norm, &steps), [Some(5.0), Some(5.0)]);
        assert_eq!(play(Measure::CosineSinceCompute, &steps), [None, Some(0.0)]);
        assert_eq!(play(Measure::DistanceSinceVisit, &steps), [None, Some(50f64.sqrt())]);
    }

    #[test]
    fn non_finite_is_seen() {
        assert!(is_finite(&tensor(&[1.0, -2.0])).unwrap());
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!is_finite(&tensor(&[1.0, broken])).unwrap());
        }
    }
}
