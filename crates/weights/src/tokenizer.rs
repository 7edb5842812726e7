//! Tokenizers of SentencePiece models (unigram), from wherever they were packed: `tokenizer.json`, `spiece.model`, a
//! tensor of an encoder's file, or the key-value pairs of GGUF. All become what transformers makes of a T5 tokenizer.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior, Tokenizer};

use crate::error::{Error, Result};
use crate::file::{Meta, read_description};
use crate::found::Found;

/// A piece of a SentencePiece model.
struct Piece {
    text: String,
    score: f64,
    kind: u64,
}

/// Kinds of pieces that are never found in text by their letters.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
/// The token that ends a text.
const END: &str = "</s>";
/// Longest table of a normalizer that is taken; the published ones have a quarter of a million bytes.
const CHARSMAP_MAX: usize = 8 << 20;

/// Reads `tokenizer.json` or a SentencePiece model.
pub fn from_file(path: &Path) -> Result<Tokenizer> {
    from_bytes(&read_description(path)?).map_err(|reason| Error::file(path, reason))
}

/// From the content of either file. The error is a reason without the file's name.
pub fn from_bytes(bytes: &[u8]) -> Result<Tokenizer, String> {
    match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'{') => Tokenizer::from_bytes(bytes).map_err(|e| e.to_string()),
        _ => from_sentencepiece(bytes),
    }
}

/// CLIP's tokenizer, from `vocab.json` and `merges.txt`: what transformers makes of them. The error is a reason without
/// a file's name.
pub fn clip(vocabulary: &[u8], merges: &[u8]) -> Result<Tokenizer, String> {
    const BEGIN: &str = "<|startoftext|>";
    const END: &str = "<|endoftext|>";
    let text = |e: tokenizers::Error| e.to_string();
    let vocabulary: HashMap<String, u32> = serde_json::from_slice(vocabulary).map_err(|e| e.to_string())?;
    let merges = std::str::from_utf8(merges).map_err(|e| format!("merges.txt: {e}"))?;
    let pairs = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
    let pairs = pairs.map(|line| {
        let pair = line.split_once(' ').ok_or_else(|| format!("merges.txt: expected two tokens, found {line:?}"))?;
        Ok((pair.0.to_string(), pair.1.to_string()))
    });
    let id = |token: &str| vocabulary.get(token).copied().ok_or_else(|| format!("a CLIP tokenizer without {token}"));
    let (begin, end) = (id(BEGIN)?, id(END)?);
    let model = serde_json::json!({
        "type": "BPE",
        "vocab": vocabulary,
        "merges": pairs.collect::<Result<Vec<(String, String)>, String>>()?,
        "unk_token": END,
        "end_of_word_suffix": "</w>",
        "continuing_subword_prefix": "",
        "dropout": null,
        "fuse_unk": false,
    });
    let model: BPE = serde_json::from_str(&model.to_string()).map_err(|e| e.to_string())?;
    let words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let words =
        Split::new(SplitPattern::Regex(words.to_string()), SplitDelimiterBehavior::Removed, true).map_err(text)?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_string()), " ").map_err(text)?;
    let mut tokenizer = Tokenizer::new(model);
    let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(text)?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![words.into(), bytes.into()])));
    let template = TemplateProcessing::builder()
        .try_single(format!("{BEGIN} $A {END}"))
        .map_err(|e| e.to_string())?
        .special_tokens(vec![(BEGIN, begin), (END, end)])
        .build()
        .map_err(|e| e.to_string())?;
    tokenizer.with_post_processor(Some(template));
    tokenizer.add_special_tokens([BEGIN, END].map(|token| AddedToken::from(token, true))).map_err(text)?;
    Ok(tokenizer)
}

/// From the file of a text encoder, if it brings its own.
pub fn from_weights(found: &Found) -> Result<Option<Tokenizer>> {
    let made = match (found.tensors.raw("spiece_model"), found.metadata.get("tokenizer.ggml.tokens")) {
        (Some(bytes), _) => from_sentencepiece(bytes),
        (None, Some(Meta::Texts(texts))) => from_gguf(found, texts),
        _ => return Ok(None),
    };
    made.map(Some).map_err(|reason| Error::file(&found.file.path, reason))
}

/// The number of tokens of a text under a serialised model.
pub fn encode_with(model: &[u8], text: &str) -> Result<usize, String> {
    let tokenizer = from_sentencepiece(model)?;
    tokenizer.encode(text, true).map(|tokens| tokens.len()).map_err(|e| e.to_string())
}

/// From a serialised `sentencepiece.ModelProto`.
fn from_sentencepiece(bytes: &[u8]) -> Result<Tokenizer, String> {
    let (mut pieces, mut charsmap) = (Vec::new(), &[][..]);
    for field in Fields(bytes) {
        match field.map_err(|e| format!("not a SentencePiece model: {e}"))? {
            (1, Field::Bytes(piece)) => pieces.push(self::piece(piece)?),
            (2, Field::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    if let (3, Field::Number(kind @ 2..)) = field? {
                        return Err(format!("a SentencePiece model of type {kind}: expected unigram"));
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                for field in Fields(normalizer) {
                    if let (2, Field::Bytes(bytes)) = field? {
                        charsmap = bytes;
                    }
                }
            }
            _ => {}
        }
    }
    build(pieces, charsmap)
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).map_err(|e| e.to_string())?,
            (2, Field::Float(score)) => piece.score = score as f64,
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    Ok(piece)
}

fn from_gguf(found: &Found, texts: &[std::ops::Range<usize>]) -> Result<Tokenizer, String> {
    let numbers = |key: &str| match found.metadata.get(key) {
        Some(Meta::Numbers(numbers)) if numbers.len() == texts.len() => Ok(numbers.as_slice()),
        _ => Err(format!("{key}: expected {} numbers, one a token", texts.len())),
    };
    let (scores, kinds) = (numbers("tokenizer.ggml.scores")?, numbers("tokenizer.ggml.token_type")?);
    let pieces = texts.iter().zip(scores).zip(kinds).map(|((text, &score), &kind)| {
        let text = found.file.text(text).into_owned();
        Piece { text, score, kind: kind as u64 }
    });
    let charsmap = match found.metadata.get("tokenizer.ggml.precompiled_charsmap") {
        Some(Meta::Bytes(range)) => found.file.bytes().get(range.clone()).unwrap_or_default(),
        _ => &[],
    };
    build(pieces.collect(), charsmap)
}

fn build(pieces: Vec<Piece>, charsmap: &[u8]) -> Result<Tokenizer, String> {
    let text = |e: tokenizers::Error| e.to_string();
    let unknown =
        pieces.iter().position(|piece| piece.kind == UNKNOWN).ok_or("a tokenizer without an unknown token")?;
    let end = pieces.iter().position(|piece| piece.text == END).ok_or("a tokenizer without the token </s>")?;
    if let Some(piece) = pieces.iter().find(|piece| !piece.score.is_finite()) {
        return Err(format!("token {:?}: expected a finite score, found {}", piece.text, piece.score));
    }
    let special = |piece: &&Piece| matches!(piece.kind, UNKNOWN | CONTROL | USER_DEFINED);
    let added: Vec<AddedToken> =
        pieces.iter().filter(special).map(|piece| AddedToken::from(piece.text.clone(), true)).collect();
    let vocabulary = pieces.into_iter().map(|piece| (piece.text, piece.score)).collect();
    let model = Unigram::from(vocabulary, Some(unknown), false).map_err(text)?;

    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if !charsmap.is_empty() {
        check_charsmap(charsmap).ok_or("a table of characters that leads out of itself")?;
        normalizers.push(Precompiled::from(charsmap).map_err(|e| e.to_string())?.into());
    }
    normalizers.push(Strip::new(false, true).into());
    normalizers.push(Replace::new(ReplacePattern::Regex(" {2,}".to_string()), "▁").map_err(text)?.into());
    let template = TemplateProcessing::builder()
        .try_single(format!("$A {END}"))
        .map_err(|e| e.to_string())?
        .special_tokens(vec![(END, end as u32)])
        .build()
        .map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(text)?;
    tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::Always, true)));
    tokenizer.with_post_processor(Some(template));
    tokenizer.add_special_tokens(added).map_err(text)?;
    Ok(tokenizer)
}

/// Walks the table of characters as a look-up would, for the library that does the look-ups trusts it. The table is a
/// trie in a double array (`u32` length in bytes, then units), then texts that end with a zero; a unit has a label, an
/// offset to its children and whether one of them is a leaf, whose value is the place of a text.
fn check_charsmap(bytes: &[u8]) -> Option<()> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (trie, texts) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let texts = std::str::from_utf8(texts).ok().filter(|_| bytes.len() <= CHARSMAP_MAX)?;
    let units: Vec<usize> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let children = |at: usize| Some(at ^ ((units.get(at)? >> 10) << ((units[at] & (1 << 9)) >> 6)));
    let mut seen = vec![false; units.len()];
    let mut open = vec![0];
    while let Some(at) = open.pop() {
        if std::mem::replace(seen.get_mut(at)?, true) {
            continue;
        }
        let base = children(at)?;
        if at != 0 && units[at] >> 8 & 1 == 1 && !texts.is_char_boundary(units.get(base)? & 0x7fff_ffff) {
            return None;
        }
        for label in 1..256 {
            if units.get(base ^ label)? & (1 << 31 | 0xff) == label {
                open.push(base ^ label);
            }
        }
    }
    Some(())
}

/// A field of a protocol buffer message.
enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// The fields of a protocol buffer message, in their order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= ((byte & 127) as u64) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("a number that is too long".to_string())
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), String> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Number(0)
            }
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(usize::try_from(length).map_err(|e| e.to_string())?)?)
            }
            5 => {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(self.take(4)?);
                Field::Float(f32::from_le_bytes(bytes))
            }
            other => return Err(format!("a field of type {other}")),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
