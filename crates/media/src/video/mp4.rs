//! H.264 in MP4, as browsers play it: 4:2:0, BT.709, one key frame at least every two seconds, index at the front.
//!
//! Encoder: OpenH264. Container: the `shiguredo_mp4` crate.

use std::io::{Seek, SeekFrom, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use openh264::OpenH264API;
use openh264::encoder::{
    Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange, RateControlMode, VuiConfig,
};
use openh264::formats::YUVSlices;
use shiguredo_mp4::boxes::{Avc1Box, AvccBox, SampleEntry, UnknownBox, VisualSampleEntryFields};
use shiguredo_mp4::mux::{Mp4FileMuxer, Mp4FileMuxerOptions, Sample, estimate_maximum_moov_box_size};
use shiguredo_mp4::{BoxSize, BoxType, TrackKind, Uint};

use super::format::{Format, Purpose, Sink, check_file};
use super::mp4_reader;
use super::stream::{Colours, Matrix, Range};
use super::yuv::{Planes, halved};
use crate::{Error, Result, Spec, WholeFile};

pub(super) static FORMAT: Format = Format {
    ending: Some("mp4"),
    about: "H.264 in MP4: plays everywhere",
    purpose: Purpose::Watching,
    check: check_file,
    fits,
    fastest: None,
    create: |path, spec| Ok(Box::new(Mp4::create(path, spec)?)),
    open: Ok(mp4_reader::open),
};

/// Largest picture the encoder takes: longer side, shorter side.
const LARGEST: (usize, usize) = (3840, 2160);
/// The colours that the file says it has, to the stream's readers and to the container's.
const COLOURS: Colours = Colours { matrix: Matrix::Bt709, range: Range::Limited };
/// `colr`: primaries, transfer and matrix of BT.709, limited range (ITU-T H.273).
const COLR: &[u8] = b"nclx\0\x01\0\x01\0\x01\0";
/// Quantisation: artefacts of the file must not be mistaken for artefacts of the method.
const QP: QpRange = QpRange::new(10, 20);

pub(super) struct Mp4 {
    path: PathBuf,
    file: WholeFile,
    spec: Spec,
    encoder: Encoder,
    muxer: Mp4FileMuxer,
    position: u64,
    described: bool,
}

impl Mp4 {
    pub fn create(path: &Path, spec: &Spec) -> Result<Self> {
        let Spec { fps, frames, .. } = *spec;
        fits(path, spec)?;
        let config = EncoderConfig::new()
            .rate_control_mode(RateControlMode::Off)
            .qp(QP)
            .max_frame_rate(FrameRate::from_hz(fps.number() as f32))
            .intra_frame_period(IntraFramePeriod::from_num_frames((2.0 * fps.number()) as u32))
            .complexity(Complexity::High)
            .skip_frames(false)
            .num_threads(1) // the same bytes whatever the machine
            .vui(VuiConfig::bt709());
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config).map_err(|e| failed(path, e))?;
        let options = Mp4FileMuxerOptions {
            reserved_moov_box_size: estimate_maximum_moov_box_size(&[frames]),
            ..Default::default()
        };
        let muxer = Mp4FileMuxer::with_options(options).map_err(|e| failed(path, e))?;
        let mut file = WholeFile::create(path)?;
        file.write_all(muxer.initial_boxes_bytes()).map_err(Error::io(path))?;
        let position = muxer.initial_boxes_bytes().len() as u64;
        Ok(Mp4 { path: path.to_path_buf(), file, spec: *spec, encoder, muxer, position, described: false })
    }
}

fn fits(path: &Path, spec: &Spec) -> Result<()> {
    let Spec { width, height, fps, .. } = *spec;
    let is_small_enough = width.max(height) <= LARGEST.0 && width.min(height) <= LARGEST.1;
    if is_small_enough && width % 2 == 0 && height % 2 == 0 {
        return Ok(());
    }
    let reason = format!(
        "{width}x{height} at {fps} frames a second: H.264 here takes even sizes up to {}x{}; .y4m and .png take any",
        LARGEST.0, LARGEST.1
    );
    Err(Error::file(path, reason))
}

fn failed(path: &Path, e: impl std::fmt::Display) -> Error {
    Error::file(path, format!("could not be encoded: {e}"))
}

impl Sink for Mp4 {
    fn push(&mut self, rgb: &[u8]) -> Result<()> {
        let Spec { width, height, fps, .. } = self.spec;
        let planes = Planes::from_rgb(rgb, COLOURS);
        let (cb, cr) = (halved(&planes.cb, width), halved(&planes.cr, width));
        let source = YUVSlices::new((&planes.y, &cb, &cr), (width, height), (width, width / 2, width / 2));
        let stream = self.encoder.encode(&source).map_err(|e| failed(&self.path, e))?;
        let keyframe = matches!(stream.frame_type(), FrameType::IDR | FrameType::I);
        let coded = Coded::split(&stream.to_vec());
        if coded.sample.is_empty() {
            return Err(failed(&self.path, "the encoder dropped a frame"));
        }
        self.file.write_all(&coded.sample).map_err(Error::io(&self.path))?;
        let describe = !self.described;
        self.described = true;
        let sample = Sample {
            track_kind: TrackKind::Video,
            sample_entry: describe.then(|| coded.description(width, height)),
            keyframe,
            timescale: NonZeroU32::new(fps.frames()).unwrap_or(NonZeroU32::MIN),
            duration: fps.seconds(),
            composition_time_offset: None,
            data_offset: self.position,
            data_size: coded.sample.len(),
        };
        self.position += coded.sample.len() as u64;
        self.muxer.append_sample(&sample).map_err(|e| failed(&self.path, e))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let boxes = self.muxer.finalize().map_err(|e| failed(&self.path, e))?;
        for (offset, bytes) in boxes.offset_and_bytes_pairs() {
            let write = |file: &mut WholeFile| file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes));
            write(&mut self.file).map_err(Error::io(&self.path))?;
        }
        self.file.finish()
    }
}

/// What the encoder made of a frame, as the container wants it.
struct Coded {
    /// Slices, each after its length in four bytes.
    sample: Vec<u8>,
    sequence: Option<Vec<u8>>,
    picture: Option<Vec<u8>>,
}

impl Coded {
    /// From a byte stream with start codes (ITU-T H.264, annex B).
    fn split(stream: &[u8]) -> Self {
        const SEQUENCE_PARAMETERS: u8 = 7;
        const PICTURE_PARAMETERS: u8 = 8;
        let mut coded = Coded { sample: Vec::with_capacity(stream.len()), sequence: None, picture: None };
        for unit in units(stream) {
            match unit[0] & 0x1f {
                SEQUENCE_PARAMETERS => coded.sequence = Some(unit.to_vec()),
                PICTURE_PARAMETERS => coded.picture = Some(unit.to_vec()),
                _ => {
                    coded.sample.extend((unit.len() as u32).to_be_bytes());
                    coded.sample.extend(unit);
                }
            }
        }
        coded
    }

    fn description(&self, width: usize, height: usize) -> SampleEntry {
        let sequence = self.sequence.clone().unwrap_or_default();
        let byte = |i: usize| sequence.get(i).copied().unwrap_or_default();
        // Profiles above main say their chroma format and depth once more.
        let high = matches!(byte(1), 100 | 110 | 122 | 144);
        SampleEntry::Avc1(Avc1Box {
            visual: VisualSampleEntryFields {
                data_reference_index: VisualSampleEntryFields::DEFAULT_DATA_REFERENCE_INDEX,
                width: width as u16,
                height: height as u16,
                horizresolution: VisualSampleEntryFields::DEFAULT_HORIZRESOLUTION,
                vertresolution: VisualSampleEntryFields::DEFAULT_VERTRESOLUTION,
                frame_count: VisualSampleEntryFields::DEFAULT_FRAME_COUNT,
                compressorname: VisualSampleEntryFields::NULL_COMPRESSORNAME,
                depth: VisualSampleEntryFields::DEFAULT_DEPTH,
            },
            avcc_box: AvccBox {
                avc_profile_indication: byte(1),
                profile_compatibility: byte(2),
                avc_level_indication: byte(3),
                length_size_minus_one: Uint::new(3),
                sps_list: vec![sequence],
                pps_list: self.picture.iter().cloned().collect(),
                chroma_format: high.then(|| Uint::new(1)),
                bit_depth_luma_minus8: high.then(|| Uint::new(0)),
                bit_depth_chroma_minus8: high.then(|| Uint::new(0)),
                sps_ext_list: Vec::new(),
            },
            unknown_boxes: vec![UnknownBox {
                box_type: BoxType::Normal(*b"colr"),
                box_size: BoxSize::with_payload_size(BoxType::Normal(*b"colr"), COLR.len() as u64),
                payload: COLR.to_vec(),
            }],
        })
    }
}

/// Units between start codes: 00 00 01, with more zeros before it or not.
fn units(stream: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = stream.windows(3).enumerate().filter(|(_, w)| *w == [0, 0, 1]).map(|(i, _)| i).collect();
    let ends = starts.iter().skip(1).copied().chain([stream.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| {
            let unit = &stream[start + 3..end];
            let zeros = unit.iter().rev().take_while(|&&byte| byte == 0).count();
            &unit[..unit.len() - zeros]
        })
        .filter(|unit| !unit.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_a_byte_stream() {
        let stream = [0, 0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 2, 0, 0, 0, 1, 0x65, 3, 4];
        assert_eq!(units(&stream), [&[0x67, 1][..], &[0x68, 2], &[0x65, 3, 4]]);
        assert!(units(&[]).is_empty());
    }
}
