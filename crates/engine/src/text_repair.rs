//! Repairs of text that went through the wrong program on its way: what ftfy 6.3 does by default, which the reference
//! pipelines clean prompts with. Of wrongly decoded text, UTF-8 that was read as Windows-1252 or Latin-1 is repaired;
//! ftfy knows rarer code pages too.

use tokenizers::NormalizedString;

/// A text with its usual damage repaired.
pub(crate) fn repaired(text: &str) -> String {
    until_it_stays(text, |text| fixed_characters(&until_it_stays(text, decoded_anew)))
}

/// What was garbled twice is repaired twice. Every pass but the last one makes the text shorter.
fn until_it_stays(text: &str, repair: impl Fn(&str) -> String) -> String {
    let mut text = text.to_string();
    loop {
        let next = repair(&text);
        if next == text {
            return text;
        }
        text = next;
    }
}

/// Ligatures, widths, curly quotes, line ends, terminal escapes, control characters; then NFC.
fn fixed_characters(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\r' => {
                rest.next_if_eq(&'\n');
                fixed.push('\n');
            }
            '\u{2028}' | '\u{2029}' => fixed.push('\n'),
            '\u{1b}' if rest.peek() == Some(&'[') => {
                let mut ahead = rest.clone();
                ahead.next();
                while ahead.next_if(|c| c.is_ascii_digit() || *c == ';').is_some() {}
                if ahead.next().is_some_and(|end| end.is_ascii_alphabetic()) {
                    rest = ahead;
                }
            }
            'Ĳ' => fixed.push_str("IJ"),
            'ĳ' => fixed.push_str("ij"),
            'ŉ' => fixed.push_str("'n"),
            'Ǳ' => fixed.push_str("DZ"),
            'ǲ' => fixed.push_str("Dz"),
            'ǳ' => fixed.push_str("dz"),
            'Ǆ' => fixed.push_str("DŽ"),
            'ǅ' => fixed.push_str("Dž"),
            'ǆ' => fixed.push_str("dž"),
            'Ǉ' => fixed.push_str("LJ"),
            'ǈ' => fixed.push_str("Lj"),
            'ǉ' => fixed.push_str("lj"),
            'Ǌ' => fixed.push_str("NJ"),
            'ǋ' => fixed.push_str("Nj"),
            'ǌ' => fixed.push_str("nj"),
            'ﬅ' => fixed.push_str("ſt"),
            'ﬀ'..='ﬆ' | '\u{3000}' | '\u{ff01}'..='\u{ffef}' => {
                fixed.push_str(NormalizedString::from(c.to_string()).nfkc().get())
            }
            'ʼ' | '‘'..='‛' => fixed.push('\''),
            '“'..='‟' => fixed.push('"'),
            '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' => {}
            '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => {}
            // A control character of Latin-1 was meant as Windows-1252 has it.
            '\u{80}'..='\u{9f}' => fixed.push(from_windows_1252(c as u8)),
            _ => fixed.push(c),
        }
    }
    NormalizedString::from(fixed).nfc().get().to_owned()
}

/// Characters that are the bytes of UTF-8, decoded as such. Where some surely are, those that could be text are too.
fn decoded_anew(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let any_is_sure = (0..characters.len()).any(|at| garbled(&characters, at).is_some_and(|garbled| garbled.is_sure));
    let (mut decoded, mut at) = (String::with_capacity(text.len()), 0);
    while at < characters.len() {
        match garbled(&characters, at).filter(|_| any_is_sure) {
            Some(Garbled { meant, length, .. }) => {
                decoded.push(meant);
                at += length;
            }
            None => {
                decoded.push(characters[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// Characters that may be one that was garbled.
struct Garbled {
    meant: char,
    /// How many they are.
    length: usize,
    /// Whether they can hardly be anything else.
    is_sure: bool,
}

fn garbled(text: &[char], at: usize) -> Option<Garbled> {
    let lead = to_windows_1252(text[at])?;
    // The second byte of `à` is a no-break space, which is a space by the time the text arrives; one after it is kept.
    if matches!(lead, 0xc2 | 0xc3) && text.get(at + 1) == Some(&' ') {
        let before: String = text[..at].iter().rev().take(2).collect();
        let is_sure = before.is_empty() || before.trim_start().starts_with(|c: char| c.is_ascii_lowercase());
        let meant = if lead == 0xc3 { 'à' } else { '\u{a0}' };
        return is_sure.then_some(Garbled { meant, length: 1, is_sure });
    }
    let length = match lead {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let all = text.get(at..at + length)?;
    let bytes: Vec<u8> = all.iter().map(|c| to_windows_1252(*c)).collect::<Option<_>>()?;
    let meant = std::str::from_utf8(&bytes).ok()?.chars().next()?;
    // Letters before punctuation are text: `CAFÉ”`, `é”…`. After Â, Ã, Î and Ð nobody writes any.
    let is_sure = matches!(lead, 0xc2 | 0xc3 | 0xce | 0xd0 | 0xe2 | 0xf0..) || !all[1..].iter().all(is_punctuation);
    Some(Garbled { meant, length, is_sure })
}

/// Whether it commonly follows a letter.
fn is_punctuation(c: &char) -> bool {
    matches!(
        c,
        '‚' | '„'
            | '…'
            | '‹'
            | '‘'
            | '’'
            | '“'
            | '”'
            | '•'
            | '–'
            | '—'
            | '›'
            | '«'
            | '»'
            | '·'
            | '\u{a0}'
            | '™'
            | '®'
            | '©'
            | '°'
    )
}

/// The byte that Windows-1252 has for a character; where it has none, Latin-1's.
fn to_windows_1252(c: char) -> Option<u8> {
    match c as u32 {
        code @ 0x80..=0xff => Some(code as u8),
        _ => HIGH.iter().position(|high| *high == c).map(|at| 0x80 + at as u8),
    }
}

fn from_windows_1252(byte: u8) -> char {
    HIGH[usize::from(byte - 0x80)]
}

/// What Windows-1252 has from 0x80 to 0x9f; where it has nothing, the control character.
const HIGH: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_with_the_wrong_code_page_is_repaired() {
        for (garbled, meant) in [
            ("cafÃ©", "café"),
            ("itâ€™s", "it's"),
            ("ð\u{9f}\u{90}\u{88} cat", "🐈 cat"),
            ("ÃƒÂ©", "é"),
            ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
        ] {
            assert_eq!(repaired(garbled), meant);
        }
        for text in ["CAFÉ\" is closed", "él dijo «sí»", "São Paulo", "20 °C", "É", "Ã", ""] {
            assert_eq!(repaired(text), text);
        }
    }

    #[test]
    fn repairing_ends() {
        for part in ["Ã", "Â", "\u{1b}[", "\u{1b}[1m", "ð", "e\u{301}", "\r"] {
            let text = part.repeat(300);
            assert_eq!(repaired(&repaired(&text)), repaired(&text));
        }
    }
}
