"""Whatever a picture file is, it comes out as upright RGB on white, or as an OSError."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aptp.core.pictures import decode, upright_rgb


def stored(picture: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def half_red() -> Image.Image:
    """Red on the left, nothing on the right."""
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.paste((200, 0, 0, 255), (0, 0, 2, 4))
    return picture


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("LA", "PNG"), ("RGBA", "GIF"), ("P", "PNG")]
)
def test_transparency_is_white(mode: str, kind: str):
    picture = decode(stored(half_red().convert(mode), kind))
    assert picture.mode == "RGB"
    red, green, blue = picture.getpixel((3, 0))
    assert min(red, green, blue) > 250
    assert picture.getpixel((0, 0))[1] < 100


def test_a_palette_without_transparency():
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(stored(picture, "PNG")).getpixel((0, 0)) == (10, 20, 30)


def test_a_translucent_pixel_is_mixed_with_white():
    assert decode(stored(Image.new("RGBA", (1, 1), (0, 0, 0, 51)), "PNG")).getpixel((0, 0)) == (204, 204, 204)


def test_exif_rotation_is_carried_out_once():
    picture = Image.new("RGB", (8, 4), "black")
    picture.paste("white", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to show
    turned = decode(stored(picture, "JPEG", exif=exif, quality=95))
    assert turned.size == (4, 8)
    assert turned.getpixel((2, 0))[0] > 240
    assert turned.getpixel((2, 7))[0] < 15
    assert upright_rgb(turned).tobytes() == turned.tobytes()


def test_cmyk_as_a_jpeg_of_a_print_shop():
    picture = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    assert np.allclose(decode(stored(picture, "JPEG", quality=95)).getpixel((8, 8)), (200, 40, 90), atol=4)


def test_greys_of_one_and_of_sixteen_bits():
    assert decode(stored(Image.new("1", (2, 2), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((2, 2), 128 * 256, dtype=np.uint16))
    assert decode(stored(deep, "PNG")).getpixel((0, 0)) == (128, 128, 128)


def test_the_first_picture_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert decode(stored(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (255, 0, 0)


def test_a_decompression_bomb_does_not_go_off(monkeypatch: pytest.MonkeyPatch):
    file = stored(Image.new("RGB", (50, 50)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match="decompression bomb"):
        decode(file)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_white_are_refused(mode: str):
    with pytest.raises(OSError, match="32-bit"):
        decode(stored(Image.new(mode, (2, 2)), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_file_that_is_cut_anywhere_raises_os_error_or_opens(kind: str):
    whole = stored(Image.effect_noise((24, 24), 60).convert("RGB"), kind).getvalue()
    for end in range(0, len(whole) - 1, max(len(whole) // 40, 1)):
        try:
            assert decode(io.BytesIO(whole[:end])).mode == "RGB"
        except OSError:
            continue
    with pytest.raises(OSError, match=r".+"):
        decode(io.BytesIO(whole[: len(whole) // 2]))


def test_an_errno_is_the_system_s_fault_and_no_errno_the_picture_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError) as gone:
        decode(tmp_path / "gone.png")
    assert gone.value.errno == errno.ENOENT
    monkeypatch.setattr(Image, "open", lambda file: file.seek(-1))  # as broken JPEG 2000 has it do
    (tmp_path / "broken.jp2").write_bytes(b"broken")
    with (tmp_path / "broken.jp2").open("rb") as file, pytest.raises(OSError, match="Invalid argument") as broken:
        decode(file)
    assert broken.value.errno is None


def test_a_full_memory_is_no_broken_picture(monkeypatch: pytest.MonkeyPatch):
    def full(source: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(MemoryError):
        decode(io.BytesIO())
