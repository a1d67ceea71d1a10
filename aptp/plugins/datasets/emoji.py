"""The glyphs of a colour emoji font with their Unicode names: real pictures, real language, offline."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import cache, cached_property, partial
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from aptp.core.data import CaptionedDataset, Sample, Split
from aptp.core.errors import RequestError, gist
from aptp.core.options import Options
from aptp.plugins.datasets._shared import divided, fingerprint_of, of_split

VERSION = 1
"""Of the drawing."""
FONT = "NotoColorEmoji.ttf"
MARGIN = 1.28
"""Side of a picture, in sizes of the font: its widest glyphs have a little white around them."""

LEFT_OUT = [(0x0, 0xA8), (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF), (0x1F9B0, 0x1F9B3)]
"""Ranges of code points that mean nothing alone: digits, regional indicators, skin tones, hair."""

KINDS = {
    "faces": "2639-263a 1f479-1f47b 1f47d-1f480 1f4a9 1f600-1f644 1f648-1f64a 1f910-1f917 1f920-1f925 1f927-1f92f "
    "1f970-1f976 1f978-1f97a 1f9d0 1fae0-1fae6",
    "people": "261d 26f7 26f9 270a-270d 1f385 1f3c2-1f3c4 1f3c7 1f3ca-1f3cc 1f440-1f450 1f463-1f478 1f47c 1f481-1f483 "
    "1f486-1f487 1f48f 1f491 1f4aa 1f574-1f575 1f57a 1f590-1f596 1f5e3 1f645-1f647 1f64b-1f64f 1f6a3 1f6b4-1f6b6 "
    "1f6c0 1f6cc 1f90c 1f90f 1f918-1f91f 1f926 1f930-1f93e 1f977 1f9b4-1f9b9 1f9bb 1f9cc-1f9cf 1f9d1-1f9e0 "
    "1fac0-1fac5 1faf0-1faf6",
    "nature": "2600-2604 2614 2618 26c4-26c8 2744 1f300-1f302 1f308 1f30a-1f32c 1f330-1f335 1f337-1f344 1f400-1f43f "
    "1f490 1f525 1f54a 1f577-1f578 1f940 1f980-1f9ae 1fab0-1faba 1fae7",
    "food": "2615 1f32d-1f32f 1f336 1f345-1f37f 1f382 1f942-1f944 1f950-1f96f 1f9c0-1f9cb 1fad0-1fad9",
    "places": "26e9-26f5 26fa-26fd 2708 1f303-1f307 1f309 1f3a0-1f3a2 1f3cd-1f3ce 1f3d4-1f3f0 1f492 1f54b-1f54d "
    "1f5fa-1f5ff 1f680-1f6a2 1f6a4-1f6a8 1f6b2 1f6d5-1f6d6 1f6dd-1f6df 1f6e2-1f6fc",
    "objects": "231a-2328 23f0-23f3 260e 2692-2699 26b0-26be 26cf-26d3 26f8 2702 2709 270f-2712 1f004 1f0cf "
    "1f380-1f384 1f386-1f39f 1f3a3-1f3c1 1f3c5-1f3c6 1f3c8-1f3c9 1f3cf-1f3d3 1f3f3-1f3fa 1f451-1f462 1f484-1f485 "
    "1f488-1f48e 1f4a1 1f4a3 1f4b0-1f4f2 1f4f7-1f4ff 1f507-1f50a 1f50d-1f517 1f526-1f52e 1f56f-1f573 1f576 1f579 "
    "1f587-1f58d 1f5a5-1f5e1 1f5f3 1f6a9-1f6aa 1f6bd 1f6bf 1f6c1 1f6cb 1f6cd-1f6cf 1f6d2 1f6d7 1f6e0-1f6e1 1f93f "
    "1f941 1f945-1f94f 1f97b-1f97f 1f9af 1f9ba 1f9bc-1f9bf 1f9e2-1faac",
}
"""Ranges of code points, a coarse grouping for analysis; what is in none of them is a symbol."""


class Emoji(CaptionedDataset):
    """The data set `emoji`: one picture a code point, on white, with its lower-cased Unicode name as caption and name.

    It needs a colour font with bitmaps (a CBDT table), by default Noto's. What takes several code points (flags,
    families) is left out. A picture's split is settled by a hash of its name.

    Raises:
        RequestError: if there is no such font.
    """

    class Options(Options):
        """The font, and how many glyphs are kept for validation."""

        font: str | None = Field(None, description=f"a colour bitmap font; by default the system's {FONT}")
        validation: float = Field(0.1, gt=0, lt=1, description="share for validation")

    def __init__(self, options: Options) -> None:
        self.options = options
        self._font = font = _font_of(options.font)
        try:
            codes, size = _code_points(font)
        except (OSError, TTLibError) as error:
            reason = "does not exist" if not font.is_file() else f"is no colour bitmap font ({gist(error)})"
            raise RequestError(f"font {str(font)!r} {reason}; {_RIGHT}") from error
        samples = []
        for code in codes:
            name = unicodedata.name(chr(code)).lower()
            samples.append(Sample(name, name, partial(draw, str(font), size, code), kind_of(code)))
        self._samples = divided(samples, options.validation)

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split, by code point. Raises `RequestError` if there are none."""
        return of_split("emoji", self._samples, split, {})

    def fingerprint(self) -> str:
        """A hash of the font and of the names, kinds and splits."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        with self._font.open("rb") as file:
            font = hashlib.file_digest(file, "sha256").hexdigest()
        rows = ([split, s.caption, s.kind] for split, samples in self._samples.items() for s in samples)
        return fingerprint_of(f"emoji {VERSION} {font}", rows)


_RIGHT = "install fonts-noto-color-emoji (so it is called in Debian and Ubuntu), or name a font with data.font=PATH."


def kind_of(code: int) -> str:
    """The coarse group of a code point."""
    return next((kind for kind in KINDS if any(first <= code <= last for first, last in _ranges(kind))), "symbols")


def draw(font: str, size: int, code: int) -> Image.Image:
    """The glyph of a code point in the middle of a white square, at the one `size` in which the font holds it."""
    canvas = Image.new("RGBA", (2 * size, 2 * size))
    ImageDraw.Draw(canvas).text((size // 4, size // 4), chr(code), font=_opened(font, size), embedded_color=True)
    glyph = canvas.crop(canvas.getbbox())
    side = max(round(MARGIN * size), *glyph.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square.convert("RGB")


@cache
def _opened(font: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, size)


@cache
def _ranges(kind: str) -> list[tuple[int, int]]:
    """`"26f7 270a-270d"` as pairs of first and last code points."""
    pairs = [part.split("-") for part in KINDS[kind].split()]
    return [(int(pair[0], 16), int(pair[-1], 16)) for pair in pairs]


def _font_of(named: str | None) -> Path:
    if named is not None:
        return Path(named).expanduser()
    from matplotlib.font_manager import findSystemFonts

    found = sorted(path for path in findSystemFonts() if Path(path).name == FONT)
    if not found:
        raise RequestError(f"data set 'emoji' finds no font {FONT} on this system; {_RIGHT}")
    return Path(found[0])


def _code_points(font: Path) -> tuple[list[int], int]:
    """The named code points of a font that it has pictures of, and the size of these in pixels.

    Raises:
        OSError, TTLibError: for what is no font, or one without colour bitmaps.
    """
    with TTFont(font, lazy=True) as tables:
        if "CBDT" not in tables:
            raise OSError("it has no CBDT table")
        strike = max(tables["CBLC"].strikes, key=lambda strike: strike.bitmapSizeTable.ppemX)
        pictured = {name for table in strike.indexSubTables for name in table.names}
        drawn = sorted(code for code, name in tables.getBestCmap().items() if name in pictured)
        named = [code for code in drawn if unicodedata.category(chr(code))[0] in "SPL"]
        kept = [code for code in named if not any(first <= code <= last for first, last in LEFT_OUT)]
        return kept, strike.bitmapSizeTable.ppemX
