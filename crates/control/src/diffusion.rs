//! Variance-preserving diffusions, whose models predict v, in the terms of a flow.
//!
//! A sample of such a diffusion is `x = alpha data + sigma noise` with `alpha^2 + sigma^2 = 1`, and its model predicts
//! `v = alpha noise - sigma data` (Salimans and Ho 2022, arXiv 2202.00512, appendix D). Divided by `alpha + sigma`, the
//! same sample is one of a flow at noise level `sigma / (alpha + sigma)`, whose velocity is `noise - data`. The ratio
//! of both coefficients, all that solvers go by, stays what it is; so schedules, solvers and cache policies need not
//! know of the difference, and a velocity that is held stands for data and noise that are held, as on any flow.
//!
//! The noise levels follow diffusers 0.42.1 `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`.

use crate::schedule::{NoiseLevel, Schedule, ScheduleError, Sigma, Step, Timestep};

/// The noise levels that a model was trained with.
#[derive(Debug, Clone, PartialEq)]
pub struct Diffusion {
    /// `alpha^2` of each training timestep, falling.
    signal: Vec<f64>,
}

/// How the latents and the prediction of a model become those of a flow at the same noise level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conversion {
    /// What the model sees is this times the flow's sample.
    pub scale: f64,
    /// Coefficient of what the model saw in the velocity.
    pub sample: f64,
    /// Coefficient of what it predicted.
    pub prediction: f64,
}

impl Diffusion {
    /// Squares of evenly spaced numbers between the roots of the first and the last step's noise (`scaled_linear` in
    /// Diffusers), over so many training timesteps.
    pub fn scaled_linear(beta_start: f64, beta_end: f64, train_timesteps: usize) -> Self {
        let (first, last) = (beta_start.sqrt(), beta_end.sqrt());
        let intervals = train_timesteps.saturating_sub(1).max(1) as f64;
        let mut product = 1.0;
        let signal = (0..train_timesteps).map(|t| {
            product *= 1.0 - (first + (last - first) / intervals * t as f64).powi(2);
            product
        });
        Diffusion { signal: signal.collect() }
    }

    /// The signal-to-noise ratio of every timestep over `scale`; 1 changes nothing. Of the CogVideoX paper (Yang et al.
    /// 2024, arXiv 2408.06072).
    pub fn shifted(self, scale: f64) -> Self {
        Diffusion { signal: self.signal.into_iter().map(|a| a / (scale + (1.0 - scale) * a)).collect() }
    }

    /// The same with all noise at the last timestep (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
    pub fn to_zero_signal(self) -> Self {
        let ends = (self.signal.first().copied(), self.signal.last().copied());
        let (Some(first), Some(last)) = ends else { return self };
        let (first, last) = (first.sqrt(), last.sqrt());
        let rescaled = |a: f64| ((a.sqrt() - last) * (first / (first - last))).powi(2);
        Diffusion { signal: self.signal.into_iter().map(rescaled).collect() }
    }

    /// The noise level of a training timestep, the nearest one there is.
    pub fn level(&self, timestep: usize) -> NoiseLevel {
        let signal = self.signal.get(timestep).or(self.signal.last()).copied().unwrap_or(1.0);
        NoiseLevel { alpha: signal.sqrt(), sigma: (1.0 - signal).sqrt() }
    }

    /// What leads from the model to a flow at a timestep.
    pub fn conversion(&self, timestep: Timestep) -> Conversion {
        let NoiseLevel { alpha, sigma } = self.level(timestep.0.round() as usize);
        // data = alpha x - sigma v, noise = sigma x + alpha v
        Conversion { scale: alpha + sigma, sample: sigma - alpha, prediction: alpha + sigma }
    }

    /// Steps at even distances of training timesteps, counted from the last one (`trailing` in Diffusers); each ends
    /// where the next one starts, the last one without noise.
    ///
    /// # Errors
    /// No steps, or so many that the reference makes one more.
    pub fn trailing(&self, steps: usize) -> Result<Schedule, ScheduleError> {
        Ok(Schedule::of(self.timesteps(steps)?.into_iter().map(|timestep| self.step(timestep)).collect()))
    }

    /// The same steps, each ending as in the reference's solvers: a whole number of training timesteps further on,
    /// which is where the next one starts only if the number of steps divides that of timesteps. The last one may end
    /// with noise left. Samples of the diffusion go from step to step as they are: a step ends in the scale of the flow
    /// that the next one starts from, the last one in that of the diffusion.
    ///
    /// # Errors
    /// No steps, or so many that the reference makes one more.
    pub fn trailing_by_whole_strides(&self, steps: usize) -> Result<Schedule, ScheduleError> {
        let timesteps = self.timesteps(steps)?;
        let stride = self.signal.len() / steps;
        let end = |(step, timestep): (usize, &usize)| {
            let scale = timesteps.get(step + 1).map_or(1.0, |&next| self.conversion(Timestep(next as f64)).scale);
            match timestep.checked_sub(stride).map(|end| self.level(end)) {
                None => NoiseLevel { alpha: 1.0, sigma: 0.0 },
                Some(NoiseLevel { alpha, sigma }) => NoiseLevel { alpha: alpha / scale, sigma: sigma / scale },
            }
        };
        let ends = timesteps.iter().enumerate().map(end).collect();
        Ok(Schedule { steps: timesteps.iter().map(|&timestep| self.step(timestep)).collect(), ends })
    }

    /// numpy's `round(arange(train, 0, -train / steps)) - 1`, in its order of operations.
    fn timesteps(&self, steps: usize) -> Result<Vec<usize>, ScheduleError> {
        let train = self.signal.len();
        if steps == 0 {
            return Err(ScheduleError::NoSteps);
        }
        if steps > train {
            return Err(ScheduleError::TooMany { found: steps, most: train });
        }
        let (start, stride) = (train as f64, train as f64 / steps as f64);
        if (start / stride).ceil() as usize != steps {
            return Err(ScheduleError::Uneven { found: steps });
        }
        let distance = (start - stride) - start;
        Ok((0..steps).map(|i| (start + i as f64 * distance).round_ties_even() as usize - 1).collect())
    }

    fn step(&self, timestep: usize) -> Step {
        let NoiseLevel { alpha, sigma } = self.level(timestep);
        Step { timestep: Timestep(timestep as f64), sigma: Sigma(sigma / (alpha + sigma)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(shift: f64) -> Diffusion {
        Diffusion::scaled_linear(0.00085, 0.012, 1000).shifted(shift).to_zero_signal()
    }

    #[test]
    fn signals_of_the_published_models() {
        // diffusers 0.42.1 `CogVideoXDDIMScheduler.alphas_cumprod`, snr_shift_scale 3 and 1
        for (shift, expected) in [
            (3.0, [0.997454328, 0.946572979, 0.390889741, 0.0959695617, 0.0109658909, 9.68787982e-4, 6.23078847e-8]),
            (1.0, [0.99915, 0.981010457, 0.654189007, 0.242359167, 0.0331714828, 3.03307237e-3, 1.96788806e-7]),
        ] {
            let diffusion = published(shift);
            for (timestep, expected) in [0, 19, 249, 499, 749, 899, 998].into_iter().zip(expected) {
                let signal = diffusion.signal[timestep];
                assert!((signal / expected - 1.0).abs() < 1e-8, "{shift} {timestep}: {signal}");
            }
            assert_eq!(diffusion.level(999), NoiseLevel { alpha: 0.0, sigma: 1.0 });
        }
    }

    #[test]
    fn timesteps_of_the_reference() {
        let timesteps = |steps| published(1.0).timesteps(steps);
        assert_eq!(timesteps(50).unwrap()[..3], [999, 979, 959]);
        let thirty = timesteps(30).unwrap();
        assert_eq!((&thirty[..4], &thirty[28..]), (&[999, 966, 932, 899][..], &[66, 32][..]));
        for uneven in [61, 103, 121, 122] {
            assert_eq!(timesteps(uneven), Err(ScheduleError::Uneven { found: uneven }));
        }
        assert_eq!((1..=1000).filter(|&steps| timesteps(steps).is_err()).count(), 62);
        assert_eq!(timesteps(0), Err(ScheduleError::NoSteps));
        assert!(timesteps(1001).is_err());
    }

    #[test]
    fn steps_end_by_whole_strides_or_where_the_next_one_starts() {
        let diffusion = published(3.0);
        let (plain, strides) = (diffusion.trailing(50).unwrap(), diffusion.trailing_by_whole_strides(50).unwrap());
        for step in 0..49 {
            let [plain, strides] = [&plain, &strides].map(|schedule| schedule.end(step).unwrap());
            assert!((plain.sigma - strides.sigma).abs() + (plain.alpha - strides.alpha).abs() < 1e-12, "{step}");
        }
        assert_eq!([plain.end(49), strides.end(49)], [None; 2]);
        // 1000 / 30 is 33: the second step starts at 966 and ends at 933, the third starts at 932.
        let strides = diffusion.trailing_by_whole_strides(30).unwrap();
        let sigma =
            |end: usize, next: usize| diffusion.level(end).sigma / diffusion.conversion(Timestep(next as f64)).scale;
        assert_eq!([0, 1].map(|step| strides.end(step).unwrap().sigma), [sigma(966, 966), sigma(933, 932)]);
        assert_eq!(strides.end(29), None);
        // 1000 / 7 is 142, and the last step starts at 142: it ends at 0, not without noise.
        assert_eq!(diffusion.trailing_by_whole_strides(7).unwrap().end(6), Some(diffusion.level(0)));
    }

    #[test]
    fn a_prediction_becomes_the_velocity_of_a_flow() {
        let diffusion = published(1.0);
        let (data, noise) = (0.3, -1.2);
        for timestep in [999, 998, 500, 20, 0] {
            let NoiseLevel { alpha, sigma } = diffusion.level(timestep);
            let Step { timestep, sigma: Sigma(flow) } = diffusion.step(timestep);
            let Conversion { scale, sample, prediction } = diffusion.conversion(timestep);
            let seen = alpha * data + sigma * noise;
            assert!((scale * ((1.0 - flow) * data + flow * noise) - seen).abs() < 1e-12, "{timestep:?}");
            let v = alpha * noise - sigma * data;
            assert!((sample * seen + prediction * v - (noise - data)).abs() < 1e-12, "{timestep:?}");
        }
    }
}
