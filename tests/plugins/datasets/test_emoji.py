from __future__ import annotations

import pickle
import unicodedata
from pathlib import Path

import matplotlib
import matplotlib.font_manager
import numpy as np
import pytest

from aptp.core.data import Sample
from aptp.core.errors import RequestError
from aptp.plugins.datasets.emoji import Emoji, kind_of


@pytest.fixture(scope="module")
def emoji(emoji_font: Path) -> Emoji:
    return Emoji(Emoji.Options(font=str(emoji_font)))


@pytest.fixture(scope="module")
def by_name(emoji: Emoji) -> dict[str, Sample]:
    return {s.caption: s for split in ("train", "validation") for s in emoji.samples(split)}


def test_every_picture_has_a_name_and_a_kind(emoji: Emoji, by_name: dict[str, Sample]):
    assert len(by_name) == sum(len(emoji.samples(split)) for split in ("train", "validation")) > 1200
    examples = {"grinning face": "faces", "dog face": "nature", "slice of pizza": "food", "tent": "places"}
    examples |= {"dancer": "people", "hammer": "objects", "heavy plus sign": "symbols"}
    assert {name: by_name[name].kind for name in examples} == examples
    for name, sample in by_name.items():
        assert sample.id == name
        assert sample.kind == kind_of(ord(unicodedata.lookup(name)))
        assert "fitzpatrick" not in name
        assert "regional indicator" not in name


def test_pictures_are_coloured_glyphs_in_the_middle_of_white(by_name: dict[str, Sample]):
    for name, (bright, dark) in {"grinning face": ((0, 1), 2), "blue heart": ((2,), 0)}.items():
        pixels = np.asarray(by_name[name].open()).astype(int)
        assert pixels.shape == (140, 140, 3)
        assert (pixels[:2] == 255).all()
        assert (pixels[:, :2] == 255).all()
        inked = np.argwhere((pixels < 250).any(-1))
        assert np.abs(inked.min(0) + inked.max(0) - 139).max() <= 2, "as much white on either side"
        middle = pixels[70, 20] if name == "grinning face" else pixels[70, 70]
        assert min(middle[list(bright)]) > 150 > middle[dark]


def test_one_in_ten_is_held_out_of_every_kind(emoji: Emoji, by_name: dict[str, Sample]):
    held_out = emoji.samples("validation")
    assert len(held_out) / len(by_name) == pytest.approx(0.1, abs=0.03)
    assert {s.kind for s in held_out} == {"faces", "people", "nature", "food", "places", "objects", "symbols"}


def test_every_glyph_is_drawn(by_name: dict[str, Sample]):
    """The font's table says which it has; here is what is drawn."""
    for name in list(by_name)[::40]:
        assert np.asarray(pickle.loads(pickle.dumps(by_name[name])).open()).min() < 200, name


def test_the_system_s_font_is_found(emoji: Emoji):
    assert Emoji(Emoji.Options()).fingerprint() == emoji.fingerprint()


def test_a_missing_font_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RequestError, match=r"font '/no/such\.ttf' does not exist; install fonts-noto-color-emoji"):
        Emoji(Emoji.Options(font="/no/such.ttf"))
    with pytest.raises(RequestError, match="is no colour bitmap font"):
        Emoji(Emoji.Options(font=__file__))
    plain = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    with pytest.raises(RequestError, match=r"is no colour bitmap font \(it has no CBDT table\)"):
        Emoji(Emoji.Options(font=str(plain)))
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", lambda: [str(plain)])
    with pytest.raises(RequestError, match=r"finds no font NotoColorEmoji\.ttf on this system; install .* data\.font"):
        Emoji(Emoji.Options())
