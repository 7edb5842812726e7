"""Families of models, which presets are looked up by. The engine's twins are the `published.rs` of its families."""

from __future__ import annotations

HUNYUANVIDEO = "hunyuanvideo"


def wan(
    *, layers: int, channels: tuple[int, int], sees_clip: bool, experts: int, is_5b: bool, shift: float | None
) -> str:
    """The family of a Wan model.

    * `channels` - of what the transformer is shown and of what it predicts: it is shown more where there is a picture
    * `sees_clip` - whether CLIP's view of the picture goes in
    * `experts` - how many transformers share the steps
    * `is_5b` - whether it has the VAE of Wan2.2 5B
    * `shift` - of the schedule, where it is known: it tells the sizes of image-to-video apart
    """
    shown, predicted = channels
    if is_5b:
        return "wan2.2-ti2v-5b"
    if sees_clip:
        return "wan-i2v-720p" if shift is not None and shift >= 5.0 else "wan-i2v-480p"
    if shown > predicted:  # alone too: no transformer of Wan2.1 is shown a picture without CLIP
        return "wan2.2-i2v-a14b"
    if experts > 1:
        return "wan2.2-t2v-a14b"
    return "wan-t2v-14b" if layers == 40 else "wan-t2v-1.3b"


def cogvideox(*, channels: tuple[int, int], is_second: bool, is_rotary: bool) -> str:
    """The family of a CogVideoX model.

    * `channels` - of what the transformer is shown and of what it predicts
    * `is_second` - whether a token is of several latent frames, as in version 1.5
    * `is_rotary` - whether places are told by rotation
    """
    shown, predicted = channels
    sees_picture = shown != predicted
    if is_second:
        return "cogvideox1.5-5b-i2v" if sees_picture else "cogvideox1.5-5b"
    if sees_picture:
        return "cogvideox-5b-i2v"
    return "cogvideox-5b" if is_rotary else "cogvideox-2b"
