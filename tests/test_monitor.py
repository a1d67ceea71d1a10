"""The monitor against plain sums, at the edges of what it tolerates, and under many threads."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

import aptp
from aptp.core.errors import RequestError
from aptp.core.router import PromptBatch
from aptp.monitor import Monitor
from aptp.neighbours import Neighbours
from aptp.routing import DENSE, Route

COSTS = (0.5, 0.7, 0.9)


def routes(experts: list[int]) -> list[Route]:
    return [Route("a", expert, 1.0 if expert == DENSE else COSTS[expert], 0.1) for expert in experts]


def drawn(shares: tuple[float, float, float], count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator).tolist()


@given(st.lists(st.lists(st.integers(-1, 2), max_size=40), max_size=12), st.integers(100, 200))
def test_counts_and_means_are_those_of_what_was_seen(calls: list[list[int]], window: int) -> None:
    monitor = Monitor(3, 0.66, window=window)
    for call in calls:
        monitor.observe(routes(call))
    seen = [expert for call in calls for expert in call]
    report = monitor.report()
    assert (report.served, report.last) == (len(seen), min(len(seen), window))
    assert Counter(report.experts) == Counter(seen)
    assert {0, 1, 2} <= report.experts.keys()
    if report.last < 100:
        assert report.cost is None
    else:
        costs = torch.tensor([route.cost for route in routes(seen[-window:])], dtype=torch.float64)
        within = 2.576 * float(costs.std()) / len(costs) ** 0.5
        assert report.cost.mean == pytest.approx(float(costs.mean()))
        assert report.cost.high - report.cost.mean == pytest.approx(within)
        assert report.cost.mean - report.cost.low == pytest.approx(within)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    shares = (0.6, 0.3, 0.1)
    mean, covered = sum(s * c for s, c in zip(shares, COSTS, strict=True)), 0
    for seed in range(300):
        monitor = Monitor(3, 0.66, window=200)
        monitor.observe(routes(drawn(shares, 200, seed)))
        cost = monitor.report().cost
        covered += cost.low <= mean <= cost.high
    assert covered >= 290  # of 300, 297 are expected


@pytest.mark.parametrize(("budget", "words"), [(0.6, None), (0.605, None), (0.5, "over it"), (0.7, "under it")])
def test_it_says_when_the_budget_no_longer_holds(budget: float, words: str | None) -> None:
    monitor = Monitor(3, budget)
    monitor.observe(routes(drawn((0.6, 0.3, 0.1), 5000)))  # 0.6 on average
    alarms = monitor.report().alarms
    assert len(alarms) == (words is not None)
    for alarm in alarms:
        assert f"the budget of {budget:.3f} no longer holds: the last 1,000 prompts" in alarm
        assert words in alarm


def test_old_traffic_is_forgotten() -> None:
    monitor = Monitor(3, 0.6, window=400)
    monitor.observe(routes([2] * 5000))
    assert monitor.report().alarms
    monitor.observe(routes(drawn((0.6, 0.3, 0.1), 400)))
    report = monitor.report()
    assert report.alarms == []
    assert (report.served, report.last) == (5400, 400)


@pytest.fixture(scope="module")
def known() -> Neighbours:
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(8, generator=generator)
    embeds = normalize(centre + 0.5 * torch.randn(400, 8, generator=generator), dim=-1)
    return Neighbours(PromptBatch([str(i) for i in range(400)], embeds))


def like(known: Neighbours, count: int, seed: int) -> torch.Tensor:
    """Embeddings drawn as the training prompts' were."""
    first = torch.Generator().manual_seed(0)
    centre = torch.randn(8, generator=first)
    noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return normalize(centre + 0.5 * noise, dim=-1)


def test_traffic_like_the_training_prompts_is_not_far(known: Neighbours) -> None:
    monitor = Monitor(3, 0.5, known)
    monitor.observe(routes([0] * 1000), like(known, 1000, 1))
    far = monitor.report().far
    assert far.low <= 0.05 <= far.high
    assert monitor.report().alarms == []


def test_traffic_of_another_kind_is_far(known: Neighbours) -> None:
    monitor = Monitor(3, 0.5, known)
    others = normalize(torch.randn(1000, 8, generator=torch.Generator().manual_seed(2)), dim=-1)
    monitor.observe(routes([0] * 1000), others)
    report = monitor.report()
    nearest = (others @ known.prompts.embeds.T).amax(1)
    among = known.prompts.embeds @ known.prompts.embeds.T
    usual = (1 - among.fill_diagonal_(-1).amax(1)).quantile(0.95)
    assert report.far.mean == pytest.approx(float((1 - nearest > usual).float().mean()), abs=2e-3)
    (alarm,) = report.alarms
    assert "the traffic is not what the run was trained on" in alarm


def test_without_embeddings_distance_is_not_watched(known: Neighbours) -> None:
    monitor = Monitor(3, 0.5, known)
    monitor.observe(routes([0] * 500))
    monitor.observe([])
    assert monitor.report().far is None


def test_threads_lose_nothing(known: Neighbours) -> None:
    monitor, embeds = Monitor(3, 0.5, known, window=100), like(known, 3, 3)

    def work() -> None:
        for _ in range(200):
            monitor.observe(routes([0, 1, 2]), embeds)
            monitor.report()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = monitor.report()
    assert report.experts == {0: 1600, 1: 1600, 2: 1600}
    assert report.last == 100


def test_a_small_window_is_refused() -> None:
    with pytest.raises(RequestError, match="a window of 99 prompts"):
        Monitor(3, 0.5, window=99)


def test_a_pipeline_tells_its_monitor_of_every_route(finished) -> None:
    pipe = aptp.load(finished.out, device="cpu")
    pipe.monitor = aptp.Monitor.of(pipe.bundle)
    asked = ["a red star", 'the word "STOP"', "dots"]
    served = pipe.route(asked * 40)
    pipe.explain(asked)
    report = pipe.monitor.report()
    assert (report.served, report.budget) == (120, finished.config.budget.target)
    assert Counter(route.expert for route in served) == Counter(report.experts)
    assert report.far is not None
    pipe(asked[:1], num_inference_steps=1)
    assert pipe.monitor.report().served == 121
    json.dumps(dataclasses.asdict(report), allow_nan=False)


def test_a_run_that_kept_no_budget_is_refused(finished) -> None:
    bundle = dataclasses.replace(aptp.load(finished.out, device="cpu").bundle, budget=None)
    with pytest.raises(RequestError, match="did not keep its budget"):
        Monitor.of(bundle)
