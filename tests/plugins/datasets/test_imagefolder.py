from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from aptp.config import PrepareOptions
from aptp.core.errors import RequestError
from aptp.harness.selection import choose
from aptp.plugins.datasets.imagefolder import ImageFolder, in_validation


def write(folder: Path, rows: list[dict], pictures: bool = True, name: str = "metadata.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".csv"):
        columns = list(rows[0])
        lines = [",".join(columns), *(",".join(f'"{row[column]}"' for column in columns) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for i, row in enumerate(rows if pictures else ()):
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(path)
    return folder


def rows(count: int, column: str = "text") -> list[dict]:
    return [{"file_name": f"{i:03d}.png", column: f"caption {i}"} for i in range(count)]


def data(folder: Path, **options: object) -> ImageFolder:
    return ImageFolder(ImageFolder.Options(path=str(folder), **options))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_both_formats_and_three_names_of_the_caption(tmp_path: Path, name: str, column: str):
    found = data(write(tmp_path, rows(40, column), name=name), validation=0.3)
    train, validation = found.samples("train"), found.samples("validation")
    assert {(s.id, s.caption) for s in [*train, *validation]} == {(f"{i:03d}.png", f"caption {i}") for i in range(40)}
    assert [s.id for s in train] == sorted(s.id for s in train)
    assert 3 <= len(validation) <= 21
    assert train[0].open().getpixel((0, 0)) == (int(train[0].id[:3]), 0, 0)
    assert found.skipped == {}
    assert pickle.loads(pickle.dumps(train[0])).open().mode == "RGB"


@pytest.mark.parametrize("validation", ["validation", "test"])
def test_split_folders(tmp_path: Path, validation: str):
    write(tmp_path / "train", [{"file_name": "deep/er/a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}])
    write(tmp_path / validation, [{"file_name": "a.png", "text": "one", "kind": "shape"}])
    found = data(tmp_path)
    assert [s.id for s in found.samples("train")] == ["train/deep/er/a.png", "train/b.png"]
    (only,) = found.samples("validation")
    assert (only.id, only.kind, only.open().size) == (f"{validation}/a.png", "shape", (4, 4))
    with pytest.raises(ValueError, match="no split 'holdout'"):
        found.samples("holdout")


def test_one_metadata_file_may_point_into_subfolders(tmp_path: Path):
    found = data(write(tmp_path, [{"file_name": f"train/{i}.png", "text": f"{i}"} for i in range(30)]), validation=0.5)
    assert len(found.samples("train")) + len(found.samples("validation")) == 30


def test_a_caption_is_in_one_split_and_stays_there(tmp_path: Path):
    some = [{"file_name": f"{i}.png", "text": f"caption {i % 20}"} for i in range(60)]
    before = data(write(tmp_path, some), validation=0.4)
    train, validation = ({s.caption for s in before.samples(split)} for split in ("train", "validation"))
    assert not train & validation
    more = [{"file_name": f"new{i}.png", "text": f"another {i}"} for i in range(60)]
    after = data(write(tmp_path, more + some), validation=0.4)
    assert train <= {s.caption for s in after.samples("train")}
    assert validation <= {s.caption for s in after.samples("validation")}


@given(st.text(), st.floats(0.01, 0.99))
def test_spacing_and_case_do_not_move_a_caption(caption: str, share: float):
    assert in_validation(f" {caption}\n", share) == in_validation(caption, share)
    assert in_validation("A  Red star", share) == in_validation("a red Star", share)


def test_the_share_is_kept():
    assert np.mean([in_validation(f"caption {i}", 0.1) for i in range(5000)]) == pytest.approx(0.1, abs=0.015)


def test_unusable_rows_are_skipped_and_listed(tmp_path: Path):
    write(tmp_path, rows(20))
    bad = [
        {"file_name": "gone.png", "text": "lost"},
        {"file_name": "000.png", "text": "  "},
        {"file_name": "001.png", "text": None},
        {"file_name": "002.png", "text": ["one", "two"]},
        {"file_name": None, "text": "nameless"},
        {"file_name": "x" * 5000, "text": "too long a name"},
        {"file_name": "003.png"},
    ]
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + "\n" + "".join(json.dumps(row) + "\n" for row in bad))
    found = data(tmp_path, validation=0.5)
    assert len(found.samples("train")) + len(found.samples("validation")) == 20
    assert found.skipped == {
        "gone.png": "the file is missing",
        "000.png#2": "its caption is empty",
        "001.png#2": "its caption is empty",
        "002.png#2": "its caption is no text",
        "metadata.jsonl, line 26": "it names no file",
        "x" * 5000: "the file is missing",
        "003.png#2": "its caption is empty",
    }


def test_a_caption_of_broken_unicode_costs_its_row_alone(tmp_path: Path):
    halves = {"file_name": "half.png", "text": "half a smile \ud83d"}
    found = data(write(tmp_path, [*rows(20), halves]), validation=0.3)
    chosen = choose(found, PrepareOptions(), seed=0)
    assert len(chosen.train) + len(chosen.validation) == 20
    assert chosen.skipped == {"half.png": "its caption is broken Unicode"}


def test_several_captions_of_one_picture(tmp_path: Path):
    write(tmp_path / "train", [{"file_name": "a.png", "text": "one"}, {"file_name": "a.png", "text": "two"}])
    write(tmp_path / "validation", rows(1))
    assert [s.id for s in data(tmp_path).samples("train")] == ["train/a.png", "train/a.png#2"]


def test_nothing_left(tmp_path: Path):
    with pytest.raises(
        RequestError, match=r"rows left out \(2\) the first is '000\.png', because the file is missing\."
    ):
        data(write(tmp_path, rows(2), pictures=False)).samples("train")


def test_no_validation_caption(tmp_path: Path):
    found = data(write(tmp_path, [row | {"text": "the same"} for row in rows(5)]))
    with pytest.raises(RequestError, match=r"no usable validation sample at the share validation=0\.1"):
        found.samples("validation")


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_impossible_shares(tmp_path: Path, share: float):
    with pytest.raises(ValidationError):
        ImageFolder.Options(path=str(tmp_path), validation=share)


def test_folders_that_are_none(tmp_path: Path):
    with pytest.raises(RequestError, match="nowhere' does not exist; give a folder"):
        data(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"has no metadata\.jsonl or metadata\.csv, nor has its train/; give"):
        data(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(RequestError, match="its metadata has no rows"):
        data(tmp_path).samples("train")
    with pytest.raises(RequestError, match="is a file"):
        data(tmp_path / "metadata.jsonl")
    (tmp_path / "metadata.csv").write_text("")
    with pytest.raises(RequestError, match=r"both metadata\.jsonl and metadata\.csv; keep one"):
        data(tmp_path)


@pytest.mark.parametrize("line", ["a.png a star", '["a.png", "a star"]', '{"file_name": "a.png"', "3"])
def test_a_line_that_is_no_json_object(tmp_path: Path, line: str):
    write(tmp_path, rows(2))
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + line + "\n")
    with pytest.raises(RequestError, match=r"line 3 of .*metadata\.jsonl' is no JSON object"):
        data(tmp_path)


def test_metadata_that_is_no_text(tmp_path: Path):
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,\xff\xfe\n")
    with pytest.raises(RequestError, match="is not UTF-8"):
        data(tmp_path)


@pytest.mark.parametrize(
    ("row", "missing"), [({"file_name": "a", "label": "b"}, "text or"), ({"text": "b"}, "file_name")]
)
def test_missing_columns(tmp_path: Path, row: dict, missing: str):
    with pytest.raises(RequestError, match=f"has no column {missing}.*; its columns are"):
        data(write(tmp_path, [row], pictures=False))


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "sub/../../a.png", "..\\a.png", "C:\\a.png", ".."])
def test_names_never_lead_outside(tmp_path: Path, name: str):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"line 1 of .* names .* outside its folder"):
        data(write(tmp_path / "in", [{"file_name": name, "text": "b"}], pictures=False))


def test_transparency_is_shown_on_white(tmp_path: Path):
    write(tmp_path / "validation", rows(1))
    names = ["rgba.png", "la.png", "p.gif", "deep.png"]
    train = write(tmp_path / "train", [{"file_name": name, "text": name} for name in names], pictures=False)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half.paste((200, 0, 0, 255), (0, 0, 2, 4))
    half.save(train / "rgba.png")
    half.convert("LA").save(train / "la.png")
    half.save(train / "p.gif")
    Image.fromarray(np.full((4, 4), 128 * 256, dtype=np.uint16)).save(train / "deep.png")
    *clear, deep = [sample.open() for sample in data(tmp_path).samples("train")]
    assert all(picture.mode == "RGB" and picture.getpixel((3, 0)) == (255, 255, 255) for picture in clear)
    assert clear[0].getpixel((0, 0)) == (200, 0, 0)
    assert deep.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("content", [b"no picture", b"", None])
def test_a_picture_that_does_not_open_raises_os_error(tmp_path: Path, content: bytes | None):
    write(tmp_path / "validation", rows(1))
    folder = write(tmp_path / "train", rows(1))
    Image.effect_noise((64, 64), 50).save(folder / "000.png")
    whole = (folder / "000.png").read_bytes()
    (folder / "000.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(OSError, match=r".+"):
        data(tmp_path).samples("train")[0].open()


def test_a_picture_is_told_by_its_file_alone(tmp_path: Path):
    def contents() -> dict[str, str | None]:
        return {s.id: s.content for split in ("train", "validation") for s in data(tmp_path).samples(split)}

    write(tmp_path / "validation", rows(2))
    write(tmp_path / "train", rows(4))
    first = contents()
    write(tmp_path / "train", [{"file_name": "000.png", "text": "other"}, *rows(6)[1:]])
    Image.effect_noise((64, 64), 50).save(tmp_path / "train" / "001.png")
    second = contents()
    assert len(second) == 8
    assert [name for name in first if first[name] != second[name]] == ["train/001.png"]


def test_the_fingerprint_follows_the_content_not_the_place(tmp_path: Path):
    one = write(tmp_path / "one", rows(4))
    first = data(one).fingerprint()
    assert first == data(write(tmp_path / "two", rows(4))).fingerprint()
    assert first != data(one, validation=0.2).fingerprint()
    Image.effect_noise((64, 64), 50).save(one / "000.png")
    second = data(one).fingerprint()
    assert second != first
    write(one, [*rows(3), {"file_name": "003.png", "text": "other"}], pictures=False)
    third = data(one).fingerprint()
    assert third not in (first, second)
    content = bytearray((one / "001.png").read_bytes())
    content[-1] ^= 1
    (one / "001.png").write_bytes(content)
    assert data(one).fingerprint() not in (first, second, third), "other bytes at the same size"
