"""Agreement of experts and kinds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.harness.clusters import nmi


def test_worked_by_hand() -> None:
    """Two experts of two prompts each, kinds a, a | a, b: shares a0 = 1/2, a1 = b1 = 1/4, in nats."""
    found = nmi(torch.tensor([0, 0, 1, 1]), ["a", "a", "a", "b"])
    of_expert = math.log(2)
    of_kind = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    information = (
        0.5 * math.log(0.5 / (0.5 * 0.75)) + 0.25 * math.log(0.25 / (0.5 * 0.75)) + 0.25 * math.log(0.25 / (0.5 * 0.25))
    )
    assert found == pytest.approx(information / ((of_expert + of_kind) / 2))


@given(route=st.lists(st.integers(0, 3), min_size=4, max_size=30).filter(lambda route: len(set(route)) > 1))
def test_one_where_either_tells_the_other(route: list[int]) -> None:
    assert nmi(torch.tensor(route), [f"kind {(3 * expert) % 4}" for expert in route]) == pytest.approx(1)


def test_none_is_left_of_a_collapse() -> None:
    assert nmi(torch.zeros(6, dtype=torch.long), ["a", "b"] * 3) == 0


def test_prompts_of_no_known_kind_do_not_count() -> None:
    kinds = ["a", None, "b", "a", None, "b"]
    assert nmi(torch.tensor([0, 1, 1, 0, 0, 1]), kinds) == pytest.approx(1)
    assert nmi(torch.tensor([0, 1, 1]), [None, None, None]) is None
    assert nmi(torch.tensor([0, 1, 1]), ["a", "a", None]) is None


def test_the_record_has_it_where_several_experts_serve(finished) -> None:
    from aptp.core.record import Record

    assert 0 <= finished.record.routing["nmi"] <= 1
    static = Record.load(finished.out / "baselines/magnitude/record.json").routing
    assert "nmi" not in static
    assert "hardness" not in static
    assert static["cross"]["teacher_error"] == [[static["oracle"]["teacher_error"]]]
