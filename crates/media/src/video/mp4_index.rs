//! What an MP4 file says of its video (ISO/IEC 14496-12): where samples are, when they are shown, how frames are
//! turned. Whole files (`moov`) and fragmented ones (`moof`). Boxes are found here, what is in them is read by the
//! `shiguredo_mp4` crate; no count is believed that the file has no bytes for.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use shiguredo_mp4::boxes::{
    Avc1Box, Co64Box, CttsBox, ElstBox, HdlrBox, MdhdBox, MvhdBox, SampleEntry, StcoBox, StscBox, StszBox, SttsBox,
    TfdtBox, TfhdBox, TkhdBox, TrexBox, TrunBox,
};
use shiguredo_mp4::{BoxType, Decode};

use super::format::CONVERT;
use super::stream::{Orientation, Range};

/// The video track of a file.
pub(super) struct Track {
    pub description: Avc1Box,
    /// Units of time in a second.
    pub timescale: u32,
    pub orientation: Orientation,
    /// Range and code of the matrix, where the container says them.
    pub colours: (Option<Range>, Option<u16>),
    /// In the order of decoding.
    pub samples: Vec<Sample>,
}

/// A coded frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub offset: u64,
    pub size: u32,
    pub duration: u32,
    /// When it is shown, in the track's units.
    pub time: i64,
    /// Its place in the order of showing; `None`: it is decoded for others, and not shown.
    pub rank: Option<usize>,
}

/// Most frames of a file: 38 hours at 30 a second.
const MOST_SAMPLES: u64 = 1 << 22;
/// Largest box that is read into memory; one for an hour has some hundred kilobytes.
const LARGEST_INDEX: u64 = 1 << 28;

/// Reads the index of a file. An error says what is wrong with it.
pub(super) fn read(file: &mut File) -> Result<Track, String> {
    let length = file.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
    let boxes = top_level(file, length)?;
    let movie = boxes.iter().find(|place| &place.kind == b"moov").ok_or("it has no index (moov)")?;
    let movie = bytes_of(file, movie)?;
    let mut track = Movie::read(&movie, length)?;
    if let Some(defaults) = track.defaults {
        for place in boxes.iter().filter(|place| &place.kind == b"moof") {
            let fragment = bytes_of(file, place)?;
            track.add_fragment(&fragment, place.start, defaults, length)?;
        }
    }
    track.finish()
}

/// A box between the others of a file.
struct Place {
    kind: [u8; 4],
    start: u64,
    size: u64,
}

fn top_level(file: &mut File, length: u64) -> Result<Vec<Place>, String> {
    let mut places = Vec::new();
    let mut start = 0;
    while start + 8 <= length {
        let mut header = [0; 16];
        let known = (length - start).min(16) as usize;
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut header[..known]));
        read.map_err(|e| e.to_string())?;
        let (kind, size, _) = header_of(&header[..known], length - start).ok_or("a box has no size")?;
        if size > length - start && &kind != b"mdat" {
            return Err("the file ends within a box".to_string());
        }
        places.push(Place { kind, start, size: size.min(length - start) });
        start = start.saturating_add(size);
    }
    Ok(places)
}

fn bytes_of(file: &mut File, place: &Place) -> Result<Vec<u8>, String> {
    if place.size > LARGEST_INDEX {
        return Err(format!("its index takes {} bytes; expected at most {LARGEST_INDEX}", place.size));
    }
    let mut bytes = vec![0; place.size as usize];
    let read = file.seek(SeekFrom::Start(place.start)).and_then(|_| file.read_exact(&mut bytes));
    read.map(|()| bytes).map_err(|e| e.to_string())
}

/// Kind, size with the header, and size of the header of a box that begins here, with so many bytes from here to the
/// end.
fn header_of(bytes: &[u8], left: u64) -> Option<([u8; 4], u64, usize)> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| <[u8; 4]>::try_from(word).ok());
    let (size, kind) = (u32::from_be_bytes(word(0)?), word(4)?);
    let (size, header) = match size {
        0 => (left, 8),
        1 => (u64::from(u32::from_be_bytes(word(8)?)) << 32 | u64::from(u32::from_be_bytes(word(12)?)), 16),
        size => (u64::from(size), 8),
    };
    (size >= header as u64).then_some((kind, size, header))
}

/// A box in memory.
#[derive(Clone, Copy)]
struct Part<'a> {
    kind: [u8; 4],
    /// With its header.
    whole: &'a [u8],
    content: &'a [u8],
}

/// The boxes in a box; what does not fit ends the list.
fn parts(mut bytes: &[u8]) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    while let Some((kind, size, header)) = header_of(bytes, bytes.len() as u64) {
        let Some((whole, rest)) = usize::try_from(size).ok().and_then(|size| bytes.split_at_checked(size)) else {
            break;
        };
        parts.push(Part { kind, whole, content: &whole[header..] });
        bytes = rest;
    }
    parts
}

impl<'a> Part<'a> {
    fn of(whole: &'a [u8]) -> Option<Self> {
        parts(whole).first().copied()
    }

    /// The first box in it along a path.
    fn find(self, path: &[&[u8; 4]]) -> Option<Part<'a>> {
        path.iter().try_fold(self, |part, kind| parts(part.content).into_iter().find(|part| part.kind == **kind))
    }

    fn need(self, path: &[&[u8; 4]]) -> Result<Part<'a>, String> {
        let name = || path.iter().map(|kind| text(kind)).collect::<Vec<_>>().join("/");
        self.find(path).ok_or_else(|| format!("its index has no {}", name()))
    }

    fn decode<T: Decode>(self) -> Result<T, String> {
        T::decode(self.whole).map(|(value, _)| value).map_err(|e| format!("{}: {}", text(&self.kind), e.reason))
    }
}

fn text(kind: &[u8; 4]) -> String {
    kind.escape_ascii().to_string()
}

/// A track under way.
struct Movie {
    track: Track,
    id: u32,
    /// Defaults of fragments: duration and size of a sample. `None`: the file has no fragments.
    defaults: Option<(u32, u32)>,
    edits: Vec<Edit>,
    /// When the next fragment begins, where it does not say so.
    end: i64,
}

/// A stretch of the track that is shown, in its units of time.
struct Edit {
    from: i64,
    /// `None`: up to the end.
    until: Option<i64>,
}

impl Movie {
    /// The first video track in H.264; where there is none, the error names the codec of the first one.
    fn read(movie: &[u8], length: u64) -> Result<Self, String> {
        let movie = Part::of(movie).ok_or("its index is broken")?;
        let header: MvhdBox = movie.need(&[b"mvhd"])?.decode()?;
        let mut refused = None;
        for part in parts(movie.content).into_iter().filter(|part| &part.kind == b"trak") {
            let handler: HdlrBox = part.need(&[b"mdia", b"hdlr"])?.decode()?;
            if handler.handler_type != HdlrBox::HANDLER_TYPE_VIDE {
                continue;
            }
            let entries = part.need(&[b"mdia", b"minf", b"stbl", b"stsd"])?;
            match description(entries) {
                Ok(description) => return Self::of_track(movie, &header, part, description, length),
                Err(reason) => drop(refused.get_or_insert(reason)),
            }
        }
        Err(refused.unwrap_or_else(|| "it has no video track".to_string()))
    }

    fn of_track(movie: Part, header: &MvhdBox, part: Part, description: Avc1Box, length: u64) -> Result<Self, String> {
        let track: TkhdBox = part.need(&[b"tkhd"])?.decode()?;
        let media: MdhdBox = part.need(&[b"mdia", b"mdhd"])?.decode()?;
        let colours = description.unknown_boxes.iter().filter(|part| part.box_type == BoxType::Normal(*b"colr"));
        let colours = colours.filter_map(|part| container_colours(&part.payload)).next().unwrap_or_default();
        let timescale = media.timescale.get();
        let edits = match part.find(&[b"edts", b"elst"]) {
            Some(list) => edits(&list.decode()?, timescale, header.timescale.get())?,
            None => Vec::new(),
        };
        let orientation =
            orientation(&track.matrix, &header.matrix).ok_or("it is turned by an angle that is no quarter")?;
        let trex = parts(movie.content)
            .into_iter()
            .filter(|part| &part.kind == b"mvex")
            .flat_map(|part| parts(part.content).into_iter().filter(|part| &part.kind == b"trex").collect::<Vec<_>>());
        let mut defaults = None;
        for part in trex {
            let part: TrexBox = part.decode()?;
            if part.track_id == track.track_id {
                defaults = Some((part.default_sample_duration, part.default_sample_size));
            }
        }
        let samples = samples(part.need(&[b"mdia", b"minf", b"stbl"])?, length)?;
        let end = samples.iter().map(|sample| i64::from(sample.duration)).sum();
        let track_id = track.track_id;
        let track = Track { description, timescale, orientation, colours, samples };
        Ok(Movie { track, id: track_id, defaults, edits, end })
    }

    /// Adds what a fragment says of the track. `start`: where the fragment is in the file.
    fn add_fragment(&mut self, fragment: &[u8], start: u64, defaults: (u32, u32), length: u64) -> Result<(), String> {
        let fragment = Part::of(fragment).ok_or("a fragment is broken")?;
        let mut place = start;
        for part in parts(fragment.content).into_iter().filter(|part| &part.kind == b"traf") {
            let header: TfhdBox = part.need(&[b"tfhd"])?.decode()?;
            if let Some(base) = header.base_data_offset {
                place = base;
            } else if header.default_base_is_moof {
                place = start;
            }
            if header.track_id != self.id {
                continue;
            }
            if let Some(time) = part.find(&[b"tfdt"]) {
                let time: TfdtBox = time.decode()?;
                self.end = time.base_media_decode_time as i64;
            }
            let base = place;
            let (duration, size) = defaults;
            let duration = header.default_sample_duration.unwrap_or(duration);
            let size = header.default_sample_size.unwrap_or(size);
            for run in parts(part.content).into_iter().filter(|part| &part.kind == b"trun") {
                let count = run.content.get(4..8).and_then(|word| <[u8; 4]>::try_from(word).ok());
                check_count(count.map_or(0, u32::from_be_bytes).into(), self.track.samples.len() as u64, length)?;
                let run: TrunBox = run.decode()?;
                if let Some(offset) = run.data_offset {
                    place = base.saturating_add_signed(offset.into());
                }
                for sample in &run.samples {
                    let (duration, size) = (sample.duration.unwrap_or(duration), sample.size.unwrap_or(size));
                    let time = self.end.saturating_add(sample.composition_time_offset.unwrap_or(0).into());
                    self.track.samples.push(Sample { offset: place, size, duration, time, rank: None });
                    place = place.saturating_add(size.into());
                    self.end = self.end.saturating_add(duration.into());
                }
            }
        }
        Ok(())
    }

    /// The track, with the places in which its samples are shown.
    fn finish(mut self) -> Result<Track, String> {
        let samples = &mut self.track.samples;
        let shown = |sample: &Sample| {
            self.edits.is_empty()
                || self
                    .edits
                    .iter()
                    .any(|edit| sample.time >= edit.from && edit.until.is_none_or(|until| sample.time < until))
        };
        let mut order: Vec<usize> = (0..samples.len()).filter(|&i| shown(&samples[i])).collect();
        order.sort_by_key(|&i| samples[i].time);
        for (rank, i) in order.into_iter().enumerate() {
            samples[i].rank = Some(rank);
        }
        Ok(self.track)
    }
}

/// How the codecs of other files are called, and where they come from.
const CODECS: [(&[u8; 4], &str); 20] = [
    (b"mp4v", "MPEG-4 Part 2, or older"),
    (b"hvc1", "H.265 (HEVC)"),
    (b"hev1", "H.265 (HEVC)"),
    (b"dvh1", "Dolby Vision (H.265)"),
    (b"dvhe", "Dolby Vision (H.265)"),
    (b"vvc1", "H.266 (VVC)"),
    (b"av01", "AV1"),
    (b"vp08", "VP8"),
    (b"vp09", "VP9"),
    (b"mjpg", "motion JPEG"),
    (b"jpeg", "motion JPEG"),
    (b"mjpa", "motion JPEG"),
    (b"png ", "PNG"),
    (b"s263", "H.263"),
    (b"h263", "H.263"),
    (b"apch", "ProRes"),
    (b"apcn", "ProRes"),
    (b"ap4h", "ProRes"),
    (b"encv", "encrypted"),
    (b"drmi", "encrypted"),
];

/// The description of H.264 samples, or the name of the codec that they are in.
fn description(entries: Part) -> Result<Avc1Box, String> {
    let entries = entries.content.get(8..).map(parts).unwrap_or_default();
    let mut avc = entries.iter().filter(|entry| matches!(&entry.kind, b"avc1" | b"avc3"));
    let Some(entry) = avc.next() else {
        let kind = entries.first().map_or(*b"none", |entry| entry.kind);
        let name =
            CODECS.iter().find(|(known, _)| **known == kind).map_or("no codec that is known here", |(_, name)| name);
        return Err(format!("its video is {name} ({}), expected H.264 (avc1); {CONVERT}", text(&kind)));
    };
    if entries.len() > 1 {
        return Err("its video changes its description on the way".to_string());
    }
    // avc3 is avc1 with its parameters among the samples.
    let mut whole = entry.whole.to_vec();
    whole[4..8].copy_from_slice(b"avc1");
    match SampleEntry::decode(&whole).map_err(|e| format!("{}: {}", text(&entry.kind), e.reason))?.0 {
        SampleEntry::Avc1(description) => Ok(description),
        _ => Err("its description is broken".to_string()),
    }
}

/// Range and matrix from a `colr` box.
fn container_colours(content: &[u8]) -> Option<(Option<Range>, Option<u16>)> {
    let matrix = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(8..10)?.try_into().ok()?));
    match content.get(..4)? {
        b"nclx" => {
            let full = content.get(10)? >> 7 == 1;
            Some((Some(if full { Range::Full } else { Range::Limited }), Some(matrix(content)?)))
        }
        b"nclc" => Some((None, Some(matrix(content)?))),
        _ => None,
    }
}

/// The turn of the track, and then that of the whole film.
fn orientation(track: &[i32; 9], film: &[i32; 9]) -> Option<Orientation> {
    let part = |matrix: &[i32; 9]| [matrix[0], matrix[1], matrix[3], matrix[4]].map(i64::from);
    let ([a, b, c, d], [e, f, g, h]) = (part(track), part(film));
    if part(film) == [0; 4] {
        return Orientation::new(part(track));
    }
    Orientation::new([a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h])
}

fn edits(list: &ElstBox, timescale: u32, movie_timescale: u32) -> Result<Vec<Edit>, String> {
    const EMPTY: i64 = -1;
    let mut edits: Vec<Edit> = Vec::new();
    for entry in list.entries.iter().filter(|entry| entry.media_time != EMPTY) {
        if (entry.media_rate.integer, entry.media_rate.fraction) != (1, 0) {
            return Err("its edit list changes the speed".to_string());
        }
        let duration = u128::from(entry.edit_duration) * u128::from(timescale);
        let duration = (duration + u128::from(movie_timescale / 2)) / u128::from(movie_timescale);
        let duration = i64::try_from(duration).map_err(|_| "its edit list is broken")?;
        let from = entry.media_time;
        let until = (duration > 0).then(|| from.saturating_add(duration));
        if edits.last().is_some_and(|last| last.until.is_none_or(|until| until > from)) {
            return Err("its edit list shows parts twice or in another order".to_string());
        }
        edits.push(Edit { from, until });
    }
    Ok(edits)
}

/// Refuses more samples than the file can have: each takes a byte at least.
fn check_count(count: u64, before: u64, length: u64) -> Result<(), String> {
    let most = MOST_SAMPLES.min(length);
    match count.saturating_add(before) {
        count if count > most => Err(format!("its index counts {count} frames, more than the file has bytes for")),
        _ => Ok(()),
    }
}

/// The samples of a track that is not fragmented, or that begins before its fragments.
fn samples(table: Part, length: u64) -> Result<Vec<Sample>, String> {
    if table.find(&[b"stsz"]).is_none() && table.find(&[b"stz2"]).is_some() {
        return Err("its index is in a short form that is not read (stz2)".to_string());
    }
    let sizes: StszBox = table.need(&[b"stsz"])?.decode()?;
    let (fixed, sizes) = match sizes {
        StszBox::Fixed { sample_size, sample_count } => (Some((sample_size.get(), sample_count)), Vec::new()),
        StszBox::Variable { entry_sizes } => (None, entry_sizes),
    };
    let count = fixed.map_or(sizes.len(), |(_, count)| count as usize);
    let most = fixed.map_or(length, |(size, _)| length / u64::from(size));
    check_count(count as u64, 0, most)?;
    let size = |i: usize| fixed.map_or_else(|| sizes[i], |(size, _)| size);

    let durations: SttsBox = table.need(&[b"stts"])?.decode()?;
    let durations = durations.entries.iter().flat_map(|e| (0..e.sample_count).map(|_| e.sample_delta));
    let durations: Vec<u32> = durations.take(count).collect();
    let offsets: Vec<i64> = match table.find(&[b"ctts"]) {
        Some(list) => {
            let list: CttsBox = list.decode()?;
            list.entries.iter().flat_map(|e| (0..e.sample_count).map(|_| e.sample_offset)).take(count).collect()
        }
        None => Vec::new(),
    };
    let chunks: Vec<u64> = match table.find(&[b"co64"]) {
        Some(list) => list.decode::<Co64Box>()?.chunk_offsets,
        None => table.need(&[b"stco"])?.decode::<StcoBox>()?.chunk_offsets.into_iter().map(u64::from).collect(),
    };
    let runs: StscBox = table.need(&[b"stsc"])?.decode()?;

    let mut samples = Vec::with_capacity(count);
    let (mut run, mut time) = (0, 0i64);
    for (chunk, &start) in chunks.iter().enumerate() {
        while runs.entries.get(run + 1).is_some_and(|next| next.first_chunk.get() as usize <= chunk + 1) {
            run += 1;
        }
        let in_chunk = runs.entries.get(run).map_or(0, |entry| entry.sample_per_chunk);
        let mut offset = start;
        for _ in 0..in_chunk {
            let i = samples.len();
            if i == count {
                break;
            }
            let duration = durations.get(i).copied().unwrap_or(0);
            let shown = time.saturating_add(offsets.get(i).copied().unwrap_or(0));
            samples.push(Sample { offset, size: size(i), duration, time: shown, rank: None });
            offset = offset.saturating_add(size(i).into());
            time = time.saturating_add(duration.into());
        }
    }
    if samples.len() < count {
        return Err(format!("its index counts {count} frames and places {}", samples.len()));
    }
    Ok(samples)
}
