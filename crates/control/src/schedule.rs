//! Noise schedules: which noise level each step starts from, and the timestep the model is conditioned on.
//!
//! A flow-matching sample at noise level sigma is `(1 - sigma) data + sigma noise`. The shift (Esser et al. 2024, arXiv
//! 2403.03206, section 5.3.2) moves a grid towards high noise: `shift sigma / (1 + (shift - 1) sigma)`.
//!
//! The reference implementations (diffusers 0.42.1) differ in how they cut the interval from 1 to 0 and in where they
//! round. Rounding matters: the first sigma of [`flow_unipc`] is 1 less a millionth, so that `1 - sigma` is mostly
//! rounding error, and the solver takes its logarithm.

use serde::{Deserialize, Serialize};

/// The noise level as the model is conditioned on it, 0 to the number of training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Timestep(pub f64);

/// Noise level, 1 (all noise) to 0 (none).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Sigma(pub f64);

/// A noise level: a sample there is `alpha data + sigma noise`. On a flow the two add up to 1; a diffusion's become
/// such when its samples are divided by their sum, see [`crate::diffusion`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// Of the data.
    pub alpha: f64,
    /// Of the noise.
    pub sigma: f64,
}

impl NoiseLevel {
    /// That of a flow.
    pub fn of_flow(sigma: Sigma) -> Self {
        NoiseLevel { alpha: 1.0 - sigma.0, sigma: sigma.0 }
    }

    /// Half the log signal-to-noise ratio, in which multistep solvers measure time; all noise is minus infinity.
    pub fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
}

/// One step: where it starts from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The timestep that the model is conditioned on.
    pub timestep: Timestep,
    /// The noise level that the solver computes with.
    pub sigma: Sigma,
}

/// The steps of a run, noisiest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The steps.
    pub steps: Vec<Step>,
    /// Where each step ends. Empty: where the next one starts, and the last one without noise.
    pub ends: Vec<NoiseLevel>,
}

impl Schedule {
    /// Steps that end where the next one starts, the last one without noise.
    pub fn of(steps: Vec<Step>) -> Self {
        Schedule { steps, ends: Vec::new() }
    }

    /// The noise level that step `index` ends at; `None` is no noise at all.
    pub fn end(&self, index: usize) -> Option<NoiseLevel> {
        let next = || self.steps.get(index + 1).map(|step| NoiseLevel::of_flow(step.sigma));
        self.ends.get(index).copied().or_else(next).filter(|end| end.sigma > 0.0)
    }
}

/// A schedule that cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// No steps were asked for.
    #[error("number of steps is 0, expected at least 1")]
    NoSteps,
    /// The shift is not a positive number.
    #[error("shift is {found}, expected a finite number above 0")]
    Shift {
        /// The shift asked for.
        found: f64,
    },
    /// The model was trained on no timesteps.
    #[error("number of training timesteps is 0, expected at least 1")]
    NoTrainTimesteps,
    /// There are not so many timesteps.
    #[error("number of steps is {found}, expected at most {most}")]
    TooMany {
        /// The number asked for.
        found: usize,
        /// Timesteps that there are.
        most: usize,
    },
    /// The reference divides so that one step too many comes out.
    #[error("number of steps is {found}, of which the reference makes {}; expected another number, as {}", .found + 1, .found - 1)]
    Uneven {
        /// The number asked for.
        found: usize,
    },
}

/// The grid of UniPC as published with Wan2.1: from 1 towards `1 / train_timesteps`, whole timesteps.
///
/// Source: diffusers `UniPCMultistepScheduler.set_timesteps` with `use_flow_sigmas`.
pub fn flow_unipc(steps: usize, shift: f64, train_timesteps: usize) -> Result<Schedule, ScheduleError> {
    check(steps, shift, train_timesteps)?;
    let lowest = 1.0 / train_timesteps as f64;
    let mut sigmas: Vec<f64> = (0..steps).map(|i| shifted(linspace(1.0, lowest, steps, i), shift)).collect();
    if (sigmas[0] - 1.0).abs() < 1e-6 {
        sigmas[0] -= 1e-6; // the log signal-to-noise ratio of the first step stays finite
    }
    Ok(whole_timesteps(sigmas, train_timesteps))
}

/// The grid of DPM-Solver++: from `1 - 1 / train_timesteps` to 0, whole timesteps.
///
/// Source: diffusers `DPMSolverMultistepScheduler.set_timesteps` with `use_flow_sigmas`.
pub fn flow_dpmpp(steps: usize, shift: f64, train_timesteps: usize) -> Result<Schedule, ScheduleError> {
    check(steps, shift, train_timesteps)?;
    let lowest = 1.0 / train_timesteps as f64;
    let sigmas = (0..steps).map(|i| {
        let from_the_end = steps - i;
        let alpha = if from_the_end == steps { lowest } else { linspace(1.0, lowest, steps, from_the_end) };
        shifted(1.0 - alpha, shift)
    });
    Ok(whole_timesteps(sigmas.collect(), train_timesteps))
}

/// The grid of flow-matching Euler: from 1 to the lowest trained noise level, which the reference shifts twice;
/// timesteps are not rounded.
///
/// Source: diffusers `FlowMatchEulerDiscreteScheduler`.
pub fn flow_euler(steps: usize, shift: f64, train_timesteps: usize) -> Result<Schedule, ScheduleError> {
    check(steps, shift, train_timesteps)?;
    let train = train_timesteps as f64;
    let trained_lowest = {
        let (lowest, shift) = (1.0 / train as f32, shift as f32);
        f64::from(shift * lowest / (1.0 + (shift - 1.0) * lowest))
    };
    let steps = (0..steps).map(|i| {
        let t = if steps == 1 {
            train
        } else if i == steps - 1 {
            trained_lowest * train
        } else {
            linspace(train, trained_lowest * train, steps - 1, i)
        };
        let sigma = shifted(t / train, shift) as f32;
        Step { timestep: Timestep(f64::from(sigma * train as f32)), sigma: Sigma(f64::from(sigma)) }
    });
    Ok(Schedule::of(steps.collect()))
}

/// The grid of HunyuanVideo and Open-Sora: from 1 down in equal steps, shifted; timesteps are not rounded.
///
/// Source: diffusers `HunyuanVideoPipeline` (sigmas given to `FlowMatchEulerDiscreteScheduler`), Open-Sora v1.2
/// `rf.timestep_transform`, where the shift follows from the video's size.
pub fn flow_even(steps: usize, shift: f64, train_timesteps: usize) -> Result<Schedule, ScheduleError> {
    check(steps, shift, train_timesteps)?;
    let steps = (0..steps).map(|i| {
        let (sigma, shift) = ((1.0 - i as f64 / steps as f64) as f32, shift as f32);
        let sigma = (shift * sigma / (1.0 + (shift - 1.0) * sigma)).min(1.0); // 1 is all noise, whatever rounding says
        Step { timestep: Timestep(f64::from(sigma * train_timesteps as f32)), sigma: Sigma(f64::from(sigma)) }
    });
    Ok(Schedule::of(steps.collect()))
}

fn check(steps: usize, shift: f64, train_timesteps: usize) -> Result<(), ScheduleError> {
    if steps == 0 {
        return Err(ScheduleError::NoSteps);
    }
    if !(shift.is_finite() && shift > 0.0) {
        return Err(ScheduleError::Shift { found: shift });
    }
    if train_timesteps == 0 {
        return Err(ScheduleError::NoTrainTimesteps);
    }
    Ok(())
}

/// Point `i` of the `intervals + 1` points from `start` to `end`, in the order of operations of numpy's function of
/// that name.
fn linspace(start: f64, end: f64, intervals: usize, i: usize) -> f64 {
    i as f64 * ((end - start) / intervals as f64) + start
}

fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

/// Timesteps are cut to whole numbers before sigmas are rounded to f32.
fn whole_timesteps(sigmas: Vec<f64>, train_timesteps: usize) -> Schedule {
    let steps = sigmas.into_iter().map(|sigma| Step {
        timestep: Timestep((sigma * train_timesteps as f64).trunc()),
        sigma: Sigma(f64::from(sigma as f32)),
    });
    Schedule::of(steps.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_fall_from_noise_to_data() {
        for make in [flow_unipc, flow_dpmpp, flow_euler, flow_even] {
            for steps in [1, 2, 3, 50, 999] {
                for shift in [0.5, 1.0, 3.0, 12.0] {
                    let schedule = make(steps, shift, 1000).unwrap();
                    assert_eq!(schedule.steps.len(), steps);
                    assert!(schedule.steps.iter().all(|s| s.sigma.0 > 0.0 && s.sigma.0 <= 1.0));
                    assert!(
                        schedule.steps.windows(2).all(|w| w[0].sigma > w[1].sigma && w[0].timestep >= w[1].timestep)
                    );
                    assert_eq!(schedule.end(steps - 1), None);
                }
            }
        }
    }

    #[test]
    fn open_sora_as_published() {
        // hpcaitech/Open-Sora v1.2, `timestep_transform` in f32: 480p 9:16, 51 frames, 30 steps
        let shift = (480.0 * 854.0 / (512.0 * 512.0f64)).sqrt() * 15f64.sqrt();
        let steps = flow_even(30, shift, 1000).unwrap().steps;
        for (i, expected) in
            [(0, 1000.0), (1, 992.930), (2, 985.466), (10, 906.422), (20, 707.736), (28, 257.023), (29, 143.105)]
        {
            assert!((steps[i].timestep.0 - expected).abs() < 1e-3, "{i}: {:?}", steps[i]);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(flow_unipc(0, 3.0, 1000), Err(ScheduleError::NoSteps));
        assert_eq!(flow_dpmpp(5, 0.0, 1000), Err(ScheduleError::Shift { found: 0.0 }));
        assert!(flow_euler(5, f64::NAN, 1000).is_err());
        assert_eq!(flow_euler(5, 3.0, 0), Err(ScheduleError::NoTrainTimesteps));
    }
}
