"""Names of families, by what tells them apart: the engine's `family/*/published.rs`."""

import pytest

from navicache import families

TEXT, PICTURE = (16, 16), (36, 16)


@pytest.mark.parametrize(
    ("layers", "channels", "sees_clip", "experts", "is_5b", "shift", "family"),
    [
        (30, TEXT, False, 1, False, 3.0, "wan-t2v-1.3b"),
        (40, TEXT, False, 1, False, 3.0, "wan-t2v-14b"),
        (40, PICTURE, True, 1, False, 3.0, "wan-i2v-480p"),
        (40, PICTURE, True, 1, False, None, "wan-i2v-480p"),
        (40, PICTURE, True, 1, False, 5.0, "wan-i2v-720p"),
        (30, (48, 48), False, 1, True, 5.0, "wan2.2-ti2v-5b"),
        (40, TEXT, False, 2, False, 12.0, "wan2.2-t2v-a14b"),
        (40, PICTURE, False, 2, False, 5.0, "wan2.2-i2v-a14b"),
        (40, PICTURE, False, 1, False, None, "wan2.2-i2v-a14b"),
    ],
)
def test_wan(layers, channels, sees_clip, experts, is_5b, shift, family):
    found = families.wan(
        layers=layers, channels=channels, sees_clip=sees_clip, experts=experts, is_5b=is_5b, shift=shift
    )
    assert found == family


@pytest.mark.parametrize(
    ("channels", "is_second", "is_rotary", "family"),
    [
        ((16, 16), False, False, "cogvideox-2b"),
        ((16, 16), False, True, "cogvideox-5b"),
        ((32, 16), False, True, "cogvideox-5b-i2v"),
        ((16, 16), True, True, "cogvideox1.5-5b"),
        ((32, 16), True, True, "cogvideox1.5-5b-i2v"),
    ],
)
def test_cogvideox(channels, is_second, is_rotary, family):
    assert families.cogvideox(channels=channels, is_second=is_second, is_rotary=is_rotary) == family
