from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aptp.core.errors import RequestError
from aptp.plugins.datasets.cc3m import CC3M


def data(folder: Path, **options: object) -> CC3M:
    return CC3M(CC3M.Options(path=str(folder), **options))


def every(found: CC3M) -> dict[str, str]:
    return {s.id: s.caption for split in ("train", "validation") for s in found.samples(split)}


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value % 256, 0, 0)).save(file, "PNG")
    return file.getvalue()


def pair(number: int) -> dict[str, bytes]:
    """The files of a key as img2dataset writes them."""
    about = {"caption": f"caption {number}", "url": f"http://a/{number}", "key": f"{number:09d}", "status": "success"}
    return {"png": picture(number), "txt": f"caption {number}".encode(), "json": json.dumps(about).encode()}


def write_files(folder: Path, pairs: dict[str, dict[str, bytes]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for key, files in pairs.items():
        for end, content in files.items():
            (folder / f"{key}.{end}").write_bytes(content)
    return folder


def write_shard(path: Path, pairs: dict[str, dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, files in pairs.items():
            for end, content in files.items():
                member = tarfile.TarInfo(f"{key}.{end}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def pairs(first: int, count: int) -> dict[str, dict[str, bytes]]:
    return {f"{number:09d}": pair(number) for number in range(first, first + count)}


def shards(folder: Path) -> Path:
    for shard in range(2):
        write_shard(folder / f"{shard:05d}.tar", pairs(shard * 10_000, 20))
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 20}')
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    return folder


def test_shards_and_files_are_one_set(tmp_path: Path):
    tars, files = shards(tmp_path / "tars"), tmp_path / "files"
    for shard in range(2):
        write_files(files / f"{shard:05d}", pairs(shard * 10_000, 20))
        (files / f"{shard:05d}_stats.json").write_text('{"count": 20}')
    one, other = data(tars, validation=0.3), data(files, validation=0.3)
    for split in ("train", "validation"):
        told = [[(s.id, s.caption, s.open().tobytes()) for s in found.samples(split)] for found in (one, other)]
        assert told[0] == told[1]
    assert every(one) == {f"{n // 10_000:05d}/{n:09d}": f"caption {n}" for n in (*range(20), *range(10_000, 10_020))}
    assert one.skipped == other.skipped == {}
    assert one.fingerprint() == other.fingerprint()
    assert pickle.loads(pickle.dumps(one.samples("train")[3])).open().size == (6, 5)
    assert sorted(path.suffix for path in tars.iterdir()) == [".json"] * 2 + [".parquet"] * 2 + [".tar"] * 2


def test_an_archive_is_read_through_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    shards(tmp_path)
    before = every(data(tmp_path, validation=0.3))
    assert len(list(cache.glob("shards/*.json"))) == 2
    opened, real = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: opened.append(k) or real(*a, **k))
    assert every(data(tmp_path, validation=0.3)) == before
    assert not opened
    write_shard(tmp_path / "00001.tar", pairs(10_000, 21))
    assert len(every(data(tmp_path, validation=0.3))) == 41
    assert len(opened) == 2, "it was written and read through"
    next(cache.glob("shards/*.json")).write_text("{")
    assert len(every(data(tmp_path, validation=0.3))) == 41


def test_a_cache_that_cannot_be_written_keeps_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("APTP_CACHE", str(tmp_path / "file"))
    found = data(shards(tmp_path / "set"))
    assert len(every(found)) == 40
    assert found.skipped == {}


@settings(max_examples=20)
@given(st.integers(0, 30 * 1024))
def test_an_archive_cut_anywhere_is_listed_and_used_up_to_there(tmp_path_factory: pytest.TempPathFactory, cut: int):
    folder = tmp_path_factory.mktemp("cut")
    write_shard(folder / "00000.tar", pairs(0, 20))
    whole = (write_shard(folder / "00001.tar", pairs(10_000, 20))).read_bytes()
    with tarfile.open(folder / "00001.tar") as archive:
        content = max(member.offset_data + -(-member.size // 512) * 512 for member in archive)
    (folder / "00001.tar").write_bytes(whole[:cut])
    found = data(folder, validation=0.3)
    kept = sorted(id_ for id_ in every(found) if id_.startswith("00001/"))
    assert kept == [f"00001/{10_000 + i:09d}" for i in range(len(kept))]
    for split in ("train", "validation"):
        assert all(sample.open().mode == "RGB" for sample in found.samples(split))
    if cut < content + 512:
        assert "cut short" in found.skipped["00001.tar"] or "cannot be read" in found.skipped["00001.tar"]
        assert len(kept) < 20 or cut > content - 2048
    else:
        assert len(kept) == 20
        assert found.skipped == {}


@pytest.mark.parametrize("content", [b"", b"no archive" * 200, b"\x1f\x8b" + bytes(2000)])
def test_what_is_no_archive_is_listed_unless_nothing_is_left(tmp_path: Path, content: bytes):
    (tmp_path / "00000.tar").write_bytes(content)
    with pytest.raises(RequestError, match=r"no usable train picture: 1 left out, the first, '00000\.tar'"):
        data(tmp_path).samples("train")
    write_shard(tmp_path / "00001.tar", pairs(0, 20))
    assert list(data(tmp_path).skipped) == ["00000.tar"]


def test_an_archive_that_cannot_be_read_now_is_not_remembered_as_damaged(tmp_path: Path, monkeypatch):
    shards(tmp_path)
    real = tarfile.open

    def failing(number: int):
        def open_(*, fileobj, **rest):
            if fileobj.name.endswith("1.tar"):
                raise OSError(number, os.strerror(number))
            return real(fileobj=fileobj, **rest)

        return open_

    monkeypatch.setattr(tarfile, "open", failing(errno.EACCES))
    found = data(tmp_path)
    assert (len(every(found)), found.skipped) == (20, {"00001.tar": "it cannot be read: Permission denied"})
    monkeypatch.setattr(tarfile, "open", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        data(tmp_path)
    monkeypatch.undo()
    assert len(every(data(tmp_path))) == 40


def test_archives_of_a_stranger_write_nothing_and_lead_nowhere(tmp_path: Path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(9))
    folder = tmp_path / "in"
    write_shard(folder / "00000.tar", {"../../out": pair(1), **pairs(0, 20)})
    with tarfile.open(folder / "00001.tar", "w") as archive:
        for end, target in (("png", str(secret)), ("txt", "/etc/hostname")):
            link = tarfile.TarInfo(f"link.{end}")
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    found = data(folder)
    assert not [id_ for id_ in every(found) if "link" in id_]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.tar", "00001.tar", "in", "secret.png"]


def test_incomplete_pairs_are_listed(tmp_path: Path):
    odd = {
        "text-alone": {"txt": b"a caption"},
        "json-alone": {"json": b'{"caption": "x"}'},
        "picture-alone": {"jpg": picture(1)},
        "empty": {"png": picture(1), "txt": b" \n"},
        "bytes": {"png": picture(1), "txt": b"\xff\xfe"},
        "list": {"png": picture(1), "json": b'["caption"]'},
        "from-json": {"png": picture(1), "json": b'{"caption": "by JSON"}'},
        "json-where-empty": {"json": b'{"caption": "by JSON"}', "png": picture(1), "txt": b""},
        "both": {"json": b'{"caption": "by JSON"}', "PNG": picture(1), "txt": b"by  text\n"},
    }
    write_shard(tmp_path / "tars" / "0.tar", {**odd, **pairs(0, 20)})
    write_files(tmp_path / "files" / "0", {**odd, **pairs(0, 20)})
    for folder in (tmp_path / "tars", tmp_path / "files"):
        found = data(folder, validation=0.5)
        captions = every(found)
        assert len(captions) == 23
        assert {name: captions[f"0/{name}"] for name in ("from-json", "json-where-empty", "both")} == {
            "from-json": "by JSON",
            "json-where-empty": "by JSON",
            "both": "by text",
        }
        assert found.skipped == {
            "0/text-alone": "it has no picture",
            **{f"0/{name}": "it has no caption" for name in ("picture-alone", "empty", "bytes", "list")},
        }


def test_parts_for_training_and_validation(tmp_path: Path):
    write_shard(tmp_path / "train" / "00000.tar", pairs(0, 5))
    write_files(tmp_path / "val" / "00000", pairs(0, 3))
    found = data(tmp_path)
    assert [s.id for s in found.samples("train")] == [f"train/00000/{i:09d}" for i in range(5)]
    assert [s.id for s in found.samples("validation")] == [f"val/00000/{i:09d}" for i in range(3)]
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(RequestError, match="has a part for validation and none for training"):
        data(tmp_path)


def address(number: int) -> str:
    return f"http://host/{number % 3}/photo%20{number}.png?size=1"


def write_table(path: Path, count: int, **extra: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"caption  {i} \t{address(i)}" + (f"\t{extra[f'_{i}']}" if f"_{i}" in extra else "") for i in range(count)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


NAMES = {
    "padded": ("index", lambda i: f"{i:09d}.png"),
    "plain": ("index", lambda i: f"{i}.png"),
    "downloader": ("index", lambda i: f"{i}_{zlib.crc32(address(i).encode())}"),
    "in-folders": ("index", lambda i: f"{i // 10:05d}/{i:09d}.png"),
    "crc32": ("crc32", lambda i: str(zlib.crc32(address(i).encode()))),
    "url": ("url", lambda i: f"photo {i}.png"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_and_its_pictures_by_name(tmp_path: Path, name: str):
    """As Conceptual Captions is published, with the folders that its downloaders make."""
    naming, name_of = NAMES[name]
    for table, folder, count in (
        ("Train_GCC-training.tsv", "training", 30),
        ("Validation_GCC-1.1.0-Validation.tsv", "validation", 8),
    ):
        write_table(tmp_path / table, count)
        for i in range(count):
            if i != 4:
                path = tmp_path / folder / name_of(i)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(i))
    found = data(tmp_path, naming=naming)
    train, validation = found.samples("train"), found.samples("validation")
    assert {s.id: s.caption for s in train} == {f"training/{name_of(i)}": f"caption {i}" for i in range(30) if i != 4}
    assert len(validation) == 7
    assert all(s.open().getpixel((0, 0)) == (int(s.caption.split()[1]), 0, 0) for s in train)
    assert found.skipped == {
        "Validation_GCC-1.1.0-Validation.tsv, row 4": "its picture is missing",
        "Train_GCC-training.tsv, row 4": "its picture is missing",
    }


def test_a_third_column_names_the_picture(tmp_path: Path):
    table = write_table(tmp_path / "set.tsv", 3, _0="pictures/a.png", _2="pictures/gone.png")
    table.write_text("caption\turl\tfile\n" + table.read_text(), encoding="utf-8")
    write_files(tmp_path / "pictures", {"a": {"png": picture(0)}, "1": {"png": picture(1)}, "2": {"png": picture(2)}})
    found = data(tmp_path, validation=0.5)
    assert every_or_one(found) == {"pictures/a.png": "caption 0", "pictures/1.png": "caption 1"}
    assert found.skipped == {"set.tsv, row 2": "its picture is missing"}


def test_rows_that_name_one_picture_are_its_captions(tmp_path: Path):
    write_table(tmp_path / "set.tsv", 4, **{f"_{i}": "a.png" for i in range(3)}, _3="b.png")
    write_files(tmp_path, {"a": {"png": picture(0)}, "b": {"png": picture(1)}})
    (tmp_path / "3.png").symlink_to("nowhere")
    found = data(tmp_path, validation=0.5)
    assert every_or_one(found) == {
        "a.png": "caption 0",
        "a.png#2": "caption 1",
        "a.png#3": "caption 2",
        "b.png": "caption 3",
    }
    assert {s.picture for samples in found._samples.values() for s in samples} == {"a.png", "b.png"}
    assert found.fingerprint()
    (tmp_path / "set.tsv").write_text("one\thttp://a\nof a link that leads nowhere\thttp://b\n" * 2)
    assert data(tmp_path).skipped["set.tsv, row 3"] == "its picture is missing"


def every_or_one(found: CC3M) -> dict[str, str]:
    """Of small sets, of which a split may be empty."""
    return {s.id: s.caption for samples in found._samples.values() for s in samples}


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "sub/../../a.png", "C:\\a.png"])
def test_names_in_a_table_never_lead_outside(tmp_path: Path, name: str):
    write_table(tmp_path / "in" / "set.tsv", 2, _1=name)
    (tmp_path / "a.png").write_bytes(picture(0))
    with pytest.raises(RequestError, match=r"row 1 of .*set\.tsv' names .* outside its folder"):
        data(tmp_path / "in")


def test_names_that_fit_several_fit_none(tmp_path: Path):
    write_files(tmp_path, {"0": {"png": picture(0), "jpg": picture(1)}, "1": {"png": picture(2)}})
    write_table(tmp_path / "set.tsv", 2)
    assert data(tmp_path, validation=0.5).skipped == {
        "set.tsv, row 0": "the name of its picture, '0', fits several rows or files"
    }
    by_url = tmp_path / "by-url"
    write_files(by_url, {"same": {"png": picture(0)}})
    (by_url / "set.tsv").write_text("one\thttp://a/same.png\ntwo\thttp://b/same.png\n")
    assert len(data(by_url, naming="url").skipped) == 2


@pytest.mark.parametrize("write", [write_files, lambda folder, pairs: write_shard(folder / "0.tar", pairs)])
def test_a_table_beside_captions_of_the_pictures_is_refused(tmp_path: Path, write):
    write(tmp_path / "train", pairs(0, 20))
    table = write_table(tmp_path / "Train.tsv", 20)
    with pytest.raises(RequestError, match=r"Train\.tsv' and '.*train/0.*' may caption .*; keep one of both, or name"):
        data(tmp_path)
    table.unlink()
    assert len(every(data(tmp_path))) == 20


def test_a_table_that_names_its_pictures_may_lie_beside_other_captions(tmp_path: Path):
    write_files(tmp_path, pairs(0, 2))
    write_table(tmp_path / "set.tsv", 2, _0="000000001.png", _1="000000000.png")
    assert every_or_one(data(tmp_path)) == {"000000001.png": "caption 0", "000000000.png": "caption 1"}
    write_table(tmp_path / "set.tsv", 2)
    for caption in (*tmp_path.glob("*.txt"), *tmp_path.glob("*.json")):
        caption.unlink()
    (tmp_path / "README.txt").write_text("about the set")
    assert every_or_one(data(tmp_path)) == {"000000000.png": "caption 0", "000000001.png": "caption 1"}


def test_an_address_that_is_none_costs_its_row_alone(tmp_path: Path):
    write_files(tmp_path, {"a": {"png": picture(0)}})
    (tmp_path / "set.tsv").write_text("one\thttp://a/a.png\ntwo\thttp://[x/b.png\n")
    found = data(tmp_path, naming="url")
    assert every_or_one(found) == {"a.png": "one"}
    assert found.skipped == {"set.tsv, row 1": "its picture is missing"}


def test_a_caption_that_may_not_be_read_costs_its_picture_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_files(tmp_path, {name: {"png": picture(0), "txt": name.encode()} for name in "ab"})
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "a.txt":
            raise PermissionError(errno.EACCES, "not yours")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    found = data(tmp_path)
    assert every_or_one(found) == {"b": "b"}
    assert found.skipped == {"a": "it has no caption"}


def test_a_shifted_table_is_noticed(tmp_path: Path):
    write_files(tmp_path, {f"{i}_{zlib.crc32(address(i + 1).encode())}": {"png": picture(i)} for i in range(3)})
    write_table(tmp_path / "set.tsv", 3)
    assert all("another address" in reason for reason in data(tmp_path).skipped.values())


def test_a_table_that_is_odd(tmp_path: Path):
    write_files(tmp_path, {f"{i}": {"png": picture(i)} for i in range(4)})
    (tmp_path / "set.tsv").write_bytes("ein Grüßchen\n\thttp://a/1\n \t \t \nfour\thttp://a/3\r\n".encode())
    found = data(tmp_path, validation=0.5)
    assert every_or_one(found) == {"0.png": "ein Grüßchen", "3.png": "four"}
    assert found.skipped == {"set.tsv, row 1": "its caption is empty", "set.tsv, row 2": "its caption is empty"}
    (tmp_path / "set.tsv").write_bytes(b"a\xff\tb\n")
    with pytest.raises(RequestError, match="is not UTF-8"):
        data(tmp_path)
    (tmp_path / "more.tsv").write_bytes(b"")
    with pytest.raises(RequestError, match=r"holds several \.tsv files, such as 'more\.tsv'; keep one"):
        data(tmp_path)


def test_more_pictures_move_none(tmp_path: Path):
    write_shard(tmp_path / "00000.tar", pairs(0, 60))
    before = data(tmp_path, validation=0.3)
    write_shard(tmp_path / "00001.tar", pairs(10_000, 60))
    after = data(tmp_path, validation=0.3)
    for split in ("train", "validation"):
        assert {s.id for s in before.samples(split)} < {s.id for s in after.samples(split)}


def test_the_fingerprint_follows_the_list_and_not_the_order_of_the_directory(tmp_path: Path, monkeypatch):
    folder = write_files(tmp_path / "set" / "0", pairs(0, 30)).parent
    first, ids = data(folder), every(data(folder))
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top: ((p, d[::-1], f[::-1]) for p, d, f in walk(top)))
    turned = data(folder)
    assert turned.fingerprint() == first.fingerprint()
    assert list(every(turned)) == list(ids)
    monkeypatch.undo()
    (folder / "0" / "000000007.png").unlink()
    second = data(folder)
    assert second.fingerprint() != first.fingerprint()
    (folder / "0" / "000000008.txt").write_text("another caption")
    assert data(folder).fingerprint() not in (first.fingerprint(), second.fingerprint())


def test_folders_that_are_none(tmp_path: Path):
    with pytest.raises(RequestError, match="nowhere' does not exist; give a folder with"):
        data(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"holds no captioned pictures; give a folder with \.tar shards"):
        data(tmp_path)
