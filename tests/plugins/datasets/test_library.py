from __future__ import annotations

import errno
import importlib.util
import io
import pickle
from pathlib import Path

import pytest
from PIL import Image

from aptp.core.errors import RequestError
from aptp.plugins.datasets.library import Library


def data(path: Path | str, **options: object) -> Library:
    return Library(Library.Options(path=str(path), **options))


def test_without_the_library_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aptp.plugins.datasets.library.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"needs the package datasets, .*; pip install 'aptp\[data\]'\.$"):
        data(tmp_path)


if importlib.util.find_spec("datasets") is None:
    pytest.skip("the extra aptp[data] is not installed", allow_module_level=True)

import datasets  # noqa: E402


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def rows(count: int, first: int = 0, **columns: list) -> datasets.Dataset:
    pictures = [Image.new("RGB", (4, 3), (first + i, 0, 0)) for i in range(count)]
    columns = columns or {"text": [f"caption {first + i}" for i in range(count)]}
    return datasets.Dataset.from_dict({"image": pictures, **columns})


def saved(folder: Path, content: datasets.Dataset | dict[str, datasets.Dataset]) -> Path:
    (content if isinstance(content, datasets.Dataset) else datasets.DatasetDict(content)).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("name", ["validation", "val", "test"])
def test_splits_and_columns_are_found(tmp_path: Path, name: str):
    found = data(saved(tmp_path / "set", {"train": rows(5), name: rows(3, 50), "other": rows(1)}))
    train, validation = found.samples("train"), found.samples("validation")
    assert [(s.id, s.caption) for s in train] == [(f"train/{i}", f"caption {i}") for i in range(5)]
    assert [s.id for s in validation] == [f"{name}/{i}" for i in range(3)]
    assert [s.open().getpixel((0, 0)) for s in validation] == [(50 + i, 0, 0) for i in range(3)]
    assert pickle.loads(pickle.dumps(train[2])).open().size == (4, 3)
    assert found.skipped == {}


def test_a_set_without_splits_is_divided_by_row_and_stays_so(tmp_path: Path):
    before = data(saved(tmp_path / "a", rows(60)), validation=0.3)
    after = data(saved(tmp_path / "b", rows(120)), validation=0.3)
    for split in ("train", "validation"):
        assert {s.id for s in before.samples(split)} < {s.id for s in after.samples(split)}
    assert len(before.samples("train")) + len(before.samples("validation")) == 60


def test_several_captions_train_and_one_is_held_out(tmp_path: Path):
    captions = [["one", " two\n", "one"], ["three"], [], [" "], None]
    found = data(saved(tmp_path / "set", {"train": rows(5, captions=captions), "test": rows(5, captions=captions)}))
    train = found.samples("train")
    assert [(s.id, s.picture, s.caption) for s in train] == [
        ("train/0", "train/0", "one"),
        ("train/0#2", "train/0", "two"),
        ("train/1", "train/1", "three"),
    ]
    assert [s.caption for s in found.samples("validation")] == ["one", "three"]
    assert found.skipped == {f"{split}/{i}": "it has no caption" for split in ("train", "test") for i in (2, 3, 4)}
    halves = data(saved(tmp_path / "undivided", rows(40, captions=[[f"{i}", f"{i} again"] for i in range(40)])))
    assert all("again" not in s.caption for s in halves.samples("validation"))
    assert len(halves.samples("train")) == 2 * (40 - len(halves.samples("validation")))


def test_kinds_are_texts_or_names_of_classes(tmp_path: Path):
    content = rows(3, text=["a", "b", "c"], kind=["x", None, "y"], label=[0, 1, 0])
    content = content.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    folder = saved(tmp_path / "set", {"train": content, "test": content})
    assert [s.kind for s in data(folder, caption="text", kind="kind").samples("train")] == ["x", None, "y"]
    assert [s.kind for s in data(folder, caption="text", kind="label").samples("train")] == ["cat", "dog", "cat"]
    assert [s.kind for s in data(folder, caption="text").samples("train")] == [None] * 3


def test_pictures_that_are_files_may_be_broken_or_missing_or_go_away(tmp_path: Path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(folder / "clear.png")
    (folder / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (4, 4)).save(folder / "gone.png")
    names = ("clear.png", "broken.png", "gone.png")
    (folder / "metadata.jsonl").write_text("".join(f'{{"file_name": "{name}", "text": "{name}"}}\n' for name in names))
    found = data(folder.parent, validation=0.01)
    (folder / "gone.png").unlink()
    pictures = {sample.caption: sample for sample in found.samples("train")}
    assert pictures["clear.png"].open().getpixel((0, 0)) == (255, 255, 255)
    for name, number in (("broken.png", None), ("gone.png", errno.ENOENT)):
        with pytest.raises(OSError, match=r".+") as error:
            pictures[name].open()
        assert error.value.errno == number
    after = data(folder.parent, validation=0.01)
    assert list(after.skipped.values()) == ["its picture is missing"]
    assert after.fingerprint() != found.fingerprint()


def test_a_row_without_a_picture(tmp_path: Path):
    content = datasets.Dataset.from_dict({"image": [None, Image.new("RGB", (2, 2))], "text": ["a", "b"]})
    found = data(saved(tmp_path / "set", {"train": content, "test": content}))
    (good,) = found.samples("train")
    assert found.skipped == {"train/0": "its picture is missing", "test/0": "its picture is missing"}
    assert good.open().size == (2, 2)
    assert found.fingerprint()


def test_load_dataset_reads_what_was_not_saved(tmp_path: Path):
    (tmp_path / "set").mkdir()
    for split, count in (("train", 4), ("test", 2)):
        rows(count).to_parquet(tmp_path / "set" / f"{split}.parquet")
    found = data(tmp_path / "set")
    assert [s.id for s in found.samples("validation")] == ["test/0", "test/1"]
    assert found.samples("train")[3].open().getpixel((0, 0)) == (3, 0, 0)


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path):
    def print_of(name: str, content: datasets.Dataset, **options: object) -> str:
        return data(saved(tmp_path / name, {"train": content, "test": rows(2)}), **options).fingerprint()

    first = print_of("a", rows(4))
    assert print_of("b", rows(4)) == first
    file = io.BytesIO()
    Image.effect_noise((9, 9), 50).save(file, "PNG")
    other = rows(4).map(
        lambda row, i: {"image": {"bytes": file.getvalue(), "path": None}} if i == 1 else {}, with_indices=True
    )
    prints = {
        first,
        print_of("c", rows(5)),
        print_of("d", rows(4, text=["caption 0", "caption 1", "caption 2", "other"])),
        print_of("e", other),
        print_of("f", rows(5).select([0, 1, 2, 4])),
    }
    assert len(prints) == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train_split": "trian"}, r"unknown split of data set '.*': 'trian'; did you mean 'train'"),
        ({"validation_split": "dev"}, r"unknown split .* 'dev'; known: test, train"),
        ({"caption": "txt"}, r"unknown column .* 'txt'; did you mean 'text'"),
        ({"image": "text"}, r"column 'text' of data set '.*' holds no pictures\.$"),
        ({"caption": "image"}, r"column 'image' of data set '.*' holds no captions\.$"),
        ({"kind": "knd"}, r"unknown column .* 'knd'"),
    ],
)
def test_names_that_are_not_there(tmp_path: Path, options: dict, sentence: str):
    folder = saved(tmp_path / "set", {"train": rows(2), "test": rows(2)})
    with pytest.raises(RequestError, match=sentence):
        data(folder, **options)


def test_columns_that_cannot_be_told_apart(tmp_path: Path):
    texts = saved(tmp_path / "texts", rows(2, title=["a", "b"], author=["c", "d"]))
    with pytest.raises(
        RequestError, match=r"has 2 columns that may be the captions, of .*; name it with data\.caption"
    ):
        data(texts)
    assert data(texts, caption="title", validation=0.5)
    usual = saved(tmp_path / "usual", rows(2, title=["a", "b"], caption=["c", "d"]))
    assert {s.caption for samples in data(usual)._samples.values() for s in samples} == {"c", "d"}
    none = saved(tmp_path / "none", datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(RequestError, match=r"has no columns that may be the pictures"):
        data(none)


@pytest.mark.parametrize("path", ["owner/none", "nowhere"])
def test_a_set_that_cannot_be_had_is_one_sentence(path: str):
    with pytest.raises(RequestError, match=rf"^data set '{path}' cannot be loaded \([^\n]*\); give a folder[^\n]*$"):
        data(path)


def test_a_folder_that_is_none(tmp_path: Path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(RequestError, match=r"cannot be loaded \([^\n]*\); give a folder"):
        data(tmp_path)
