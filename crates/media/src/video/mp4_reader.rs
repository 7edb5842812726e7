//! Reads H.264 in MP4, frame by frame, in the order in which they are shown, with the colours, the turn and the cut
//! that the file says.
//!
//! `mp4_index` finds the samples, OpenH264 decodes them, `h264` knows what it can.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use openh264::decoder::{DecodedYUV, Decoder};
use openh264::formats::YUVSource;

use super::format::{CONVERT, Source};
use super::h264::{Sequence, append_unit, decoder};
use super::mp4_index::{self, Track};
use super::stream::{Colours, Matrix, Range, Stream};
use super::yuv::{Picture, Plane, Rounding, ToRgb};
use crate::{Error, Result, open_file};

/// Most frames that wait for one that is shown before them; H.264 knows 16.
const MOST_WAITING: usize = 32;

pub(super) struct Mp4Reader {
    path: PathBuf,
    file: File,
    track: Track,
    stream: Stream,
    /// It has no chroma.
    grey: bool,
    to_rgb: ToRgb,
    decoder: Decoder,
    /// The sample that is decoded next.
    next: usize,
    /// How many frames were given.
    given: usize,
    /// Decoded and not yet due, by their places.
    waiting: BTreeMap<usize, Vec<u8>>,
}

pub(super) fn open(path: &Path) -> Result<Box<dyn Source>> {
    let mut file = open_file(path)?;
    let wrong = |reason: String| Error::file(path, format!("{reason}; {CONVERT}"));
    let track = mp4_index::read(&mut file)
        .map_err(|reason| Error::file(path, format!("not a video that is read: {reason}")))?;
    let (stream, grey) = describe(&mut file, &track).map_err(wrong)?;
    stream.check_size(path)?;
    let decoder = decoder().map_err(|e| Error::file(path, e.to_string()))?;
    let to_rgb = ToRgb::new(stream.colours, if grey { Rounding::Exact } else { Rounding::AsFfmpeg });
    let (path, waiting) = (path.to_path_buf(), BTreeMap::new());
    Ok(Box::new(Mp4Reader { path, file, track, stream, grey, to_rgb, decoder, next: 0, given: 0, waiting }))
}

/// What the file says of its frames: first the stream, then the container, then what ffmpeg assumes. And
/// whether it has no chroma.
fn describe(file: &mut File, track: &Track) -> Result<(Stream, bool), String> {
    let sequences = &track.description.avcc_box.sps_list;
    let sequence = match sequences.first() {
        Some(unit) => Sequence::read(unit)?,
        None => {
            let first = track.samples.first().ok_or("it has no frames")?;
            let sample = bytes_of(file, first)?;
            let units = units(&sample, length_size(track)).ok_or("its first frame is broken")?;
            let unit = units.into_iter().find(|unit| unit[0] & 0x1f == 7).ok_or("it has no sequence parameters")?;
            Sequence::read(unit)?
        }
    };
    let (range, matrix) = track.colours;
    let matrix = sequence.matrix.or(matrix).map_or(Ok(Matrix::default()), Matrix::from_code)?;
    let range = sequence.range.or(range).unwrap_or_default();
    let range = if sequence.grey { Range::Full } else { range }; // as ffmpeg takes all grey pictures
    let shown = || track.samples.iter().filter(|sample| sample.rank.is_some());
    let seconds = shown().map(|sample| f64::from(sample.duration)).sum::<f64>() / f64::from(track.timescale);
    let frames = shown().count();
    if frames == 0 {
        return Err("it has no frames".to_string());
    }
    let stream = Stream {
        width: sequence.width,
        height: sequence.height,
        fps: (seconds > 0.0).then_some(frames as f64 / seconds),
        frames: Some(frames),
        colours: Colours { matrix, range },
        orientation: track.orientation,
    };
    Ok((stream, sequence.grey))
}

/// Bytes of the length before each unit.
fn length_size(track: &Track) -> usize {
    usize::from(track.description.avcc_box.length_size_minus_one.get()) + 1
}

fn bytes_of(file: &mut File, sample: &mp4_index::Sample) -> Result<Vec<u8>, String> {
    let cut = |_| "the file ends before its last frame".to_string();
    let length = file.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
    if sample.offset.saturating_add(sample.size.into()) > length {
        return Err(cut(()));
    }
    file.seek(SeekFrom::Start(sample.offset)).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; sample.size as usize];
    file.read_exact(&mut bytes).map_err(|_| cut(()))?;
    Ok(bytes)
}

/// The units of a sample, each after its length; `None` where a length lies.
fn units(mut data: &[u8], length_size: usize) -> Option<Vec<&[u8]>> {
    let mut units = Vec::new();
    while !data.is_empty() {
        let (length, rest) = data.split_at_checked(length_size)?;
        let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
        let (unit, rest) = rest.split_at_checked(length)?;
        if !unit.is_empty() {
            units.push(unit);
        }
        data = rest;
    }
    Some(units)
}

impl Mp4Reader {
    /// Decodes the next sample; its frame waits until it is due.
    fn decode(&mut self) -> Result<(), String> {
        let sample = self.track.samples[self.next];
        let frame = self.next;
        self.next += 1;
        let data = bytes_of(&mut self.file, &sample)?;
        let units =
            units(&data, length_size(&self.track)).ok_or_else(|| format!("frame {frame}: its units are broken"))?;
        let mut bytes = Vec::with_capacity(data.len() + 64);
        if frame == 0 {
            let description = &self.track.description.avcc_box;
            for unit in description.sps_list.iter().chain(&description.pps_list) {
                append_unit(&mut bytes, unit)?;
            }
        }
        let mut slices = false;
        for unit in units {
            slices |= append_unit(&mut bytes, unit)?;
        }
        let broken = |reason: String| format!("frame {frame} cannot be decoded ({reason})");
        let picture = self.decoder.decode(&bytes).map_err(|e| broken(e.to_string()))?;
        let picture =
            picture.filter(|_| slices).ok_or_else(|| broken("there is no whole picture in it".to_string()))?;
        let rgb = rgb_of(&picture, &self.stream, self.grey, &self.to_rgb)?;
        if let Some(rank) = sample.rank {
            let size = (self.stream.width, self.stream.height);
            self.waiting.insert(rank, self.stream.orientation.apply(rgb, size));
        }
        if self.waiting.len() > MOST_WAITING {
            return Err(format!("more than {MOST_WAITING} frames are decoded before one that is shown first"));
        }
        Ok(())
    }
}

fn rgb_of(picture: &DecodedYUV, stream: &Stream, grey: bool, to_rgb: &ToRgb) -> Result<Vec<u8>, String> {
    let (width, height) = picture.dimensions();
    if (width, height) != (stream.width, stream.height) {
        return Err(format!("its size changes from {}x{} to {width}x{height}", stream.width, stream.height));
    }
    let (luma, cb, cr) = picture.strides();
    let plane = |samples, stride| Plane { samples, stride };
    let chroma = (!grey).then(|| [plane(picture.u(), cb), plane(picture.v(), cr)]);
    Ok(to_rgb.frame(&Picture { width, height, y: plane(picture.y(), luma), chroma, shared: (2, 2) }))
}

impl Source for Mp4Reader {
    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(frame) = self.waiting.remove(&self.given) {
                self.given += 1;
                return Ok(Some(frame));
            }
            if self.next == self.track.samples.len() {
                return Ok(None);
            }
            self.decode().map_err(|reason| Error::file(&self.path, format!("{reason}; {CONVERT}")))?;
        }
    }
}
