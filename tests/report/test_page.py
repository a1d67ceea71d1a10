from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from aptp.core.errors import RequestError
from aptp.core.record import Record
from aptp.report import write_report
from aptp.report.pictures import gallery_of
from aptp.report.reading import read_run

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements of a page; fails for one that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for attributes in self.all("section")]


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def whole(make_run: Callable[..., Path]) -> tuple[str, Page]:
    """The source of the page of a run that has everything, and its elements."""
    run = make_run()
    path = write_report(run)
    assert path == run / "report.html"
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    """A run with few figures to draw."""
    run = make_run(experts=2)
    for name in ("experts", "logs", "baselines"):
        shutil.rmtree(run / name)
    return run


def test_all_sections_are_there_in_a_page_that_parses(whole: tuple[str, Page]) -> None:
    source, page = whole
    assert source.startswith("<!DOCTYPE html>")
    sections = [
        *("methods", "pictures", "experts", "architectures", "kinds", "cross", "training", "budget", "conditions")
    ]
    assert page.sections == sections
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in sections]


def test_the_page_says_what_better_routing_could_gain(whole: tuple[str, Page]) -> None:
    said = " ".join(whole[1].text.split())
    assert "teacher error is 0.00470. The best routes" in said
    assert "would have 0.00312" in said


def test_page_needs_nothing_from_outside(whole: tuple[str, Page]) -> None:
    source, page = whole
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, name)
    style = source.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import", style)


def test_texts_of_the_run_are_escaped(whole: tuple[str, Page]) -> None:
    source, page = whole
    assert "<script" not in source
    assert "<b>" not in source
    assert "<script>alert('a & b')</script> on $red$" in page.text
    assert any("<script>" in image["alt"] for image in page.all("img"))


def test_every_picture_has_a_text(whole: tuple[str, Page]) -> None:
    images = whole[1].all("img")
    figures = [image for image in images if image["src"].startswith("data:image/svg")]
    assert len(figures) == 6
    assert len(images) == 6 + 5 * 8
    assert len({image["alt"] for image in images}) == len(images)
    assert all(len(image["alt"]) > 10 for image in images)
    assert all(len(figure["alt"]) > 50 for figure in figures)


def test_one_picture_a_prompt_is_framed(whole: tuple[str, Page]) -> None:
    page = whole[1]
    assert [cell.get("class") for cell in page.all("td")].count("routed") == 5
    assert sum("(routed here)" in image["alt"] for image in page.all("img")) == 5
    assert "gallery pixelated" in {table.get("class") for table in page.all("table")}


def test_warnings_stand_at_the_top(whole: tuple[str, Page]) -> None:
    source = whole[0]
    assert source.index("1 pictures were skipped") < source.index('class="conclusion"')


def test_large_pictures_are_reduced(make_run: Callable[..., Path]) -> None:
    gallery = gallery_of(read_run(make_run(experts=2, picture=400)))
    assert gallery.side == 192
    assert not gallery.pixelated
    for _, row in gallery.rows:
        for picture in row:
            jpeg = Image.open(io.BytesIO(base64.b64decode(picture.source.removeprefix("data:image/jpeg;base64,"))))
            assert jpeg.size == (384, 384)


def test_failure_is_told_and_missing_parts_leave_out_their_section(run: Path) -> None:
    record = Record.load(run / "record.json")
    record.model_copy(update={"status": "failed", "error": "ValueError: <no>"}).save(run / "record.json")
    page = page_of(run)
    assert page.sections == ["methods", "pictures", "experts", "kinds", "cross", "budget", "conditions"]
    assert "This run failed" in page.text
    assert "ValueError: <no>" in page.text


def test_one_static_model(make_run: Callable[..., Path]) -> None:
    run = make_run(experts=1)
    shutil.rmtree(run / "gallery")
    shutil.rmtree(run / "baselines")
    (run / "logs/search.jsonl").unlink()
    page = page_of(run)
    assert page.sections == ["methods", "experts", "architectures", "training", "budget", "conditions"]
    assert "in use on held-out prompts" not in page.text


def test_run_that_has_just_begun(run: Path) -> None:
    record = Record.load(run / "record.json")
    Record(started=record.started, config=record.config, versions={}, hardware={}).save(run / "record.json")
    shutil.rmtree(run / "gallery")
    page = page_of(run)
    assert page.sections == ["conditions"]
    assert "not finished" in page.text


def test_broken_log_lines_and_missing_keys_are_passed_over(run: Path) -> None:
    lines = [{"step": 0, "loss": 1.0}, {"step": 1, "cost": 0.9}, {"step": 2, "loss": 0.5, "mine": 1.5}]
    (run / "logs").mkdir()
    (run / "logs/search.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"step": 3, "lo')
    (run / "logs/recover.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    (run / "gallery/dense/003.png").unlink()
    page = page_of(run)
    assert "training" in page.sections
    assert any("over 3 steps" in image["alt"] for image in page.all("img"))


def test_same_run_gives_the_same_page(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"record\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
