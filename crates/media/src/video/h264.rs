//! What an H.264 stream says of itself (ITU-T H.264, 7.3.2.1 and annex E), and how it is put before the decoder.

use openh264::OpenH264API;
use openh264::decoder::{Decoder, DecoderConfig, Flush};

use super::stream::Range;

/// Kinds of units. // table 7-1
const SLICE: u8 = 1;
const LAST_PARTITION: u8 = 4;
const IDR_SLICE: u8 = 5;
const SEQUENCE_PARAMETERS: u8 = 7;
const PICTURE_PARAMETERS: u8 = 8;

const BASELINE: u8 = 66;
const MAIN: u8 = 77;
const HIGH: u8 = 100;
const SCALABLE_BASELINE: u8 = 83;

/// What a sequence parameter set says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sequence {
    /// Width in pixels, after cropping.
    pub width: usize,
    /// Height in pixels, after cropping.
    pub height: usize,
    /// It has no chroma.
    pub grey: bool,
    /// Which numbers are black and white, where it says so.
    pub range: Option<Range>,
    /// `matrix_coefficients`, where it says so.
    pub matrix: Option<u16>,
}

impl Sequence {
    /// Reads a unit; an error names what the decoder cannot do.
    pub fn read(unit: &[u8]) -> Result<Self, String> {
        let cut = || "its sequence parameters are cut short".to_string();
        let bytes = without_escapes(unit.get(1..).ok_or_else(cut)?);
        let [profile, ..] = bytes[..] else { return Err(cut()) };
        let mut bits = Bits { bytes: &bytes, at: 24 };
        Self::parse(profile, &mut bits).ok_or_else(cut)?
    }

    /// `None` where bits are missing.
    fn parse(profile: u8, bits: &mut Bits) -> Option<Result<Self, String>> {
        bits.golomb()?; // seq_parameter_set_id
        let mut chroma = 1;
        if !matches!(profile, BASELINE | MAIN | 88) {
            chroma = bits.golomb()?;
            if chroma == 3 {
                bits.take(1)?; // separate_colour_plane_flag
            }
            let depth = bits.golomb()?.max(bits.golomb()?).saturating_add(8);
            if depth > 8 {
                return Some(Err(format!("{depth} bits a channel; 8 are read")));
            }
        }
        match (profile, chroma) {
            (BASELINE | MAIN | HIGH, 0 | 1) => {}
            (_, 2) => return Some(Err("4:2:2 chroma; 4:2:0 is read".to_string())),
            (_, 3) => return Some(Err("4:4:4 chroma; 4:2:0 is read".to_string())),
            _ => {
                let name = match profile {
                    88 => "the Extended profile",
                    83 | 86 => "scalable video (SVC)",
                    118 | 128 => "multiview video (MVC)",
                    110 => "the High 10 profile",
                    122 => "the High 4:2:2 profile",
                    244 => "the High 4:4:4 Predictive profile",
                    _ => return Some(Err(format!("profile {profile}; Baseline, Main and High are read"))),
                };
                return Some(Err(format!("{name}; Baseline, Main and High are read")));
            }
        }
        if profile == HIGH {
            bits.take(1)?; // qpprime_y_zero_transform_bypass_flag
            if bits.take(1)? == 1 {
                (0..8).try_for_each(|list| scaling_list(bits, if list < 6 { 16 } else { 64 }))?;
            }
        }
        bits.golomb()?; // log2_max_frame_num_minus4
        match bits.golomb()? {
            0 => drop(bits.golomb()?), // log2_max_pic_order_cnt_lsb_minus4
            1 => {
                bits.take(1)?;
                bits.golomb()?;
                bits.golomb()?;
                for _ in 0..bits.golomb()?.min(255) {
                    bits.golomb()?;
                }
            }
            _ => {}
        }
        bits.golomb()?; // max_num_ref_frames
        bits.take(1)?; // gaps_in_frame_num_value_allowed_flag
        let (across, down) = (bits.golomb()? as usize + 1, bits.golomb()? as usize + 1);
        if bits.take(1)? == 0 {
            return Some(Err("interlaced fields; progressive frames are read".to_string()));
        }
        bits.take(1)?; // direct_8x8_inference_flag
        let mut crop = [0; 4];
        if bits.take(1)? == 1 {
            for side in &mut crop {
                *side = bits.golomb()? as usize;
            }
        }
        let unit = if chroma == 0 { 1 } else { 2 };
        let side = |blocks: usize, before: usize, after: usize| {
            (16 * blocks).saturating_sub(unit * before.saturating_add(after))
        };
        let (mut range, mut matrix) = (None, None);
        if bits.take(1)? == 1 {
            (range, matrix) = colours(bits)?;
        }
        let (width, height) = (side(across, crop[0], crop[1]), side(down, crop[2], crop[3]));
        Some(Ok(Sequence { width, height, grey: chroma == 0, range, matrix }))
    }
}

/// The part of the video usability information that says how numbers mean colours.
fn colours(bits: &mut Bits) -> Option<(Option<Range>, Option<u16>)> {
    const EXTENDED_ASPECT_RATIO: u32 = 255;
    if bits.take(1)? == 1 && bits.take(8)? == EXTENDED_ASPECT_RATIO {
        bits.take(32)?;
    }
    if bits.take(1)? == 1 {
        bits.take(1)?; // overscan_appropriate_flag
    }
    if bits.take(1)? == 0 {
        return Some((None, None));
    }
    bits.take(3)?; // video_format
    let range = if bits.take(1)? == 1 { Range::Full } else { Range::Limited };
    let described = bits.take(1)? == 1;
    if described {
        bits.take(16)?; // primaries, transfer
    }
    let matrix = if described { Some(bits.take(8)? as u16) } else { None };
    Some((Some(range), matrix))
}

/// Skips one.
fn scaling_list(bits: &mut Bits, size: usize) -> Option<()> {
    if bits.take(1)? == 0 {
        return Some(());
    }
    let mut last = 8;
    for _ in 0..size {
        let code = bits.golomb()? as i64;
        let change = if code % 2 == 1 { (code + 1) / 2 } else { -code / 2 };
        last = (last + change + 256) % 256;
        if last == 0 {
            break;
        }
    }
    Some(())
}

/// A decoder that gives every picture as soon as it is decoded, in the order of decoding.
///
/// OpenH264 puts pictures into the order of display by a guess, which fails where frames are counted by ones, and gives
/// memory back only when it is not asked for a picture too early. It does neither for the baseline profiles, which have
/// no such order. So [`append_unit`] says in the stream's parameters that it is of one; nothing else in the decoder
/// depends on that, and the container knows the order.
pub(super) fn decoder() -> Result<Decoder, openh264::Error> {
    let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    Decoder::with_api_config(OpenH264API::from_source(), config)
}

/// Appends a unit to a byte stream with start codes, if the decoder has a use for it; whether it was a slice.
pub(super) fn append_unit(stream: &mut Vec<u8>, unit: &[u8]) -> Result<bool, String> {
    let kind = unit.first().map_or(0, |first| first & 0x1f);
    match kind {
        SLICE | IDR_SLICE | PICTURE_PARAMETERS => append(stream, unit),
        SEQUENCE_PARAMETERS => append(stream, &as_baseline(unit)),
        2..=LAST_PARTITION => return Err("data partitions; Baseline, Main and High are read".to_string()),
        _ => {} // delimiters, messages, layers of other profiles
    }
    Ok(matches!(kind, SLICE | IDR_SLICE))
}

fn append(stream: &mut Vec<u8>, unit: &[u8]) {
    stream.extend([0, 0, 0, 1]);
    stream.extend(unit);
}

/// Sequence parameters under the name of a baseline profile that may hold all that Main and High hold.
fn as_baseline(unit: &[u8]) -> Vec<u8> {
    let mut unit = unit.to_vec();
    match unit.get(1) {
        Some(&HIGH) => {
            unit[1] = SCALABLE_BASELINE;
            unit
        }
        Some(&MAIN) => main_as_baseline(&unit).unwrap_or(unit),
        _ => unit,
    }
}

/// Of Main, whose parameters leave out what is the same for all its streams: 4:2:0, 8 bits twice, no bypass, no scaling
/// lists.
fn main_as_baseline(unit: &[u8]) -> Option<Vec<u8>> {
    const LEFT_OUT: [u8; 7] = [0, 1, 0, 1, 1, 0, 0];
    let bytes = without_escapes(&unit[1..]);
    let mut bits = Bits { bytes: &bytes, at: 24 };
    bits.golomb()?;
    let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let end = (bits.at..8 * bytes.len()).rev().find(|&at| bit(at) == 1)? + 1; // with the stop bit
    let whole: Vec<u8> = (24..bits.at).map(bit).chain(LEFT_OUT).chain((bits.at..end).map(bit)).collect();
    let byte = |bits: &[u8]| bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | bit << (7 - i));
    let mut written = vec![unit[0]];
    let mut zeros = 0;
    for byte in [SCALABLE_BASELINE, bytes[1], bytes[2]].into_iter().chain(whole.chunks(8).map(byte)) {
        if zeros >= 2 && byte <= 3 {
            written.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        written.push(byte);
    }
    Some(written)
}

/// A unit's bytes without those that keep start codes out of them: a 3 after two zeros.
fn without_escapes(unit: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(unit.len());
    let mut zeros = 0;
    for &byte in unit {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        bytes.push(byte);
    }
    bytes
}

/// Bits, first the highest of a byte.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next `count` of them, at most 32.
    fn take(&mut self, count: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    /// An unsigned number in Exp-Golomb code (9.1).
    fn golomb(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
        }
        if zeros > 31 {
            return None;
        }
        Some((1u32 << zeros) - 1 + self.take(zeros)?)
    }
}
