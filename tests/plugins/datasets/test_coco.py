from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.errors import RequestError
from aptp.plugins.datasets.coco import Coco

Write = Callable[..., Path]


def data(folder: Path, **options: object) -> Coco:
    return Coco(Coco.Options(path=str(folder), **options))


def edit(folder: Path, part: str, change: Callable[[dict], object]) -> None:
    file = folder / "annotations" / f"captions_{part}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("year", [2014, 2017])
def test_every_caption_trains_and_one_a_picture_is_held_out(tmp_path: Path, write_coco: Write, year: int):
    found = data(write_coco(tmp_path, year))
    train, validation = found.samples("train"), found.samples("validation")
    assert [s.caption for s in train] == [f"train picture {i}, said {k}." for i in range(1, 7) for k in range(3)]
    assert len({s.id for s in train}) == 18
    assert list(dict.fromkeys(s.picture for s in train)) == [
        f"train{year}/COCO_train{year}_{i:012d}.jpg" for i in range(1, 7)
    ]
    assert [s.picture for s in validation] == [f"val{year}/COCO_val{year}_{i:012d}.jpg" for i in range(1, 6)]
    assert len({s.caption[-2] for s in validation}) > 1, "not always the same of a picture's captions"
    assert found.skipped == {}
    assert pickle.loads(pickle.dumps(train[0])).open().size == (24, 20)


def test_the_pictures_may_lie_in_images(tmp_path: Path, write_coco: Write):
    before = data(write_coco(tmp_path))
    (tmp_path / "images").mkdir()
    for part in ("train2014", "val2014"):
        shutil.move(tmp_path / part, tmp_path / "images" / part)
    after = data(tmp_path)
    assert [s.id for s in after.samples("train")] == [s.id for s in before.samples("train")]
    assert after.fingerprint() == before.fingerprint()


def test_both_years_need_a_choice(tmp_path: Path, write_coco: Write):
    write_coco(write_coco(tmp_path), 2017, train=3)
    with pytest.raises(RequestError, match=r"holds both 2014 and 2017; choose with data\.year=2014 or 2017"):
        data(tmp_path)
    assert len(data(tmp_path, year=2017).samples("train")) == 9


def test_the_subset_is_drawn_by_seed_and_grows(tmp_path: Path, write_coco: Write):
    write_coco(tmp_path, validation=60)

    def held_out(**options: object) -> list[str]:
        return [s.id for s in data(tmp_path, **options).samples("validation")]

    few, more, all_ = held_out(validation=20), held_out(validation=40), held_out(validation=None)
    assert (len(few), len(more), len(all_)) == (20, 40, 60)
    assert set(few) < set(more) < set(all_), "a picture keeps its caption, too"
    assert few == [id_ for id_ in all_ if id_ in set(few)], "in the order of the pictures"
    assert held_out(validation=20) == few
    other = held_out(validation=20, seed=1)
    assert {id_.partition("#")[0] for id_ in other} != {id_.partition("#")[0] for id_ in few}
    assert held_out(validation=None, seed=1) != all_, "other captions"


def test_missing_pictures_and_captions_are_listed(tmp_path: Path, write_coco: Write):
    write_coco(tmp_path)
    (tmp_path / "train2014" / "COCO_train2014_000000000002.jpg").unlink()

    def spoil(content: dict) -> None:
        content["images"].append({"id": 99, "file_name": "COCO_train2014_000000000001.jpg"})
        content["annotations"][0]["caption"] = " \n"
        content["annotations"].append({"image_id": 77, "id": 1, "caption": "of nothing"})

    edit(tmp_path, "train2014", spoil)
    found = data(tmp_path)
    assert len(found.samples("train")) == 14
    assert found.skipped == {
        "captions_train2014.json, picture 77": "its captions are there, but not its name",
        "train2014/COCO_train2014_000000000001.jpg#10": "its caption is empty",
        "train2014/COCO_train2014_000000000002.jpg": "the file is missing",
        "train2014/COCO_train2014_000000000001.jpg": "it has no caption",
    }


def test_the_fingerprint_follows_the_content_and_not_its_order(tmp_path: Path, write_coco: Write):
    write_coco(tmp_path)
    first = data(tmp_path).fingerprint()

    def turn(content: dict) -> None:
        content["images"].reverse()
        content["annotations"].reverse()

    edit(tmp_path, "train2014", turn)
    assert data(tmp_path).fingerprint() == first
    assert data(shutil.copytree(tmp_path, tmp_path.with_name("elsewhere"))).fingerprint() == first
    seen = {first, data(tmp_path, validation=3).fingerprint()}
    edit(tmp_path, "train2014", lambda content: content["annotations"][0].update(caption="other"))
    seen.add(data(tmp_path).fingerprint())
    with (tmp_path / "val2014" / "COCO_val2014_000000000001.jpg").open("ab") as file:
        file.write(b"x")
    seen.add(data(tmp_path).fingerprint())
    (tmp_path / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    seen.add(data(tmp_path).fingerprint())
    assert len(seen) == 5


def test_a_picture_is_told_by_its_name_and_size_alone(tmp_path: Path, write_coco: Write):
    def contents() -> dict[str, str | None]:
        return {s.picture_id: s.content for split in ("train", "validation") for s in data(tmp_path).samples(split)}

    write_coco(tmp_path)
    first = contents()
    edit(tmp_path, "train2014", lambda content: content["annotations"][0].update(caption="other"))
    (changed,) = (tmp_path / "train2014").glob("*2.jpg")
    changed.write_bytes(changed.read_bytes() + b"x")
    second = contents()
    assert [name for name in first if first[name] != second[name]] == [f"train2014/{changed.name}"]


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "sub/../../a.jpg", "C:\\a.jpg"])
def test_names_never_lead_outside(tmp_path: Path, write_coco: Write, name: str):
    write_coco(tmp_path)
    edit(tmp_path, "val2014", lambda content: content["images"][0].update(file_name=name))
    with pytest.raises(RequestError, match=r"picture 1 of .* names .* outside its folder"):
        data(tmp_path)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_other_json_is_refused(tmp_path_factory: pytest.TempPathFactory, write_coco: Write, content: object):
    folder = write_coco(tmp_path_factory.mktemp("coco"), train=1, validation=1)
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps({"images": content, "annotations": []}))
    if content in ([], {}, ""):
        with pytest.raises(RequestError, match=r"has no usable validation picture"):
            data(folder).samples("validation")
    else:
        with pytest.raises(RequestError, match=r"is no captions file of COCO"):
            data(folder)


def test_folders_that_are_none(tmp_path: Path, write_coco: Write):
    with pytest.raises(RequestError, match="nowhere' does not exist; give the folder that holds annotations/"):
        data(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"has no annotations/captions_train2014\.json \(or 2017\)"):
        data(tmp_path)
    write_coco(tmp_path)
    shutil.rmtree(tmp_path / "val2014")
    with pytest.raises(RequestError, match="has no folder val2014/"):
        data(tmp_path)
    (tmp_path / "val2014").mkdir()
    with pytest.raises(RequestError, match=r"no usable validation picture: 5 left out, the first, 'val"):
        data(tmp_path).samples("validation")
    (tmp_path / "annotations" / "captions_val2014.json").unlink()
    with pytest.raises(RequestError, match=r"captions_val2014\.json' cannot be read: No such file"):
        data(tmp_path)
