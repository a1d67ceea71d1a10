from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aptp.plugins.datasets.imagefolder import ImageFolder

SCRIPT = Path(__file__).parents[2] / "examples" / "emoji.py"
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not FONT.is_file():
        pytest.skip("the font NotoColorEmoji.ttf is not installed")
    path = tmp_path_factory.mktemp("emoji")
    done = run(path, "--size", 32)
    assert done.returncode == 0, done.stderr
    return path


def test_every_picture_has_a_name_and_a_kind(folder: Path):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    by_name = {row["text"]: row for row in rows}
    assert len(by_name) == len(rows) > 1200
    assert {row["file_name"] for row in rows} == {path.name for path in folder.glob("*.png")}
    assert {row["kind"] for row in rows} == {"faces", "people", "nature", "food", "places", "objects", "symbols"}
    examples = {"grinning face": "faces", "dog face": "nature", "slice of pizza": "food", "tent": "places"}
    examples |= {"dancer": "people", "hammer": "objects", "heavy plus sign": "symbols"}
    assert {name: by_name[name]["kind"] for name in examples} == examples
    for row in rows:
        character = chr(int(row["file_name"].removesuffix(".png"), 16))
        assert unicodedata.name(character).lower() == row["text"]
        assert "fitzpatrick" not in row["text"]
        assert "regional indicator" not in row["text"]


def test_pictures_are_coloured_glyphs_on_white(folder: Path):
    def pixels(code: str) -> np.ndarray:
        with Image.open(folder / f"{code}.png") as picture:
            assert (picture.mode, picture.size) == ("RGB", (32, 32))
            return np.asarray(picture).astype(int)

    face, heart = pixels("1f600"), pixels("1f499")
    assert face[0, 0].tolist() == heart[0, 0].tolist() == [255, 255, 255]
    red, green, blue = face[16, 5]
    assert min(red, green) > 150 > blue
    red, green, blue = heart[16, 16]
    assert blue > 150 > red


def test_it_is_an_imagefolder(folder: Path):
    data = ImageFolder(ImageFolder.Options(path=str(folder)))
    train, validation = data.samples("train"), data.samples("validation")
    assert data.skipped == {}
    assert len(validation) / (len(train) + len(validation)) == pytest.approx(0.1, abs=0.03)
    assert train[0].open().size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--font", "/no/such.ttf"], "font '/no/such.ttf' does not exist; install"),
        (["--font", str(SCRIPT)], "is no colour bitmap font"),
        (["--size", "2"], "--size is 2; give at least 8 pixels"),
    ],
)
def test_wrong_requests_give_one_sentence(tmp_path: Path, arguments: list[str], message: str):
    done = run(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
