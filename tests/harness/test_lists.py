"""The lists of pictures that a run leaves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aptp.core.data import Sample
from aptp.core.errors import RequestError
from aptp.harness.lists import SHOWN, check_list, write_lists


def sample(id_: str, caption: str = "said", picture: str | None = None) -> Sample:
    return Sample(id_, caption, lambda: Image.new("RGB", (1, 1)), picture=picture)


def test_every_sample_has_a_line_and_the_record_the_file_s_hash(tmp_path: Path) -> None:
    train = [sample("b#1", "one", "b"), sample("b#2", "two", "b"), sample("a\udcff", "Grüße")]
    said = write_lists(tmp_path, train, [sample("c")], {})
    assert (said["training_pictures"], said["training_captions"], said["validation_pictures"]) == (2, 3, 1)
    file = tmp_path / "data" / "train.jsonl"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == said["training_list"]
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"id": "a\udcff", "caption": "Grüße"},
        {"id": "b#1", "picture": "b", "caption": "one"},
        {"id": "b#2", "picture": "b", "caption": "two"},
    ]
    assert not (tmp_path / "data" / "skipped.jsonl").exists()
    assert (said["skipped"], said["skipped_count"]) == ({}, 0)


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, unique_by=lambda row: row[0]), st.randoms())
def test_the_hash_is_of_the_set_and_not_of_its_order(tmp_path_factory, rows: list[tuple[str, str]], random) -> None:
    def hash_of(samples: list[Sample]) -> str:
        return write_lists(tmp_path_factory.mktemp("lists"), samples, [], {})["training_list"]

    samples = [sample(*row) for row in rows]
    first = hash_of(samples)
    random.shuffle(samples)
    assert hash_of(samples) == first
    assert hash_of(samples[1:]) != first
    assert hash_of([replace(samples[0], caption=samples[0].caption + "!"), *samples[1:]]) != first


def test_other_pictures_than_before_are_refused(tmp_path: Path) -> None:
    samples = [sample("a"), sample("b")]
    said = write_lists(tmp_path, samples, [sample("c")], {})
    check_list(said, "training", samples[::-1])
    check_list({}, "training", samples)
    for what, others in (("training", samples[:1]), ("validation", samples)):
        with pytest.raises(RequestError, match=f"other {what} pictures open than when the run was begun"):
            check_list(said, what, others)


def test_many_that_are_missing_do_not_swell_the_record(tmp_path: Path) -> None:
    skipped = {f"{i:04d}.jpg": "the file is missing" for i in range(3000)}
    said = write_lists(tmp_path, [sample("a")], [sample("b")], skipped)
    assert (len(said["skipped"]), said["skipped_count"]) == (SHOWN, 3000)
    lines = (tmp_path / "data" / "skipped.jsonl").read_text().splitlines()
    assert len(lines) == 3000
    assert json.loads(lines[7]) == {"id": "0007.jpg", "reason": "the file is missing"}
