"""The cost model by itself, on a made-up model small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


@given(
    steps=st.lists(st.floats(0, 10), min_size=4, max_size=4), gates=st.lists(st.floats(0, 1), min_size=4, max_size=4)
)
def test_a_table_is_linear_between_whole_units(steps, gates):
    measured = CostModel(SearchSpace((HEADS,)), [Layer("", 3.0), Layer("a.attn", 2.0, tuple(steps), HEADS)], "ms")
    at = [5.0 + sum(steps[:count]) for count in range(5)]
    assert [measured.cost((torch.arange(4) < count).float()).item() for count in range(5)] == pytest.approx(at)
    assert measured.dense == pytest.approx(at[4])
    given = torch.tensor(gates, dtype=torch.float64, requires_grad=True)
    units = sum(gates)
    whole = min(int(units), 3)
    cost = measured.cost(given)
    assert cost.item() == pytest.approx(at[whole] + (units - whole) * steps[whole])
    assert torch.autograd.grad(cost, given)[0].tolist() == pytest.approx([steps[whole]] * 4)


def test_a_site_s_last_slope_is_that_of_its_own_last_unit():
    gates = torch.ones(6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model(HEADS, UNITS).cost(gates), gates)
    assert slope.tolist() == [10, 10, 10, 10, 20, 20]


def test_equal_steps_are_one_number():
    layers = [Layer("x", 7), Layer("ff.n", 1, (20, 20), UNITS)]
    table = CostModel(SearchSpace((UNITS,)), layers, "things")
    number = CostModel(SearchSpace((UNITS,)), [Layer("x", 7), Layer("ff.n", 1, 20, UNITS)], "things")
    assert table.fingerprint == number.fingerprint
    assert CostModel(SearchSpace((UNITS,)), layers, "others").fingerprint != table.fingerprint


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
