//! Keys of the JSON files that describe a part of a pipeline: which are read, and which values the others may have so
//! that what is computed is what they ask for.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Result as ModelResult, Source};

/// What may stand for a key.
#[derive(Debug)]
pub enum Rule {
    /// It is read.
    Read,
    /// An object that is read, of these keys; or null.
    Object(Keys),
    /// It makes no difference under the values that the other keys have to have.
    Any,
    /// One of these, as JSON; anything else would compute something else. The first is what the class takes where the
    /// key is absent, unless that is refused too.
    Only(&'static [&'static str]),
    /// A list of these texts alone.
    Each(&'static [&'static str]),
    /// This alone: the class takes something else where the key is absent.
    Stated(&'static str),
}

/// The keys of a file, by what may stand for them.
pub type Keys = &'static [(&'static [&'static str], Rule)];

/// What a model is beyond its weights.
pub trait Configuration {
    /// The key of `config.json` that says what the file describes.
    const NAMED_BY: &'static str;
    /// All its keys, in tables.
    const KEYS: &'static [Keys];

    /// Whether it can be of these weights, by how wide they are.
    fn fits(&self, source: &dyn Source) -> bool;

    /// Refuses what cannot be run, and weights that have more than the configuration speaks of: what is beyond would
    /// not be read.
    fn agree(&self, source: &dyn Source) -> ModelResult<()>;
}

/// A value that asks for something that is not done here.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key}: expected {expected}, found {found}")]
pub struct Refused {
    /// The key, with those of the objects around it.
    pub key: String,
    /// What it may be.
    pub expected: String,
    /// What it is, as JSON.
    pub found: String,
}

/// What a file says.
#[derive(Debug)]
pub struct Described<C> {
    /// What was read.
    pub config: C,
    /// Keys that nobody knows here, with those of the objects around them.
    pub unknown: Vec<String>,
}

/// Reads `config.json` of a component. Keys that begin with an underscore speak of the file itself. The reason where it
/// cannot be read, or asks for something that is not done here.
pub fn read<C: Configuration + DeserializeOwned>(json: Value) -> Result<Described<C>, String> {
    let Value::Object(fields) = &json else { return Err("expected a JSON object".to_string()) };
    let unknown = check(fields, C::KEYS).map_err(|refused| refused.to_string())?;
    match serde_json::from_value(json.clone()) {
        Ok(config) => Ok(Described { config, unknown }),
        Err(error) => {
            let key = culprit::<C>(fields, &error.to_string());
            Err(key.map_or_else(|| error.to_string(), |key| format!("{key}: {error}")))
        }
    }
}

/// The key whose value cannot be read: without it there is no error, or another one. Serde does not say it, but of keys
/// that are missing.
fn culprit<'a, C: DeserializeOwned>(fields: &'a Map<String, Value>, error: &str) -> Option<&'a String> {
    fields.keys().filter(|_| !error.starts_with("missing field")).find(|key| {
        let mut others = fields.clone();
        others.remove(*key);
        serde_json::from_value::<C>(Value::Object(others)).err().is_none_or(|other| other.to_string() != error)
    })
}

/// Compares a file's values with what its keys may be: the keys that are in none of the tables.
pub fn check(fields: &Map<String, Value>, tables: &[Keys]) -> Result<Vec<String>, Refused> {
    let mut unknown = Vec::new();
    check_inside("", fields, tables, &mut unknown)?;
    Ok(unknown)
}

fn check_inside(
    before: &str,
    fields: &Map<String, Value>,
    tables: &[Keys],
    unknown: &mut Vec<String>,
) -> Result<(), Refused> {
    let rows = || tables.iter().copied().flatten();
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with('_')) {
        let key = format!("{before}{name}");
        let rule = rows().find(|(names, _)| names.contains(&name.as_str())).map(|(_, rule)| rule);
        let expected = match (rule, value) {
            (None, _) => {
                unknown.push(key);
                continue;
            }
            (Some(Rule::Object(keys)), Value::Object(inner)) => {
                check_inside(&format!("{key}."), inner, &[*keys], unknown)?;
                continue;
            }
            (Some(Rule::Read | Rule::Any), _) | (Some(Rule::Object(_)), Value::Null) => continue,
            (Some(Rule::Object(_)), _) => "an object".to_string(),
            (Some(Rule::Only(values)), _) if values.iter().any(|text| is(value, text)) => continue,
            (Some(Rule::Only(values)), _) => values.join(" or "),
            (Some(Rule::Each(names)), _) if is_each(value, names) => continue,
            (Some(Rule::Each(names)), _) => format!("a list of {}", names.join(" or ")),
            (Some(Rule::Stated(only)), _) if is(value, only) => continue,
            (Some(Rule::Stated(only)), _) => only.to_string(),
        };
        return Err(Refused { key, expected, found: value.to_string() });
    }
    for (names, rule) in rows() {
        if let (Rule::Stated(only), Some(absent)) = (rule, names.iter().find(|name| !fields.contains_key(**name))) {
            let key = format!("{before}{absent}");
            return Err(Refused { key, expected: only.to_string(), found: "nothing".to_string() });
        }
    }
    Ok(())
}

/// Whether a value is what some JSON says; 2 and 2.0 are the same.
fn is(value: &Value, text: &str) -> bool {
    let expected: Value = serde_json::from_str(text).unwrap_or_default();
    *value == expected || value.as_f64().is_some_and(|number| expected.as_f64() == Some(number))
}

fn is_each(value: &Value, names: &[&str]) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(|item| item.as_str().is_some_and(|i| names.contains(&i))))
}

/// Keys of models of Diffusers that make no difference: what tensors are kept in they say themselves.
pub(crate) const OF_DIFFUSERS: Keys = &[(&["dtype", "torch_dtype", "quantization_config"], Rule::Any)];

/// Keys of all models of transformers that make no difference to an encoder's hidden states: formats of numbers, which
/// the tensors say themselves; what is asked of a model that writes text, or sorts it; how layers are drawn and dropped
/// in training; the tokens around a text, which the tokenizer sets.
pub(crate) const OF_TRANSFORMERS: Keys = &[
    (&["dtype", "torch_dtype", "quantization_config", "use_bfloat16", "torchscript"], Rule::Any),
    (&["model_type", "architectures", "transformers_version", "tokenizer_class", "prefix"], Rule::Any),
    (&["return_dict", "return_dict_in_generate", "output_hidden_states", "output_attentions"], Rule::Any),
    (&["output_scores", "use_cache", "output_past", "chunk_size_feed_forward", "tf_legacy_loss"], Rule::Any),
    (&["id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"], Rule::Any),
    (&["max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"], Rule::Any),
    (&["diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"], Rule::Any),
    (&["length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"], Rule::Any),
    (&["num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"], Rule::Any),
    (&["exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"], Rule::Any),
    (&["is_encoder_decoder", "cross_attention_hidden_size", "tie_encoder_decoder", "tie_word_embeddings"], Rule::Any),
    (&["decoder_start_token_id", "sep_token_id", "pad_token_id", "bos_token_id", "eos_token_id"], Rule::Any),
    (&["initializer_range", "initializer_factor", "attention_dropout", "dropout", "hidden_dropout"], Rule::Any),
    (&["is_decoder", "add_cross_attention"], Rule::Only(&["false"])),
    (&["pruned_heads"], Rule::Only(&["{}", "null"])),
];
