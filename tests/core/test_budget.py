"""The cost model by itself, on a made-up model small enough to count by hand."""

from __future__ import annotations

import pytest
import torch

from aptp.core.anatomy import Part
from aptp.core.architecture import SearchSpace
from aptp.core.budget import CostModel, Layer
from aptp.core.errors import RequestError

BLOCK = Part("a", "block", 1)
HEADS = Part("a.attn", "attention_heads", 4, inside=("a",))
UNITS = Part("ff", "feedforward_units", 2)
LAYERS = [
    Layer("conv_in", 10),
    Layer("a.attn.to_q", 1, 5, HEADS),
    Layer("a.attn.to_out.0", 2, 5, HEADS),
    Layer("a.norm", 3),
    Layer("ab.proj", 7),  # beside block `a`, not in it
    Layer("ff.net.0", 0, 20, UNITS),
]


def model(*sites: Part) -> CostModel:
    return CostModel(SearchSpace(sites), LAYERS, "things")


def test_costs_counted_by_hand():
    full = model(BLOCK, HEADS, UNITS)
    assert full.dense == 10 + (1 + 2 + 40 + 3) + 7 + 40
    assert full.cost(torch.tensor([1.0, 1, 0, 0, 1, 1, 0])).item() == 10 + (6 + 10 * 2) + 7 + 20
    assert full.cost(torch.tensor([0.0, 1, 0, 0, 1, 1, 0])).item() == 10 + 7 + 20
    assert full.cost(torch.tensor([0.5, 1, 0.5, 0, 0, 1, 1])).item() == 10 + 0.5 * (6 + 15) + 7 + 40
    assert full.floor == (10 + 7 + 20) / full.dense
    assert full.cost(torch.rand(2, 3, 7)).shape == (2, 3)
    assert full.cost(torch.rand(2, 3, 7)).dtype == torch.float64


def test_what_is_not_gated_costs_as_it_is():
    assert model(UNITS).dense == model(BLOCK).dense == model(BLOCK, HEADS, UNITS).dense
    assert model(UNITS).floor == (103 - 20) / 103
    assert model(BLOCK).cost(torch.zeros(1)).item() == 57


def test_large_costs_are_exact():
    huge = CostModel(SearchSpace((UNITS,)), [Layer("x", 2**52 - 1), Layer("ff.n", 0, 1, UNITS)], "MACs")
    assert int(huge.cost(torch.tensor([1.0, 0.0])).item()) == 2**52


@pytest.mark.parametrize("target", [0.0, -0.5, 1.5, float("nan")])
def test_a_budget_is_a_fraction(target):
    with pytest.raises(RequestError, match="fraction"):
        model(UNITS).check(target)


def test_a_budget_under_the_floor_names_it():
    costs = model(BLOCK, UNITS)
    costs.check(costs.floor)
    costs.check(1.0)
    with pytest.raises(RequestError, match=r"0\.2 is under the floor.*0\.359.*things"):
        costs.check(0.2)


def test_a_space_of_another_model_is_refused():
    for stranger in (Part("b", "block", 1), Part("a.attn", "attention_heads", 8, inside=("a",))):
        with pytest.raises(RequestError, match="another model"):
            model(UNITS, stranger)
