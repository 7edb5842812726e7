#!/usr/bin/env python3
"""Two hundred videos as ffmpeg writes them, and what is read of them beside ffmpeg's own frames.

    cargo build --release -p navicache-media --example frames
    python tools/video/corpus.py target/release/examples/frames [--folder DIR] [--only WORD] [--golden DIR]

Each clip is either read, all frames within 2 grey levels of `ffmpeg -pix_fmt rgb24`, or refused with its reason by name where that is
expected. "close": OpenH264 decodes a block a little differently from the standard, which one value in a thousand shows at most. `--golden DIR` writes the small selection that the tests of crates/media read: the clip, and ffmpeg's frames as one PNG, one
below the other. Needs ffmpeg with libx264 and libx265, numpy and Pillow.
"""
import argparse
import concurrent.futures
import itertools
import pathlib
import subprocess
import sys

import numpy as np

LEVELS = 2
CLOSE = 4, 1e-3
SIZE = "64x48"


class Clip:
    """A clip: arguments of ffmpeg, and what is expected."""

    def __init__(self, name, args, refused=None, size=SIZE, frames=13, rate="8", source=None, then=None, ending="mp4", golden=False, reference=()):
        self.name, self.args, self.refused, self.golden, self.ending = name, args, refused, golden, ending
        self.source = source or ["-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}"]
        self.frames, self.then, self.reference = frames, then, list(reference)

    def make(self, folder):
        path = folder / f"{self.name}.{self.ending}"
        first = folder / f"{self.name}.first.mp4" if self.then else path
        cut = [] if "-frames:v" in self.args or "-t" in self.args else ["-frames:v", str(self.frames)]
        ffmpeg(*self.source, *cut, *self.args, str(first))
        if self.then:
            self.then(first, path)
            first.unlink()
        return path


def ffmpeg(*args):
    # No builds' names or dates in the file: the same bytes tomorrow.
    run = subprocess.run(["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *args[:-1], "-fflags", "+bitexact", "-map_metadata", "-1", args[-1]], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr.strip().splitlines()[-1] if run.stderr else "ffmpeg failed")


def x264(*extra, pix="yuv420p", **options):
    text = ":".join(f"{key.replace('_', '-')}={value}" for key, value in options.items())
    return ["-c:v", "libx264", "-threads", "1", "-pix_fmt", pix, *(["-x264-params", text] if text else []), *extra]


def copied(*args, before=()):
    def then(first, path):
        ffmpeg(*before, "-i", str(first), "-c", "copy", *args, str(path))
    return then


def patched(old, new):
    """The last such bytes of the file changed by hand: for what ffmpeg does not write."""
    def then(first, path):
        before, found, after = first.read_bytes().rpartition(old)
        assert found, f"no {old!r} in the file"
        path.write_bytes(before + new + after)
    return then


def turned(matrix, base=((1, 0), (0, 1))):
    """Another matrix in the track's header."""
    one = 1 << 16
    word = lambda value: (value & 0xFFFFFFFF).to_bytes(4, "big")
    fill = lambda m: word(m[0][0] * one) + word(m[0][1] * one) + word(0) + word(m[1][0] * one) + word(m[1][1] * one)
    def then(first, path):
        data = first.read_bytes()
        at = data.index(b"tkhd") + 4
        old = fill(base)
        i = data.index(old, at)
        path.write_bytes(data[:i] + fill(matrix) + data[i + len(old):])
    return then


def colours(matrix, range_, tags=True, bits=None):
    scale = f"scale=out_color_matrix={bits or matrix}:out_range={range_}"
    tagged = ["-colorspace", matrix, "-color_range", range_] if tags else []
    return ["-vf", scale, *tagged]


def clips():
    yield Clip("x264-default", x264(), golden=True)
    for profile, bframes, pyramid in itertools.product(["main", "high"], [0, 1, 2, 3, 5, 16], ["none", "strict", "normal"]):
        if bframes > 1 or pyramid == "none":
            yield Clip(f"{profile}-b{bframes}-{pyramid}", x264("-profile:v", profile, bframes=bframes, b_pyramid=pyramid, b_adapt=0), frames=40)
    for refs in [1, 2, 8, 16]:
        yield Clip(f"refs{refs}", x264(ref=refs, bframes=3), frames=40)
    yield Clip("baseline", x264("-profile:v", "baseline"), golden=True)
    yield Clip("main-b-frames", x264("-profile:v", "main", bframes=4, b_pyramid="normal", b_adapt=0), golden=True, frames=9)
    for preset in ["ultrafast", "superfast", "veryfast", "faster", "fast", "slow", "slower", "veryslow", "placebo"]:
        yield Clip(f"preset-{preset}", x264("-preset", preset), frames=40)
    for tune in ["film", "animation", "grain", "stillimage", "fastdecode", "zerolatency", "psnr", "ssim"]:
        yield Clip(f"tune-{tune}", x264("-tune", tune), frames=40)
    for crf in [1, 10, 35, 51]:
        yield Clip(f"crf{crf}", x264("-crf", str(crf)))
    yield Clip("long-group", x264(keyint=1000, scenecut=0, bframes=3), frames=150)
    yield Clip("open-groups", x264(keyint=10, open_gop=1, bframes=3), frames=40)
    yield Clip("intra-refresh", x264(keyint=10, intra_refresh=1), frames=40)
    yield Clip("key-frames-only", x264(keyint=1))
    yield Clip("many-groups", x264(keyint=4, min_keyint=1), frames=18, golden=True)
    for name, options in {
        "slices": dict(slices=4), "slice-rows": dict(slice_max_mbs=3), "cavlc": dict(cabac=0), "no-8x8": {"8x8dct": 0},
        "jvt-matrices": dict(cqm="jvt"), "delimiters": dict(aud=1), "hrd": dict(nal_hrd="vbr", vbv_maxrate=500, vbv_bufsize=500),
        "no-weights": dict(weightp=0, weightb=0), "weights": dict(weightp=2, weightb=1, bframes=3), "no-deblock": dict(no_deblock=1),
        "direct-temporal": dict(direct="temporal", bframes=3), "direct-spatial": dict(direct="spatial", bframes=3),
        "direct-none": dict(direct="none", bframes=3), "qp-jumps": dict(qp=40, ipratio=3), "trellis": dict(trellis=2, subme=10),
        "constrained-intra": dict(constrained_intra=1), "stitchable": dict(stitchable=1), "pic-struct": dict(pic_struct=1),
    }.items():
        yield Clip(name, x264(**options), frames=30)
    yield Clip("fading", x264("-vf", "fade=out:0:25", weightp=2, bframes=3), frames=30)
    yield Clip("noise", x264("-vf", "noise=alls=60:allf=t"), frames=20)

    for matrix, range_ in itertools.product(["bt709", "smpte170m", "bt470bg", "smpte240m", "fcc", "bt2020nc"], ["tv", "pc"]):
        bits = {"smpte170m": "bt601", "bt470bg": "bt601", "bt2020nc": "bt2020", "fcc": "fcc"}.get(matrix, matrix)
        golden = (matrix, range_) in [("bt709", "tv"), ("bt709", "pc"), ("smpte170m", "tv"), ("bt2020nc", "tv")]
        yield Clip(f"colours-{matrix}-{range_}", x264(*colours(matrix, range_, bits=bits)), golden=golden)
    yield Clip("colours-bt2020c", x264(*colours("bt2020c", "tv", bits="bt2020")))
    yield Clip("colours-not-said", x264(), golden=True)
    yield Clip("range-only", x264("-vf", "scale=out_range=pc", "-color_range", "pc"), then=copied("-movflags", "-write_colr"))
    for matrix in ["1", "5", "9"]:
        strip = copied("-bsf:v", "h264_metadata=matrix_coefficients=2:colour_primaries=2:transfer_characteristics=2")
        name = {"1": "bt709", "5": "bt470bg", "9": "bt2020nc"}[matrix]
        yield Clip(f"container-and-stream-differ-{matrix}", x264(*colours(name, "tv", bits="bt601" if matrix == "5" else name[:6])), then=strip)
    no_vui = [*colours("bt709", "tv"), "-movflags", "+write_colr"]
    yield Clip("colours-in-container-only", x264(*no_vui, fullrange="off", colormatrix="undef", colorprim="undef", transfer="undef"), golden=True)
    yield Clip("gbr", ["-c:v", "libx264rgb", "-pix_fmt", "rgb24"], refused="4:4:4")

    for size in ["16x16", "18x18", "20x34", "34x50", "62x46", "128x96", "176x144", "178x100", "322x242", "402x226", "1280x720", "854x480", "2x64", "256x2"]:
        yield Clip(f"size-{size}", x264(), size=size)

    for start, length in [("0.3", None), ("0.5", None), ("0.5", "0.5"), ("1", "0.9"), ("0", "1"), ("1.2", None)]:
        length_ = ["-t", length] if length else []
        yield Clip(f"cut-{start}-{length}", x264(keyint=20), frames=24, then=copied(*length_, before=["-ss", start]), golden=(start, length) == ("0.5", "0.5"))
        yield Clip(f"cut-no-b-{start}-{length}", x264(bframes=0, keyint=8), frames=24, then=copied(*length_, before=["-ss", start]))
    yield Clip("delayed", x264(), then=copied(before=["-itsoffset", "0.5"]))
    yield Clip("delayed-by-sound", x264("-c:a", "aac", "-shortest"), source=["-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=8", "-f", "lavfi", "-i", "sine=r=44100:d=3"], then=copied(before=["-ss", "0.4"]))
    yield Clip("no-edit-list", x264("-use_editlist", "0"))
    yield Clip("negative-offsets", x264("-movflags", "+negative_cts_offsets"), golden=True)

    for flags in ["frag_keyframe", "frag_keyframe+empty_moov", "frag_keyframe+empty_moov+default_base_moof", "frag_every_frame+empty_moov", "frag_keyframe+separate_moof", "dash", "cmaf", "frag_keyframe+omit_tfhd_offset", "frag_keyframe+negative_cts_offsets", "frag_keyframe+delay_moov"]:
        yield Clip(f"fragments-{flags}", x264("-movflags", flags, keyint=5), frames=17, golden=flags in ["frag_keyframe", "frag_keyframe+empty_moov+default_base_moof"])
        sound = ["-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=8", "-f", "lavfi", "-i", "sine=r=44100:d=3"]
        if "every_frame" in flags:
            continue  # ffmpeg writes two frames at one time, and reads one of them
        yield Clip(f"fragments-sound-{flags}", x264("-movflags", flags, "-c:a", "aac", "-shortest", keyint=5), frames=17, source=sound)

    one = {90: ((0, 1), (-1, 0)), 180: ((-1, 0), (0, -1)), 270: ((0, -1), (1, 0))}
    for angle, matrix in one.items():
        yield Clip(f"turned-{angle}", x264(), then=turned(matrix), golden=angle == 90)
    for name, matrix in {"mirrored": ((-1, 0), (0, 1)), "upside-down": ((1, 0), (0, -1)), "transposed": ((0, 1), (1, 0)), "transversed": ((0, -1), (-1, 0))}.items():
        yield Clip(name, x264(), then=turned(matrix), golden=name == "transposed")
    yield Clip("askew", x264(), then=turned(((1, 1), (-1, 1))), refused="no quarter")

    for rate in ["1", "23.976", "24000/1001", "25", "30000/1001", "50", "60", "120"]:
        yield Clip(f"rate-{rate.replace('/', '-')}", x264(), rate=rate)
    yield Clip("uneven-times", x264("-vf", "setpts='PTS+0.03*random(1)/TB'", "-fps_mode", "passthrough"), frames=20)
    yield Clip("fine-timescale", x264("-video_track_timescale", "90000"))
    yield Clip("coarse-timescale", x264("-video_track_timescale", "8"))
    sound = ["-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=8", "-f", "lavfi", "-i", "sine=r=48000:d=3"]
    yield Clip("sound", x264("-c:a", "aac", "-shortest"), source=sound, frames=20)
    yield Clip("sound-first", x264("-map", "1:a", "-map", "0:v", "-c:a", "aac", "-t", "2"), source=sound)
    yield Clip("index-in-front", x264("-movflags", "faststart"))
    yield Clip("quicktime", x264("-f", "mov"))
    yield Clip("quicktime-sound", x264("-f", "mov", "-c:a", "pcm_s16le", "-shortest"), source=sound)
    yield Clip("3gp", x264("-f", "3gp", "-profile:v", "baseline"))
    yield Clip("smooth-streaming", x264("-f", "ismv"))
    yield Clip("ipod", x264("-f", "ipod"))
    yield Clip("avc3", x264(repeat_headers=1), then=patched(b"avc1", b"avc3"))
    yield Clip("subtitle-of-chapters", x264("-metadata", "title=x"))
    yield Clip("grey", x264(pix="gray"))

    yield Clip("ten-bits", x264(pix="yuv420p10le"), refused="10 bits", golden=True)
    yield Clip("chroma-422", x264(pix="yuv422p"), refused="4:2:2", golden=True)
    yield Clip("chroma-444", x264(pix="yuv444p"), refused="4:4:4", golden=True)
    yield Clip("lossless", x264("-qp", "0"), refused="High 4:4:4", golden=True)
    yield Clip("interlaced", x264("-flags", "+ilme+ildct", tff=1), refused="interlaced", golden=True)
    yield Clip("fake-interlaced", x264(fake_interlaced=1), refused="interlaced")
    yield Clip("mpeg4-part-2", ["-c:v", "mpeg4"], refused="mp4v", golden=True)
    yield Clip("hevc-hev1", ["-c:v", "libx265", "-x265-params", "log-level=none"], refused="hev1")
    yield Clip("hevc-hvc1", ["-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=none"], refused="hvc1", golden=True)
    yield Clip("av1", ["-c:v", "libaom-av1", "-cpu-used", "8"], refused="av01", frames=2, golden=True)
    yield Clip("vp9", ["-c:v", "libvpx-vp9", "-deadline", "realtime"], refused="vp09", frames=2, golden=True)
    yield Clip("motion-jpeg", ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"], refused="expected H.264", frames=2)
    yield Clip("sound-only", ["-c:a", "aac", "-t", "1"], source=["-f", "lavfi", "-i", "sine"], refused="no video track")

    for pix, range_ in itertools.product(["yuv420p", "yuv422p", "yuv444p"], ["tv", "pc"]):
        yield Clip(f"y4m-{pix}-{range_}", ["-vf", f"scale=out_range={range_}", "-pix_fmt", pix, "-color_range", range_], ending="y4m", frames=3, golden=(pix, range_) == ("yuv420p", "pc"))
    yield Clip("y4m-grey", ["-pix_fmt", "gray"], ending="y4m", frames=3)
    nearest = ["-sws_flags", "neighbor"]
    for size in ["63x48", "64x47", "33x17", "3x5"]:
        for pix in ["yuv420p", "yuv444p"]:
            yield Clip(f"y4m-{pix}-{size}", ["-pix_fmt", pix], ending="y4m", frames=3, size=size, reference=nearest if pix == "yuv420p" else ())
    yield Clip("y4m-ten-bits", ["-pix_fmt", "yuv420p10le", "-strict", "-1"], ending="y4m", frames=2, refused="420p10")
    yield Clip("y4m-411", ["-pix_fmt", "yuv411p"], ending="y4m", frames=2, refused="C411")


def frames_of(path, reference):
    probe = subprocess.run(["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-i", str(path), "-map", "0:v:0", *reference, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True)
    if probe.returncode:
        raise RuntimeError(probe.stderr.decode().strip().splitlines()[-1])
    return np.frombuffer(probe.stdout, np.uint8)


def check(clip, folder, reader, golden):
    """How the clip went: ("read" | "refused" | "not made" | "WRONG", what)."""
    try:
        path = clip.make(folder)
    except (RuntimeError, AssertionError, ValueError) as error:
        return "not made", str(error)
    raw = folder / f"{clip.name}.rgb"
    run = subprocess.run([reader, str(path), str(raw)], capture_output=True, text=True)
    if golden and clip.golden:
        keep(clip, path, golden, run)
    if clip.refused:
        named = run.returncode == 1 and clip.refused in run.stderr
        return ("refused" if named else "WRONG"), (run.stderr or run.stdout).strip()
    if run.returncode:
        return "WRONG", run.stderr.strip() or f"exit {run.returncode}"
    width, height, count = map(int, run.stdout.split())
    ours, theirs = np.fromfile(raw, np.uint8), frames_of(path, clip.reference)
    raw.unlink()
    if ours.size != theirs.size:
        return "WRONG", f"{count} frames of {width}x{height}, ffmpeg has {theirs.size / (3 * width * height):.2f}"
    distance = np.abs(ours.astype(int) - theirs)
    furthest, share = int(distance.max(initial=0)), (distance > LEVELS).mean()
    if furthest > LEVELS and furthest <= CLOSE[0] and share < CLOSE[1]:
        return "close", f"{count} frames, {furthest} levels, {(distance > LEVELS).sum()} of {distance.size} values over {LEVELS}"
    return ("read" if furthest <= LEVELS else "WRONG"), f"{count} frames, {furthest} levels"


def keep(clip, path, folder, run):
    from PIL import Image

    (folder / path.name).write_bytes(path.read_bytes())
    if not clip.refused:
        width, height, count = map(int, run.stdout.split())
        frames = frames_of(path, clip.reference).reshape(-1, width, 3)
        Image.fromarray(frames).save(folder / f"{path.stem}.png", optimize=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("reader")
    arguments.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("corpus"))
    arguments.add_argument("--only", default="")
    arguments.add_argument("--golden", type=pathlib.Path)
    options = arguments.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.golden:
        options.golden.mkdir(parents=True, exist_ok=True)
        version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout.splitlines()[0]
        (options.golden / "README.md").write_text(f"Made by `tools/video/corpus.py --golden` with {version}.\n")
    chosen = [clip for clip in clips() if options.only in clip.name and (clip.golden or not options.golden)]
    counts = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for clip, (outcome, what) in zip(chosen, pool.map(lambda clip: check(clip, options.folder, options.reader, options.golden), chosen)):
            counts[outcome] = counts.get(outcome, 0) + 1
            print(f"{outcome:<9} {clip.name:<48} {what}")
    print(f"{len(chosen)} clips:", ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    sys.exit(1 if counts.keys() - {"read", "close", "refused"} else 0)


if __name__ == "__main__":
    main()
