//! What a request and a model are made of, by name.

use std::fmt;

/// A part of a request, or of how a model is opened. Messages of this library name it in backticks, as in `` `size` ``;
/// each front spells it in its own way, see [`Field::spell`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumString, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
#[allow(missing_docs)] // they are those of `Request`, `LoadOptions` and `Files`, documented there
pub enum Field {
    Prompt,
    NegativePrompt,
    Image,
    Size,
    Resolution,
    AspectRatio,
    Frames,
    Fps,
    Scale,
    Steps,
    Solver,
    Shift,
    Guidance,
    #[strum(serialize = "guidance_2")]
    Guidance2,
    TrueGuidance,
    DynamicGuidance,
    Seed,
    Cache,
    Target,
    Guard,
    CacheMemory,
    MaxSequenceLength,
    Latents,
    SaveLatents,
    Tile,
    Preview,
    Checkpoint,
    Resume,
    AllowOtherBuild,
    Model,
    Transformer,
    #[strum(serialize = "transformer_2")]
    Transformer2,
    TextEncoder,
    #[strum(serialize = "text_encoder_2")]
    TextEncoder2,
    Vae,
    ImageEncoder,
    Tokenizer,
    #[strum(serialize = "tokenizer_2")]
    Tokenizer2,
    Lora,
    Device,
    Dtype,
    Threads,
    Memory,
}

impl Field {
    /// All of them.
    pub const ALL: &[Field] = <Field as strum::VariantArray>::VARIANTS;

    /// Its name, as in JSON: `negative_prompt`.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// A message with every field in it spelled anew.
    pub fn spell(message: &str, spelling: impl Fn(Field) -> String) -> String {
        let mut parts = message.split('`');
        let mut spelled = parts.next().unwrap_or_default().to_string();
        // Where the last part was spelled anew, its closing backtick is gone too.
        let mut is_open = false;
        for part in parts {
            match part.parse::<Field>() {
                Ok(field) if !is_open => {
                    spelled += &spelling(field);
                    is_open = true;
                }
                _ if is_open => {
                    spelled += part;
                    is_open = false;
                }
                _ => spelled = spelled + "`" + part,
            }
        }
        spelled
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_spells_fields_in_its_own_way() {
        let option = |field: Field| format!("--{}", field.name().replace('_', "-"));
        let spelled = |message: &str| Field::spell(message, option);
        assert_eq!(spelled("`size` 1x1: give `negative_prompt`"), "--size 1x1: give --negative-prompt");
        assert_eq!(spelled("`size``frames`"), "--size--frames");
        assert_eq!(spelled("run `navicache pull` for `text_encoder_2`"), "run `navicache pull` for --text-encoder-2");
        assert_eq!(spelled("a ` alone, `unknown`, size"), "a ` alone, `unknown`, size");
        for field in Field::ALL {
            assert_eq!(field.name().parse(), Ok(*field));
            assert_eq!(spelled(&field.to_string()), option(*field));
        }
    }
}
