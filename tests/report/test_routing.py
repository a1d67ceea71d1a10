"""Cross-routing as a figure; agreement and hardness in words."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aptp.core.record import Record
from aptp.report import write_report
from aptp.report.routing import agreement, column_shades, cross_picture, hardness
from aptp.report.wording import protocol

CROSS = {"teacher_error": [[0.004, 0.012, None], [0.006, 0.010, None], [0.002, 0.004, None]], "prompts": [90, 38, 0]}


def svg(picture) -> str:
    return base64.b64decode(picture.source.removeprefix("data:image/svg+xml;base64,")).decode()


def test_every_expert_is_labelled_and_compared_with_the_prompts_own() -> None:
    picture = cross_picture(CROSS, [0.5, 0.6, 0.8])
    for text in ("expert 0 (50% of dense)", "expert 1 (38 prompts)", "expert 2 (0 prompts)", "0.0120", "+20%", "−60%"):
        assert f"<!-- {text}" in svg(picture), text
    assert "expert 2 errs least on the prompts of expert 0 and" in picture.alt
    assert picture.alt.count("errs least") == 2, "nobody errs on a cluster without prompts"


def test_errors_that_are_much_larger_are_told_as_multiples() -> None:
    drawn = svg(cross_picture({"teacher_error": [[0.001, 0.004], [0.0123, 0.005]], "prompts": [1, 1]}, [0.5, 0.6]))
    assert "<!-- ×12 " in drawn
    assert "<!-- −20% " in drawn


def test_experts_are_sorted_by_cost() -> None:
    drawn = svg(cross_picture(CROSS, [0.8, 0.6, 0.5]))
    places = [drawn.index(f"<!-- expert {expert} ({cost}% of dense)") for expert, cost in ((2, 50), (1, 60), (0, 80))]
    assert places == sorted(places)


def testcolumn_shades_compare_within_a_column() -> None:
    shades = column_shades(np.array([[1.0, 20.0, np.nan], [2.0, 10.0, np.nan]]))
    np.testing.assert_allclose(shades, [[0, 0.5, np.nan], [0.5, 0, np.nan]])
    assert np.isnan(column_shades(np.full((2, 2), np.nan))).all()


@pytest.mark.parametrize("experts", [2, 16])
def test_any_number_of_experts_fits(experts: int) -> None:
    chance = np.random.default_rng(0).uniform(0.001, 0.01, (experts, experts))
    picture = cross_picture({"teacher_error": chance.tolist(), "prompts": [8] * experts}, [0.66] * experts)
    assert len(svg(picture)) > 1000


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.05, 0.36, "get the costlier experts"),
        (-0.41, -0.02, "get the cheaper experts"),
        (-0.1, 0.2, "does not tell"),
    ],
)
def test_hardness_is_as_sure_as_its_interval(low: float, high: float, words: str) -> None:
    found = {"spearman": (low + high) / 2, "low": low, "high": high, "prompts": 128, "clusters": 120}
    said = hardness({"hardness": found})
    assert words in said
    assert f"{low:.2f} to {high:.2f}".replace("-", "−") in said
    assert "128 prompts, 120 captions" in said


def test_what_was_not_measured_is_not_told() -> None:
    assert agreement({}) is None
    assert hardness({}) is None
    assert protocol(Record(started="", config={}, versions={}, hardware={})) is None


def test_the_page_tells_them(make_run: Callable[..., Path]) -> None:
    run = make_run()
    text = " ".join(write_report(run).read_text(encoding="utf-8").split())
    assert "Experts and kinds agree to 0.41" in text
    assert "0.21 (95% interval 0.05 to 0.36" in text
    assert text.index('id="kinds"') < text.index("Experts and kinds agree") < text.index('id="cross"')
    assert "240 steps in all, shared by its experts" in text
    record = Record.load(run / "record.json")
    del record.routing["kinds"]
    record.config["recover"] = {"steps": 9, "per": "expert", "rank": 4}
    record.save(run / "record.json")
    text = " ".join(write_report(run).read_text(encoding="utf-8").split())
    assert text.index('id="cross"') < text.index("0.21 (95% interval") < text.index('id="training"')
    assert "Each expert was given 9 steps, so a method with more experts trained longer" in text
    assert "Only changes of rank 4 were trained." in text
