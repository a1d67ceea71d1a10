"""A finished run calibrated to other budgets and other traffic."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch.nn.functional import one_hot

import aptp
from aptp.bundle import load_bundle
from aptp.calibration import calibrate, fit_bias, marginals, undo
from aptp.core.errors import RequestError
from aptp.core.router import load_of, margins, serve
from aptp.host import default_host

COSTS = torch.tensor([0.5, 0.62, 0.7, 0.9], dtype=torch.float64)


def scores_of(prompts: int, experts: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(prompts, experts, generator=generator, dtype=torch.float64)


def even(count: int) -> torch.Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


@given(prompts=st.integers(2, 60), experts=st.integers(2, 4), seed=st.integers(0, 10**6), place=st.floats(0.0, 1.0))
@settings(max_examples=25)
def test_served_traffic_costs_the_budget_within_a_prompt(prompts: int, experts: int, seed: int, place: float) -> None:
    costs, scores = COSTS[:experts], scores_of(prompts, experts, seed)
    target = float(costs[0] + place * (costs[-1] - costs[0]))
    route = serve(scores, fit_bias(scores, even(prompts), costs, even(experts), target))
    assert abs(float(costs[route].mean()) - target) <= float(costs[-1] - costs[0]) / prompts + 1e-9


@given(seed=st.integers(0, 10**6), place=st.floats(0.1, 0.9), load=st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
def test_no_other_routes_with_these_loads_score_more(seed: int, place: float, load: list[float]) -> None:
    costs, scores = COSTS[:3], scores_of(7, 3, seed)
    target = float(costs[0] + place * (costs[-1] - costs[0]))
    shares = torch.tensor(load, dtype=torch.float64)
    route = serve(scores, fit_bias(scores, even(7), costs, shares / shares.sum(), target))
    every = torch.tensor(list(itertools.product(range(3), repeat=7)))
    alike = every[(one_hot(every, 3).sum(1) == one_hot(route, 3).sum(0)).all(1)]
    total = scores.gather(1, route[:, None]).sum()
    assert float(total) == pytest.approx(float(scores.T[alike, torch.arange(7)].sum(1).max()))


def largest_least_margin(scores: torch.Tensor, route: torch.Tensor) -> float:
    """Of all biases that serve a route: max m with score_e + bias_e >= score_k + bias_k + m for all prompts, k ≠ e."""
    experts = scores.shape[1]
    rows, limits = [], []
    for mine, expert in zip(scores.numpy(), route.tolist(), strict=True):
        for other in {*range(experts)} - {expert}:
            rows.append(np.append(np.eye(experts)[other] - np.eye(experts)[expert], 1))
            limits.append(mine[expert] - mine[other])
    found = linprog([*[0] * experts, -1], rows, limits, bounds=(None, None))
    assert found.status == 0, found.message
    return -found.fun


@given(prompts=st.integers(6, 40), experts=st.integers(2, 4), seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_no_bias_that_serves_the_same_has_a_larger_least_margin(prompts: int, experts: int, seed: int) -> None:
    scores, some = scores_of(prompts, experts, seed), scores_of(1, experts, seed + 1)[0] / 2
    route = serve(scores, some)
    load = load_of(route, experts)
    assume((load > 0).all())
    bias = fit_bias(scores, even(prompts), COSTS[:experts], load, float(load @ COSTS[:experts]))
    assert torch.equal(serve(scores, bias), route)
    assert float(margins(scores, bias).min()) == pytest.approx(largest_least_margin(scores, route), abs=1e-7)


@given(seed=st.integers(0, 10**6), place=st.floats(0.02, 0.98))
def test_shares_are_the_nearest_that_cost_the_target(seed: int, place: float) -> None:
    load = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    load /= load.sum()
    target = float(COSTS[0] + place * (COSTS[-1] - COSTS[0]))
    mine = marginals(load, COSTS, target)
    assert float(mine.sum()) == pytest.approx(1)
    assert float(mine @ COSTS) == pytest.approx(target, abs=1e-9)

    def divergence(shares: torch.Tensor) -> float:
        return float((shares * (shares / load).log()).sum())

    other = minimize(
        lambda x: divergence(torch.tensor(x)),
        load.numpy(),
        bounds=[(1e-9, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda x: x.sum() - 1},
            {"type": "eq", "fun": lambda x: x @ COSTS.numpy() - target},
        ],
    )
    assert divergence(mine) <= other.fun + 1e-6


def test_a_budget_that_is_met_already_changes_no_route() -> None:
    scores = scores_of(400, 4, 0)
    route = serve(scores, torch.tensor([0.1, -0.2, 0.0, 0.1]))
    load = load_of(route, 4)
    again = serve(scores, fit_bias(scores, even(400), COSTS, load, float(load @ COSTS)))
    assert torch.equal(route, again)


def test_the_ends_of_the_range_send_everything_to_one_expert() -> None:
    scores = scores_of(50, 4, 0)
    for expert, target in ((0, 0.5), (3, 0.9)):
        assert (serve(scores, fit_bias(scores, even(50), COSTS, even(4), target)) == expert).all()


def test_rounding_moves_no_prompt() -> None:
    scores = scores_of(200, 4, 0)
    bias = fit_bias(scores, even(200), COSTS, even(4), 0.62)
    assert float(margins(scores, bias).min()) > 1e-6


def test_prompts_that_score_alike_go_together() -> None:
    kinds = scores_of(5, 4, 0)
    of = torch.randint(5, (300,), generator=torch.Generator().manual_seed(0))
    bias = fit_bias(kinds[of], even(300), COSTS, even(4), 0.65)
    share = of.bincount(minlength=5).double() / 300
    every = torch.tensor(list(itertools.product(range(4), repeat=5)))
    served = float(COSTS[serve(kinds[of], bias)].mean())
    assert served == pytest.approx(float(share @ COSTS[serve(kinds, bias)]))
    assert abs(served - 0.65) <= float(share.max()) * float(COSTS[-1] - COSTS[0]) / 2
    assert (COSTS[every] @ share - 0.65).abs().min() <= abs(served - 0.65)


def test_one_prompt_repeated_goes_where_the_cost_is_near() -> None:
    scores = scores_of(1, 4, 0).repeat(9, 1)
    assert serve(scores, fit_bias(scores, even(9), COSTS, even(4), 0.88)).tolist() == [3] * 9


@pytest.fixture
def copied(finished, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints"))
    return tmp_path / "run"


@pytest.fixture
def between(finished) -> Callable[[float], float]:
    """The budget so far of the way from the cheapest expert to the dearest."""
    costs = [expert.fraction for expert in finished.record.experts]
    return lambda place: min(costs) + place * (max(costs) - min(costs))


@pytest.fixture(scope="session")
def traffic() -> list[str]:
    """Prompts of unequal length, some asked for more than once."""
    shapes, colours = ["star", "circle", "square", "ring"], ["red", "blue", "green", "black", "white"]
    pairs = [f"a {c} {s}" for c in colours for s in shapes] + [f'the word "{c.upper()}"' for c in colours]
    return pairs + pairs[::3] + ["dots"] * 3


def test_a_run_serves_by_its_calibration_and_goes_back(copied: Path, between, traffic: list[str]) -> None:
    host, own = default_host(), load_bundle(copied, default_host())
    fitted = calibrate(copied, f"macs:{between(0.7)}", traffic, host)
    assert not (copied / "calibration.json").exists()
    fitted.save(copied)
    served = aptp.load(copied, device="cpu").route(traffic)
    assert sum(route.cost for route in served) / len(traffic) == pytest.approx(fitted.after.cost)
    assert load_of(torch.tensor([r.expert for r in served]), 3).tolist() == pytest.approx(fitted.after.load)
    heaviest = 3 / len(traffic)
    assert abs(fitted.after.cost - between(0.7)) <= heaviest * (between(1) - between(0))
    bundle = load_bundle(copied, host)
    assert bundle.budget.target == between(0.7)
    assert torch.equal(bundle.own_bias, own.bias)

    lower = calibrate(copied, str(between(0.3)), traffic, host)
    assert lower.before == fitted.after
    lower.save(copied)
    again = calibrate(copied, str(between(0.7)), traffic, host)
    assert (again.bias, again.after) == (fitted.bias, fitted.after)
    undo(copied)
    assert torch.equal(load_bundle(copied, host).bias, own.bias)
    with pytest.raises(RequestError, match="no calibration to undo"):
        undo(copied)


def test_the_teacher_error_is_predicted_from_the_clusters(copied: Path, between, traffic: list[str]) -> None:
    file = copied / "record.json"
    record = json.loads(file.read_text())
    record["routing"]["cross"]["teacher_error"] = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]]
    file.write_text(json.dumps(record))
    fitted = calibrate(copied, str(between(0.5)), traffic, default_host())
    for effect in (fitted.before, fitted.after):
        assert effect.teacher_error == pytest.approx(effect.load[0] + 2 * effect.load[1] + 4 * effect.load[2])
    record["routing"]["cross"]["teacher_error"] = [[None] * 3] * 3
    file.write_text(json.dumps(record))
    assert calibrate(copied, str(between(0.5)), traffic, default_host()).after.teacher_error is None
    file.unlink()
    assert calibrate(copied, str(between(0.5)), traffic, default_host()).after.teacher_error is None


def test_a_bundle_is_calibrated_where_it_lies(finished, between, traffic: list[str], tmp_path: Path) -> None:
    host = default_host()
    aptp.load(finished.out, device="cpu").save_pretrained(tmp_path / "one")
    fitted = calibrate(tmp_path / "one", str(between(0.7)), traffic, host)
    fitted.save(tmp_path / "one")
    calibrated = aptp.load(tmp_path / "one", device="cpu")
    calibrated.save_pretrained(tmp_path / "two")
    for folder in ("one", "two"):
        assert load_bundle(tmp_path / folder, host).bias.tolist() == fitted.bias
    undo(tmp_path / "one")
    assert load_bundle(tmp_path / "one", host).bias.tolist() == calibrated.bundle.own_bias.tolist()
    other = calibrate(tmp_path / "two", str(between(0.3)), traffic, host)
    other.save(tmp_path / "two")
    assert load_bundle(tmp_path / "two", host).bias.tolist() == other.bias
    undo(tmp_path / "two")
    assert load_bundle(tmp_path / "two", host).bias.tolist() == fitted.bias


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("macs:0.01", r"outside what the experts of '.*' cost, 0\.\d{3} to 0\.\d{3}"),
        ("0.99", "outside what the experts"),
        ("params:0.7", "is in macs, not params"),
        ("macs:0", "a budget is a share of the dense cost"),
        ("nan", "not 'nan'"),
        ("macs:", "not 'macs:'"),
        ("cheap", "not 'cheap'"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(finished, traffic: list[str], budget: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        calibrate(finished.out, budget, traffic, default_host())


def test_runs_that_cannot_be_calibrated_are_refused(copied: Path, traffic: list[str]) -> None:
    with pytest.raises(RequestError, match="one expert"):
        calibrate(copied / "baselines/magnitude", "0.7", traffic, default_host())
    file = copied / "router/router.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "budget"}))
    with pytest.raises(RequestError, match="did not keep its budget"):
        calibrate(copied, "0.7", traffic, default_host())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 9, "bias": [0, 0, 0]}',
        '{"format": 1, "bias": [0, 0]}',
        '{"format": 1, "bias": [0, 0, NaN]}',
    ],
)
def test_a_damaged_calibration_is_refused(copied: Path, text: str) -> None:
    (copied / "calibration.json").write_text(text)
    with pytest.raises(RequestError, match=r"damaged|format 9"):
        load_bundle(copied, default_host())
