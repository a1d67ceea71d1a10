"""The one place where picture files are decoded: whatever they are, what comes out is upright RGB on white."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps


def decode(source: str | Path | BinaryIO) -> Image.Image:
    """A picture file as upright RGB; of an animation the first frame.

    Raises:
        OSError: for what cannot be decoded, for whatever reason: broken, cut short, unknown, too large (over 179
            million pixels, where Pillow suspects a decompression bomb). It has an `errno` where the system could not
            read the file, and none where that is the picture's fault.
    """
    try:
        with Image.open(source) as file:
            return upright_rgb(file)
    except MemoryError:
        raise
    except Exception as error:  # a broken file may break its decoder anywhere
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is to have looked before the beginning
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF says, transparency (of palettes, too) on white, CMYK and 16-bit greys as RGB.

    Raises:
        OSError: for 32-bit values, which have no white of their own.
    """
    if picture.mode in ("I", "F"):
        raise OSError(f"it has 32-bit values (mode {picture.mode}); save it with 8 or 16 bits a channel")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
