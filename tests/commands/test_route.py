"""`aptp route` and `aptp generate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

import aptp
import aptp.bundle
import aptp.pipeline
import aptp.routing
from aptp.explain import Explanation, Neighbour, Word
from aptp.pipeline import Route
from aptp.routing import DENSE


def test_route_tells_expert_cost_and_margin(pipeline, invoke) -> None:
    result = invoke("route", "x", "a star", "[red] hat")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["a", "star", "0", "0.250", "0.500"] in rows
    assert ["[red]", "hat", "1", "0.750", "0.500"] in rows


def test_route_as_json_is_json_even_for_one_expert(pipeline, invoke) -> None:
    pipeline.margin = float("inf")
    Path("p.txt").write_text("a stär\nab\n", encoding="utf-8")
    expected = [
        {"prompt": "a stär", "expert": 0, "cost": 0.25, "margin": None},
        {"prompt": "ab", "expert": 0, "cost": 0.25, "margin": None},
    ]
    from_file = invoke("route", "x", "--prompts", "p.txt", "--json")
    assert json.loads(from_file.stdout, parse_constant=pytest.fail) == expected
    from_stdin = invoke("route", "x", "--prompts", "-", "--json", stdin="a stär\nab")
    assert json.loads(from_stdin.stdout) == expected


def test_route_as_csv_quotes_what_needs_it(pipeline, invoke, refusal) -> None:
    shown = invoke("route", "x", 'a "star", red', "ab", "--csv").stdout
    assert shown.splitlines()[:2] == ["prompt,expert,cost,margin", '"a ""star"", red",1,0.75,0.5']
    assert "exclude each other" in refusal(invoke("route", "x", "a", "--csv", "--json"))


def test_route_explains(monkeypatch: pytest.MonkeyPatch, pipeline, invoke) -> None:
    words = [Word("STOP", 1, 0.25, 2), Word("word", 0, 0.125, 0), Word("red", 2, -0.5, 0)]
    whys = [
        Explanation(Route("word STOP red", 0, 0.5, 0.125), [Neighbour("a hat", 0.875, 1)], words),
        Explanation(Route("b", 0, 0.5, float("inf")), [], []),
    ]
    monkeypatch.setattr(aptp.explain, "explain", lambda bundle, prompts: whys)
    table = invoke("route", "x", "word STOP red", "b", "--explain").stdout
    for cell in ("a hat (0.88, expert 1)", "STOP (0.250, without it expert 2); word (0.125)", "none kept", "only one"):
        assert cell in table
    assert "red (" not in table
    header, first, _ = invoke("route", "x", "word STOP red", "b", "--explain", "--csv").stdout.splitlines()
    assert header == "prompt,expert,cost,margin,nearest,words"
    assert first.startswith('word STOP red,0,0.5,0.125,"a hat (0.88, expert 1)",')
    of_first, of_second = json.loads(invoke("route", "x", "word STOP red", "b", "--explain", "--json").stdout)
    assert of_first["nearest"] == [{"prompt": "a hat", "similarity": 0.875, "expert": 1}]
    assert of_first["words"][2] == {"text": "red", "place": 2, "lost": -0.5, "expert": 0}
    assert (of_second["margin"], of_second["words"]) == (None, [])


@pytest.mark.parametrize("command", [("route", "x"), ("generate", "x", "--out", "y")])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "'p.txt' cannot be read"),
        (b"", "no prompt"),
        (b"\n", "prompt 1 is empty"),
        (b"a star\n  \n", "prompt 2 is empty"),
        (b"a star\n" + b"x" * 10_001, "prompt 2 has 10,001 characters"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused(
    command: Sequence[str], content: bytes | None, named: str, monkeypatch: pytest.MonkeyPatch, invoke, refusal
) -> None:
    def load(*asked: object) -> None:
        pytest.fail("the run was loaded before the prompts were checked")

    monkeypatch.setattr(aptp.pipeline, "load", load)
    monkeypatch.setattr(aptp.bundle, "load_finished", load)
    if content is not None:
        Path("p.txt").write_bytes(content)
    assert named in refusal(invoke(*command, "--prompts", "p.txt"))


def test_prompts_come_one_way(pipeline, invoke, refusal) -> None:
    Path("p.txt").write_text("a star\n")
    assert "--prompts" in refusal(invoke("route", "x"))
    assert "--prompts" in refusal(invoke("route", "x", "a star", "--prompts", "p.txt"))
    assert "'--prompts'" in refusal(invoke("generate", "x", "--out", "y"))


@pytest.mark.parametrize("command", [("route",), ("generate", "--out", "y")])
def test_a_folder_that_is_no_run_is_refused(command: Sequence[str], invoke, refusal) -> None:
    Path("p.txt").write_text("a star\n")
    assert "'nowhere'" in refusal(invoke(*command, "nowhere", "--prompts", "p.txt"))


def test_generate_draws_every_prompt_in_its_place(pipeline, invoke) -> None:
    prompts = ["a", "bb", "a", "ccc", "bb", "a"]
    Path("p.txt").write_text("\n".join(prompts))
    result = invoke(
        *("generate", "x", "--prompts", "p.txt", "--out", "y", "--seed", "7", "--batch", "4", "--steps", "3"),
        *("--guidance", "2"),
    )
    assert result.exit_code == 0, result.stderr
    listed = json.loads(Path("y/pictures.json").read_text())
    assert [picture["prompt"] for picture in listed] == prompts
    assert [picture["expert"] for picture in listed] == [1, 0, 1, 1, 0, 1]
    assert [picture["cost"] for picture in listed] == [0.75, 0.25, 0.75, 0.75, 0.25, 0.75]
    assert [picture["seed"] for picture in listed] == [7, 7, 8, 7, 8, 9]  # a repeated prompt gets other noise
    assert [picture["file"] for picture in listed] == [f"{place:03d}.png" for place in range(6)]
    for picture in listed:
        with Image.open(Path("y") / picture["file"]) as image:
            assert image.getpixel((0, 0)) == (picture["expert"], picture["seed"], len(picture["prompt"]))
    assert pipeline.batches == [4, 2]


def test_generate_leaves_the_pictures_of_before_alone(pipeline, invoke, refusal) -> None:
    Path("p.txt").write_text("a star\n")
    Path("y").mkdir()
    Path("y/000.png").write_bytes(b"a picture")
    assert "'y' has pictures in it already" in refusal(invoke("generate", "x", "--prompts", "p.txt", "--out", "y"))
    assert Path("y/000.png").read_bytes() == b"a picture"


def test_generate_falls_back_to_the_dense_model(pipeline, invoke) -> None:
    Path("p.txt").write_text("a star\n")
    drawing = ("generate", "x", "--prompts", "p.txt", "--steps", "3", "--guidance", "2")
    for margin, expert, cost in (("0.5", 0, 0.25), ("0.6", DENSE, 1.0)):
        result = invoke(*drawing, "--out", margin, "--fallback-margin", margin)
        assert result.exit_code == 0, result.stderr
        (listed,) = json.loads(Path(margin, "pictures.json").read_text())
        assert (listed["expert"], listed["cost"]) == (expert, cost)


@pytest.mark.parametrize(
    "flags",
    [
        ("--fallback-margin", "-0.1"),
        ("--fallback-margin", "nan"),
        ("--steps", "0"),
        ("--batch", "0"),
        ("--guidance", "-1"),
        ("--seed", "-1"),
        ("--out", "p.txt"),
    ],
)
def test_generate_refuses_what_it_cannot_draw(flags: Sequence[str], pipeline, invoke, refusal) -> None:
    Path("p.txt").write_text("a star\n")
    assert flags[0] in refusal(invoke("generate", "x", "--prompts", "p.txt", "--out", "y", *flags))
    assert pipeline.batches == []
