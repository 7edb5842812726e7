//! Reads H.264 in MP4, without ffmpeg: the `shiguredo_mp4` crate finds the samples, OpenH264 decodes them.
//!
//! Colours are taken as BT.709 in limited range, which is what this program writes.

use std::path::Path;

use openh264::decoder::{DecodedYUV, Decoder};
use openh264::formats::YUVSource;
use shiguredo_mp4::TrackKind;
use shiguredo_mp4::boxes::SampleEntry;
use shiguredo_mp4::demux::{Input, Mp4FileDemuxer};

use super::bytes_of;
use super::yuv::to_rgb;
use crate::{Clip, Error, Result};

/// Decodes the video track.
pub(super) fn read(path: &Path) -> Result<Clip> {
    let file = &bytes_of(path)?;
    let wrong = |reason: String| Error::file(path, format!("not a whole H.264 video: {reason}"));
    let mut demuxer = Mp4FileDemuxer::new();
    while let Some(required) = demuxer.required_input() {
        let start = (required.position as usize).min(file.len());
        let end = required.size.map_or(file.len(), |size| start.saturating_add(size).min(file.len()));
        demuxer.handle_input(Input { position: required.position, data: &file[start..end] });
    }
    let mut decoder = Decoder::new().map_err(|e| wrong(e.to_string()))?;
    let mut clip = Clip { width: 0, height: 0, fps: None, frames: Vec::new() };
    let mut duration = 0.0;
    let mut samples = 0;
    while let Some(sample) = demuxer.next_sample().map_err(|e| wrong(e.to_string()))? {
        if sample.track.kind != TrackKind::Video {
            continue;
        }
        duration += sample.duration as f64 / sample.track.timescale.get() as f64;
        samples += 1;
        let mut stream = Vec::new();
        match sample.sample_entry {
            Some(SampleEntry::Avc1(entry)) => {
                for unit in entry.avcc_box.sps_list.iter().chain(&entry.avcc_box.pps_list) {
                    append(&mut stream, unit);
                }
            }
            Some(_) => return Err(wrong("the video track has another codec".to_string())),
            None => {}
        }
        let start = sample.data_offset as usize;
        let data = file.get(start..start.saturating_add(sample.data_size));
        let data = data.ok_or_else(|| wrong("the file ends before its last frame".to_string()))?;
        split(data, &mut stream).ok_or_else(|| wrong("a frame's units are broken".to_string()))?;
        if let Some(picture) = decoder.decode(&stream).map_err(|e| wrong(e.to_string()))? {
            push(&mut clip, &picture).map_err(wrong)?;
        }
    }
    for picture in decoder.flush_remaining().map_err(|e| wrong(e.to_string()))? {
        push(&mut clip, &picture).map_err(wrong)?;
    }
    if clip.frames.is_empty() {
        return Err(wrong("it has no frames".to_string()));
    }
    clip.fps = (duration > 0.0).then_some(samples as f64 / duration);
    Ok(clip)
}

/// Units that stand after their lengths, four bytes each, as a byte stream with start codes; `None` where a length lies.
fn split(mut data: &[u8], stream: &mut Vec<u8>) -> Option<()> {
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        append(stream, rest.get(..length)?);
        data = &rest[length..];
    }
    data.is_empty().then_some(())
}

fn append(stream: &mut Vec<u8>, unit: &[u8]) {
    stream.extend([0, 0, 0, 1]);
    stream.extend(unit);
}

fn push(clip: &mut Clip, picture: &DecodedYUV) -> Result<(), String> {
    let (width, height) = picture.dimensions();
    if clip.frames.is_empty() {
        (clip.width, clip.height) = (width, height);
    }
    if (width, height) != (clip.width, clip.height) {
        return Err(format!("its size changes from {}x{} to {width}x{height}", clip.width, clip.height));
    }
    let (luma, cb_stride, cr_stride) = picture.strides();
    let (y, cb, cr) = (picture.y(), picture.u(), picture.v());
    for row in 0..height {
        for column in 0..width {
            let (y, half) = (y[row * luma + column], column / 2);
            clip.frames.extend(to_rgb(y, cb[row / 2 * cb_stride + half], cr[row / 2 * cr_stride + half]));
        }
    }
    Ok(())
}
