//! What a published model would take here, before it is downloaded: from its shape and the speed of a block on this
//! machine.

use navicache_engine::catalog::Model;
use navicache_engine::{DeviceChoice, DtypeChoice};
use navicache_study::bench::{self, Options, Part};

/// Tokens of the probe.
const TOKENS: usize = 512;

/// Floating point operations a second that a block of a transformer reaches here.
pub struct Rates {
    f32: f64,
    bf16: f64,
}

impl Rates {
    /// Times a block of Wan2.1-1.3B's shape on random numbers, on the CPU: a second or two.
    pub fn measure() -> navicache_study::Result<Rates> {
        let rate = |dtype| -> navicache_study::Result<f64> {
            let options = Options { tokens: TOKENS, dtype, runs: 3, device: DeviceChoice::Cpu };
            let timing = bench::run(Part::Block, &options)?;
            // The fastest: what else the machine does at this moment is not what a day of work would meet.
            let fastest = timing.runs.iter().copied().fold(f64::INFINITY, f64::min);
            Ok(timing.flop.unwrap_or_default() / fastest.max(1e-9))
        };
        Ok(Rates { f32: rate(DtypeChoice::F32)?, bf16: rate(DtypeChoice::Bf16)? })
    }
}

/// A video of a published model, and the seconds it takes.
pub struct Expected {
    pub width: usize,
    pub height: usize,
    pub frames: usize,
    pub steps: usize,
    pub forwards: usize,
    pub forward_seconds: f64,
}

impl Expected {
    /// Seconds of all steps, everything computed; decoding is not in it.
    pub fn seconds(&self) -> f64 {
        self.forward_seconds * self.forwards as f64
    }
}

/// What a video takes; what is left out is as the model has it. `None` where the catalogue does not know its shape.
pub fn expected(
    model: &Model,
    size: Option<(usize, usize)>,
    frames: Option<usize>,
    steps: Option<usize>,
    rates: &Rates,
) -> Option<Expected> {
    let shape = model.shape.as_ref()?;
    let (width, height) = size.unwrap_or((shape.width, shape.height));
    let (frames, steps) = (frames.unwrap_or(shape.frames), steps.unwrap_or(shape.steps));
    let transformer = model.parts.iter().find(|part| part.part == "transformer")?;
    // Weights that are stored in 16 bits are multiplied so.
    let rate = if transformer.bytes_each <= 2 { rates.bf16.max(rates.f32) } else { rates.f32 };
    let forward_seconds = model.forward_flop(shape.tokens(width, height, frames))? / rate;
    Some(Expected { width, height, frames, steps, forwards: steps * shape.forwards, forward_seconds })
}

#[cfg(test)]
mod tests {
    use navicache_engine::catalog;

    use super::*;

    #[test]
    fn time_follows_from_the_shape() {
        let rates = Rates { f32: 1e11, bf16: 1e12 };
        let model = |name: &str| catalog::models().iter().find(|model| model.name == name).unwrap();
        let own = expected(model("wan2.1-t2v-1.3b"), None, None, None, &rates).unwrap();
        assert_eq!((own.width, own.frames, own.forwards), (832, 81, 100));
        assert!((own.forward_seconds - 2908.0).abs() < 2.0, "{}", own.forward_seconds);
        let small = expected(model("wan2.1-t2v-1.3b"), Some((416, 240)), Some(33), Some(10), &rates).unwrap();
        assert_eq!(small.forwards, 20);
        assert!(small.seconds() * 50.0 < own.seconds());
        // Stored in bf16, and one branch.
        let hunyuan = expected(model("hunyuanvideo"), None, None, None, &rates).unwrap();
        assert_eq!(hunyuan.forwards, 50);
        assert!(hunyuan.forward_seconds > 1000.0);
    }
}
