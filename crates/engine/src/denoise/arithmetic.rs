//! What tensors do for the walk: measures, reduced on the device and read later, and weighted sums.

use candle_core::{DType, Tensor};
use navicache_control::cache::Measure;
use navicache_control::cache::references::Refs;
use navicache_control::schedule::Timestep;

use super::spectrum::low_pass;
use crate::Result;

/// What the walk measures, keeps and adds up: a prediction; the features of the video, and of the text where the model
/// has them; or the features after each block.
pub(crate) type Value = Vec<Tensor>;

/// A measure of a value, reduced on the device and not read yet. Values of several tensors give the mean of theirs.
/// `None` where its reference point is missing.
pub(super) fn measure(measure: Measure, value: &Value, refs: &Refs<Value>, now: Timestep) -> Result<Option<Tensor>> {
    let mut scalars = Vec::with_capacity(value.len());
    for (i, a) in value.iter().enumerate() {
        let visited = refs.visited.and_then(|reference| reference.value.get(i));
        let computed = |lag: usize| {
            refs.computed.get(lag).and_then(|reference| Some((reference.timestep, reference.value.get(i)?)))
        };
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

/// The sum of values times weights; `split`: times these weights of its low and its high spatial frequencies.
pub(super) fn sum(terms: &[(f64, &Value)], split: Option<(f64, f64)>) -> Result<Value> {
    let parts = terms.first().map_or(0, |(_, value)| value.len());
    let part = |i: usize| {
        let of_part: Vec<(f64, &Tensor)> = terms.iter().map(|(weight, value)| (*weight, &value[i])).collect();
        let sum = weighted(&of_part)?;
        Ok(match split {
            None => sum,
            Some((low, high)) => {
                let lows = low_pass(&sum)?;
                ((&lows * low)? + ((sum - &lows)? * high)?)?
            }
        })
    };
    (0..parts).map(part).collect()
}

/// The sum of tensors times weights; there is at least one. All that a solver does is sums of this kind.
pub fn weighted(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let scaled = |(weight, tensor): &(f64, &Tensor)| match weight {
        1.0 => Ok((*tensor).clone()),
        weight => tensor.affine(*weight, 0.0),
    };
    let mut terms = terms.iter().map(scaled);
    let first = terms.next().unwrap_or_else(|| Err(candle_core::Error::Msg("a sum of nothing".to_string())))?;
    Ok(terms.try_fold(first, |sum, term| sum + term?)?)
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

/// Mean of absolute values, a scalar in f64, summed in f64 so that the size of a video does not blur a decision.
pub fn mean_abs(t: &Tensor) -> Result<Tensor> {
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
    use navicache_control::cache::references::{Place, References};
    use navicache_control::cache::{Asks, At, Question, Scope, Subject};
    use navicache_control::guidance::Branch;
    use navicache_control::schedule::Sigma;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    /// A subject's values, step by step, and whether the step was computed in full: what is measured at each.
    fn play(of: Measure, steps: &[(&[f32], bool)]) -> Vec<Option<f64>> {
        play_tensors(of, &steps.iter().map(|(values, full)| (tensor(values), *full)).collect::<Vec<_>>())
    }

    fn play_tensors(of: Measure, steps: &[(Tensor, bool)]) -> Vec<Option<f64>> {
        let quantity = Subject::Output.by(of);
        let question = Question { to_learn: vec![quantity], ..Question::default() };
        let mut references = References::new(&Asks { step: Some(question), ..Asks::default() });
        let mut seen = Vec::new();
        for (step, (value, full)) in steps.iter().enumerate() {
            let (timestep, sigma) = (Timestep(1000.0 - 10.0 * step as f64), Sigma(1.0 - 0.01 * step as f64));
            let place = Place { at: At { step, timestep, sigma, scope: Scope::Step }, branch: Branch::Cond };
            let value = vec![value.clone()];
            let refs = references.visit(place, Subject::Output, &value);
            let scalar = measure(of, &value, &refs, timestep).unwrap();
            seen.push(scalar.map(|scalar| scalar.to_scalar::<f64>().unwrap()));
            let full: &[Branch] = if *full { &[Branch::Cond] } else { &[] };
            references.close(full, !full.is_empty());
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

    /// Against numpy; `navicache.measure` in Python is held to the same file.
    #[test]
    fn measures_are_their_definitions() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/measures.json")).expect("the file is JSON");
        let (tokens, dim) = (golden["tokens"].as_u64().unwrap() as usize, golden["dim"].as_u64().unwrap() as usize);
        let made = |step: i64| {
            let number = |i: i64| (i * i * 7919 + i * 104_729 * (step + 1) + 15_485_863 * step) % 65537;
            let values: Vec<f32> =
                (0..(tokens * dim) as i64).map(|i| (number(i) as f64 / 32768.0 - 1.0) as f32).collect();
            Tensor::from_vec(values, (tokens, dim), &Device::Cpu).unwrap()
        };
        let full = golden["full"].as_array().unwrap().iter().map(|full| full.as_bool().unwrap());
        let steps: Vec<(Tensor, bool)> = full.enumerate().map(|(step, full)| (made(step as i64), full)).collect();
        for (name, of) in [
            ("magnitude", Measure::Magnitude),
            ("norm", Measure::Norm),
            ("change_since_visit", Measure::ChangeSinceVisit),
            ("change_since_compute", Measure::ChangeSinceCompute),
            ("relative_change_since_visit", Measure::RelativeChangeSinceVisit),
            ("relative_change_since_compute", Measure::RelativeChangeSinceCompute),
            ("distance_since_visit", Measure::DistanceSinceVisit),
            ("cosine_since_compute", Measure::CosineSinceCompute),
            ("token_ratio_since_visit", Measure::TokenRatioSinceVisit),
            ("lag_1", Measure::Lag(1)),
            ("lag_2", Measure::Lag(2)),
            ("lag_distance_2", Measure::LagDistance(2)),
            ("anchor_position", Measure::AnchorPosition),
            ("line_error", Measure::LineError),
        ] {
            let expected = golden["measures"][name].as_array().expect(name);
            let found = play_tensors(of, &steps);
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(expected) {
                let close = match (found, expected.as_f64()) {
                    (Some(found), Some(expected)) => (found - expected).abs() <= 1e-12 * expected.abs(),
                    (found, expected) => found.is_none() && expected.is_none(),
                };
                assert!(close, "{name}: {found:?}, numpy has {expected}");
            }
        }
    }

    #[test]
    fn non_finite_is_seen() {
        assert!(is_finite(&tensor(&[1.0, -2.0])).unwrap());
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!is_finite(&tensor(&[1.0, broken])).unwrap());
        }
    }
}
