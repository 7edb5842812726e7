//! The two transformers of Wan2.2 A14B: one for the steps of high noise, one for those of low noise. They have the same
//! tensors, and only names tell them apart.

use std::path::Path;

/// Which of the two transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expert {
    /// Computes the first steps.
    HighNoise,
    /// Computes the others.
    LowNoise,
}

/// Words that make a lone `high` or `low` mean an expert; `wan2.1_low_memory.safetensors` is none.
const OF_TWO: [&str; 3] = ["wan22", "a14b", "noise"];

impl Expert {
    /// What a file is by its name, or else by its folder's: `high_noise_model/`, `transformer_2/`,
    /// `wan2.2_t2v_low_noise_14B.safetensors`, `Wan2_2-T2V-A14B_HIGH.safetensors`, `Wan2.2-I2V-A14B-LowNoise.gguf`.
    pub fn of_path(path: &Path) -> Option<Self> {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let folder = path.parent().map(name).unwrap_or_default();
        let by_folder = || (folder == "transformer_2").then_some(Expert::LowNoise).or_else(|| Self::of_name(&folder));
        Self::of_name(&name(path)).or_else(by_folder)
    }

    fn of_name(name: &str) -> Option<Self> {
        let words = words(name);
        let (squashed, has) = (words.concat(), |word: &str| words.iter().any(|found| found == word));
        if !OF_TWO.iter().any(|mark| squashed.contains(mark)) {
            return None;
        }
        match (has("high") || squashed.contains("highnoise"), has("low") || squashed.contains("lownoise")) {
            (true, false) => Some(Expert::HighNoise),
            (false, true) => Some(Expert::LowNoise),
            _ => None, // a file of both is of neither
        }
    }
}

impl std::fmt::Display for Expert {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Expert::HighNoise => "high noise",
            Expert::LowNoise => "low noise",
        })
    }
}

/// The words of a name, in lower case: they end where letters and digits do, and before a capital within.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before_capital = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || c.is_ascii_uppercase() && before_capital {
            words.push(String::new());
        }
        if let (true, Some(word)) = (c.is_ascii_alphanumeric(), words.last_mut()) {
            word.push(c.to_ascii_lowercase());
        }
        before_capital = c.is_ascii_lowercase();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_published_files_say_which_they_are() {
        for high in [
            "high_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors",
            "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
            "Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn_scaled_KJ.safetensors",
            "Wan2_2-I2V-A14B-HIGH_fp8_e5m2_scaled_KJ.safetensors",
            "HighNoise/Wan2.2-T2V-A14B-HighNoise-Q4_K_M.gguf",
            "wan22RemixT2VI2V_i2vHighV20.safetensors",
            "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors",
        ] {
            assert_eq!(Expert::of_path(Path::new(high)), Some(Expert::HighNoise), "{high}");
            let low = high.replace("high", "low").replace("HIGH", "LOW").replace("High", "Low");
            assert_eq!(Expert::of_path(Path::new(&low)), Some(Expert::LowNoise), "{low}");
        }
        assert_eq!(
            Expert::of_path(Path::new("transformer_2/diffusion_pytorch_model.safetensors")),
            Some(Expert::LowNoise)
        );
        for neither in [
            "wan2.1_t2v_14B_low_memory.safetensors",
            "transformer/diffusion_pytorch_model.safetensors",
            "wan2.2_t2v_high_and_low_noise.safetensors",
            "Wan2.2-TI2V-5B-Q4_K_M.gguf",
            "flow_a14b.safetensors",
            "",
        ] {
            assert_eq!(Expert::of_path(Path::new(neither)), None, "{neither}");
        }
    }
}
