//! Open-Sora 1.2's prompts: what the user writes, turned into what the text encoder reads.
//!
//! Follows Open-Sora v1.2's `text_encoder/t5.py` (cleaning) and `inference_utils.py` (scores, conditioning, segments).
//! The cleaning was made for captions scraped from the web, and the model was trained on its output, flaws included.

use std::sync::LazyLock;

use fancy_regex::Regex;

use crate::text_repair::repaired;

/// What Open-Sora appends to a prompt that does not rate itself.
const SCORE: &str = " aesthetic score: 6.5.";

/// Prompt as the text encoder sees it: score appended, then cleaned (twice, as the reference does).
pub(super) fn prepare(prompt: &str) -> Result<String, String> {
    let prompt = unconditioned(prompt)?;
    if prompt.starts_with("|0|") {
        return Err("the prompt has segments (`|0|...`): prompts for several clips in a row are not supported".into());
    }
    let score = if prompt.contains("aesthetic score:") { "" } else { SCORE };
    clean(&clean(&format!("{prompt}{score}"))?)
}

/// The prompt, if no pictures to start from follow it as a JSON object.
fn unconditioned(prompt: &str) -> Result<&str, String> {
    let Some((text, object)) = prompt.find('{').map(|at| prompt.split_at(at)) else { return Ok(prompt) };
    if object.matches('{').count() > 1 {
        return Err("the prompt has more than one `{`: Open-Sora reads a brace as the start of a JSON object".into());
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(object).map_err(|e| {
        format!("the prompt ends in braces, which Open-Sora reads as a JSON object, but it is not one: {e}")
    })?;
    if let Some(key) = object.keys().find(|key| !["reference_path", "mask_strategy"].contains(&key.as_str())) {
        return Err(format!("the prompt ends in a JSON object with the key `{key}`, which Open-Sora does not know"));
    }
    if !object.is_empty() {
        let keys = object.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" and ");
        return Err(format!("the prompt sets {keys}: conditioning on pictures or videos is not supported"));
    }
    Ok(text)
}

/// One step of the cleaning.
enum Step<Pattern> {
    Replace(Pattern, &'static str),
    Apply(fn(&str) -> String),
}
use Step::{Apply, Replace};

/// One pass of the cleaning. The order matters. `\w` and `\b` mean what they mean in Python, see [`compile`].
const STEPS: &[Step<&str>] = &[
    Apply(decode_percents),
    Apply(|text| text.trim().to_lowercase()),
    Replace("<person>", "person"),
    // Links: a protocol, or a domain with its path that is not half of a mail address.
    Replace(r"\b(?:https?:(?:/{1,3}|[a-z0-9%])|[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@))", ""),
    Replace(r"\b(?:www:(?:/{1,3}|[a-z0-9%])|[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@))", ""),
    // HTML: comments; declarations and closing tags; elements that are not prose; opening tags. Then entities.
    Replace(
        concat!(
            r"(?s)<!--.*?--\s*>|<[/!?][^>]*>",
            r"|<(script|style|template|rt|rp)\b[^>]*>.*?(?:</\1\s*>|$)",
            r#"|<[a-z](?:=\s*"[^"]*"|=\s*'[^']*'|[^>])*>"#
        ),
        "",
    ),
    Apply(decode_entities),
    // Names of users.
    Replace(r"@\w+\b", ""),
    // Chinese characters and enclosed signs.
    Replace(r"[\u{31c0}-\u{9fff}]+", ""),
    // All kinds of dashes.
    Replace(
        concat!(
            r"[-\u{58a}\u{5be}\u{1400}\u{1806}\u{2010}-\u{2015}\u{2e17}\u{2e1a}\u{2e3a}\u{2e3b}\u{2e40}",
            r"\u{301c}\u{3030}\u{30a0}\u{fe31}\u{fe32}\u{fe58}\u{fe63}\u{ff0d}]+"
        ),
        "-",
    ),
    // All kinds of quotes.
    Replace("[`´«»“”¨]", "\""),
    Replace("[‘’]", "'"),
    // Entities that were escaped twice.
    Replace("&quot;?", ""),
    Replace("&amp", ""),
    // IP addresses.
    Replace(r"\d{1,3}(?:\.\d{1,3}){3}", " "),
    // A time of day at the end, if white space follows.
    Replace(r"\d:\d\d\s+$", ""),
    // Line breaks written as two characters.
    Replace(r"\\n", " "),
    // Numbers of articles: #1 to #123, #12345 and up, 123456 and up.
    Replace(r"#\d{1,3}\b", ""),
    Replace(r"#\d{5,}\b", ""),
    Replace(r"\b\d{6,}\b", ""),
    // File names.
    Replace(r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
    // Quotes in a row; dots in a row.
    Replace(r#"["']{2,}"#, "\""),
    Replace(r"\.{2,}", " "),
    // Signs; dots that stand alone.
    Replace(r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    Replace(r"\s+\.\s+", " "),
    Apply(split_compounds),
    // The reference then decodes HTML entities again: no `&` is left by then, unless a full-width one.
    Apply(|text| repaired(text).trim().to_owned()),
    // Codes: abc123, ab12cd, 12ab34.
    Replace(r"\b[a-z]{1,3}\d{3,15}\b", ""),
    Replace(r"\b[a-z]+\d+[a-z]+\b", ""),
    Replace(r"\b\d+[a-z]+\d+\b", ""),
    // Words of shops and of picture agencies.
    Replace(r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    Replace(r"(?:free\s)?download(?:\sfree)?", ""),
    Replace(r"\bclick\b\s(?:for|on)\s\w+", ""),
    Replace(r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(?:\simages?)?", ""),
    Replace(r"\bpage\s+\d+\b", ""),
    // Longer codes: a1b2c.
    Replace(r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    // Sizes, 4x4: with a Latin x, a Cyrillic one, or the sign.
    Replace(r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    // White space: none before a colon, some after a comma, dot or slash, never two.
    Replace(r"\b\s+:\s+", ": "),
    Replace(r"(\D[,./])\b", "$1 "),
    Replace(r"\s+", " "),
    // Quotes around the whole; a mark at either end; a single word after a dot.
    Replace(r#"(?s)^["'](.+)["']$"#, "$1"),
    Replace("^['_,:;-]", ""),
    Replace("['_,:+-]$", ""),
    Replace(r"^\.\S+$", ""),
    Apply(|text| text.trim().to_owned()),
];

/// A pattern in Python's dialect. There, combining marks and joiners do not belong to a word; in Rust they do.
fn compile(pattern: &str) -> Result<Regex, String> {
    const WORD: &str = r"[\p{L}\p{N}_]";
    let boundary = format!("(?:(?<={WORD})(?!{WORD})|(?<!{WORD})(?={WORD}))");
    Regex::new(&pattern.replace(r"\w", WORD).replace(r"\b", &boundary)).map_err(|e| format!("`{pattern}`: {e}"))
}

/// One pass of the cleaning.
fn clean(text: &str) -> Result<String, String> {
    static COMPILED: LazyLock<Result<Vec<Step<Regex>>, String>> = LazyLock::new(|| {
        let compiled = STEPS.iter().map(|step| match step {
            Replace(pattern, with) => Ok(Replace(compile(pattern)?, with)),
            Apply(change) => Ok(Apply(*change)),
        });
        compiled.collect()
    });
    COMPILED.as_ref()?.iter().try_fold(text.to_owned(), |text, step| match step {
        Replace(pattern, with) => match pattern.try_replacen(&text, 0, *with) {
            Ok(replaced) => Ok(replaced.into_owned()),
            Err(e) => Err(format!("the prompt cannot be cleaned: {e}")),
        },
        Apply(change) => Ok(change(&text)),
    })
}

/// `%20` and `+` decoded, as in a query string.
fn decode_percents(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) => decoded.push(b' '),
            _ => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// HTML's entities decoded, with or without their semicolon. An unknown name only loses its semicolon.
fn decode_entities(text: &str) -> String {
    let mut parts = text.split('&');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if !part.starts_with(|c: char| c == '#' || c.is_ascii_alphabetic()) {
            decoded.extend(["&", part]);
            continue;
        }
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && !"#-.".contains(c)).unwrap_or(part.len());
        let (name, rest) = part.split_at(end);
        let entity = format!("&{name};");
        match html_escape::decode_html_entities(&entity) {
            known if known != entity => decoded.push_str(&known),
            _ => decoded.extend(["&", name]),
        }
        decoded.push_str(rest.strip_prefix(';').unwrap_or(rest));
    }
    decoded
}

/// Words joined by dashes or underscores taken apart, where there are more than three joints.
fn split_compounds(text: &str) -> String {
    let joints = ['-', '_'];
    if text.matches(joints).count() > 3 { text.replace(joints, " ") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        pairs: Vec<Pair>,
    }

    /// A prompt and what the reference makes of it: cleaned, or scored and cleaned if `aes` is there.
    #[derive(serde::Deserialize)]
    struct Pair {
        raw: String,
        aes: Option<f64>,
        clean: String,
    }

    #[test]
    fn cleans_as_the_reference_does() {
        let golden: Golden = serde_json::from_str(include_str!("../../../tests/golden/opensora_prompts.json")).unwrap();
        assert!(golden.pairs.len() > 150);
        let mut wrong = String::new();
        for Pair { raw, aes, clean: expected } in golden.pairs {
            let cleaned = if aes.is_some() { prepare(&raw) } else { clean(&raw).and_then(|once| clean(&once)) };
            if cleaned.as_ref() != Ok(&expected) {
                wrong += &format!("{raw:?}\n  expected {expected:?}\n  got      {cleaned:?}\n");
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }

    #[test]
    fn appends_the_score_once() {
        assert_eq!(prepare("A cat.").unwrap(), "a cat. aesthetic score: 6.5.");
        assert_eq!(prepare("A cat. aesthetic score: 5.0.").unwrap(), "a cat. aesthetic score: 5.0.");
        assert_eq!(prepare("").unwrap(), "aesthetic score: 6.5.");
    }

    #[test]
    fn refuses_conditioning_on_pictures() {
        let refused = |prompt: &str| prepare(prompt).unwrap_err();
        let both = refused(r#"A cat.{"reference_path": "cat.png", "mask_strategy": "0"}"#);
        for part in ["`mask_strategy`", " and ", "`reference_path`", "not supported"] {
            assert!(both.contains(part), "{both}");
        }
        assert!(refused(r#"A cat.{"reference_path": "cat.png"}"#).contains("sets `reference_path`:"));
        assert!(refused(r#"A cat.{"reference": "cat.png"}"#).contains("key `reference`"));
        assert!(refused("A {small} cat.").contains("not one"));
        assert!(refused("A cat.{").contains("not one"));
        assert!(refused("A {small} {white} cat.").contains("more than one"));
        assert_eq!(prepare("A cat.{}"), prepare("A cat."));
    }

    #[test]
    fn refuses_segments() {
        assert!(prepare("|0|a sunny day|1|a rainy day").unwrap_err().contains("several clips"));
        assert!(prepare("a sunny day |0| a rainy day").is_ok());
    }

    #[test]
    fn survives_long_and_hostile_prompts() {
        let long = "A red fox runs through the snow, fast. ".repeat(100);
        assert!(prepare(&long).unwrap().starts_with("a red fox runs through the snow, fast. a red fox"));
        for part in ["a.", "1x", "<", "&#", "%", "\u{fe0f}é", "-", "<a =\"", "\"", "a1", "@", "free ", "{}"] {
            let _ = prepare(&part.repeat(500));
        }
    }
}
