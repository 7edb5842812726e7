//! Prompt -> token ids, as the reference pipeline prepares them.

use tokenizers::{Tokenizer, TruncationParams};

use crate::event::Reporter;
use crate::field::Field;
use crate::text_repair::repaired;
use crate::{Error, Result};

/// The ids of a prompt, without padding.
pub(crate) struct Tokens {
    /// Ids, the end-of-text token last.
    pub ids: Vec<u32>,
    /// How many ids the whole prompt would have needed, if more than it may have.
    pub truncated_from: Option<usize>,
}

impl Tokens {
    /// Says so of a prompt that was cut; `remedy`: what would allow more, if anything.
    pub fn warn_if_cut(&self, longest: usize, remedy: &str, reporter: &mut Reporter) {
        if let Some(whole) = self.truncated_from {
            reporter.warn(format!("prompt of {whole} tokens cut to {longest}: the rest is not seen ({remedy})"));
        }
    }
}

/// Turns a text into at most `longest` ids. What is beyond is cut off, before the end-of-text token.
pub(crate) fn tokenize(tokenizer: &Tokenizer, prompt: &str, longest: usize) -> Result<Tokens> {
    let failed = |e: tokenizers::Error| Error::Invalid {
        field: Field::Prompt,
        found: format!("{prompt:?}"),
        expected: format!("the tokenizer does not take it: {e}"),
    };
    let mut tokenizer = tokenizer.clone();
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(failed)?;
    let whole = tokenizer.encode(prompt, true).map_err(failed)?;
    if whole.len() <= longest {
        return Ok(Tokens { ids: whole.get_ids().to_vec(), truncated_from: None });
    }
    tokenizer.with_truncation(Some(TruncationParams { max_length: longest, ..Default::default() })).map_err(failed)?;
    let cut = tokenizer.encode(prompt, true).map_err(failed)?;
    Ok(Tokens { ids: cut.get_ids().to_vec(), truncated_from: Some(whole.len()) })
}

/// Wan's cleaning: text repaired as ftfy does, HTML entities decoded twice, white space collapsed.
pub(crate) fn clean(prompt: &str) -> String {
    let repaired = repaired(prompt);
    let once = html_escape::decode_html_entities(&repaired);
    let twice = html_escape::decode_html_entities(&once);
    twice.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[derive(serde::Deserialize)]
    struct Golden {
        pairs: Vec<Pair>,
    }

    #[derive(serde::Deserialize)]
    struct Pair {
        raw: String,
        clean: String,
    }

    /// `tools/golden/prompts.py` made them.
    #[test]
    fn cleans_as_the_reference_does() {
        let golden: Golden = serde_json::from_str(include_str!("../tests/golden/prompts.json")).unwrap();
        assert!(golden.pairs.len() > 100);
        let wrong = golden.pairs.iter().filter(|pair| clean(&pair.raw) != pair.clean);
        let wrong: Vec<String> = wrong
            .map(|pair| format!("{:?}\n  expected {:?}\n  got      {:?}", pair.raw, pair.clean, clean(&pair.raw)))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
