"""Write the glyphs of a colour emoji font as a captioned picture set, to prune a model on.

    python examples/emoji.py emoji/ --size 64
    aptp run --data imagefolder:emoji/ --out runs/emoji

Debian and Ubuntu have the font as the package fonts-noto-color-emoji. One picture a code point, on white; its caption
is the lower-cased Unicode name. Skin tones, regional indicators, hair components and digits are left out: alone they
mean nothing. The column `kind` is a coarse grouping for analysis.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
STRIKE = 109
"""The one size in pixels at which the font holds its pictures."""

LEFT_OUT = [(0x0, 0xA8), (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF), (0x1F9B0, 0x1F9B3)]

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
"""Ranges of code points; what is in none of them is a symbol."""


def ranges(text: str) -> list[tuple[int, int]]:
    """`"26f7 270a-270d"` as pairs of first and last code points."""
    pairs = [part.split("-") for part in text.split()]
    return [(int(pair[0], 16), int(pair[-1], 16)) for pair in pairs]


def kind_of(code: int) -> str:
    """The coarse group of a code point."""
    for kind, text in KINDS.items():
        if any(first <= code <= last for first, last in ranges(text)):
            return kind
    return "symbols"


def code_points(font: Path) -> list[int]:
    """The named code points of the font that are emoji on their own, in order; OSError for a font without bitmaps."""
    tables = TTFont(font)
    if "CBDT" not in tables:
        raise OSError("it has no CBDT table")
    named = (code for code in sorted(tables.getBestCmap()) if unicodedata.category(chr(code))[0] in "SPL")
    return [code for code in named if not any(first <= code <= last for first, last in LEFT_OUT)]


def draw(code: int, font: ImageFont.FreeTypeFont, size: int) -> Image.Image | None:
    """The glyph in the middle of a white square of `size` pixels, or None if the font draws nothing."""
    canvas = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(canvas).text((STRIKE // 4, STRIKE // 4), chr(code), font=font, embedded_color=True)
    if (box := canvas.getbbox()) is None:
        return None
    glyph = canvas.crop(box)
    side = max(140, *glyph.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="emoji.py", description="Write a colour emoji font as a captioned picture set."
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=64, help="height and width of the pictures in pixels")
    parser.add_argument(
        "--font", type=Path, default=Path(FONT), help="a font with colour bitmaps (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    if args.size < 8:
        parser.exit(2, f"emoji.py: --size is {args.size}; give at least 8 pixels.\n")
    try:
        codes, font = code_points(args.font), ImageFont.truetype(args.font, STRIKE)
    except (OSError, TTLibError) as error:
        reason = "does not exist" if not args.font.is_file() else f"is no colour bitmap font ({error})"
        parser.exit(
            2,
            f"emoji.py: font {str(args.font)!r} {reason}; install fonts-noto-color-emoji or name a font with --font.\n",
        )
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for code in codes:
        if (picture := draw(code, font, args.size)) is not None:
            name = f"{code:05x}.png"
            picture.save(args.out / name)
            rows.append({"file_name": name, "text": unicodedata.name(chr(code)).lower(), "kind": kind_of(code)})
    (args.out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} pictures in {args.out}")


if __name__ == "__main__":
    main()
