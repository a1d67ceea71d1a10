"""The k-means router: its clusters, and the codes that learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.errors import RequestError
from aptp.core.router import PromptBatch, serve
from aptp.plugins.routers._clusters import MOST, k_means, some_of
from aptp.plugins.routers.kmeans import KMeansRouter


def around(centres: int, each: int, seed: int = 0) -> PromptBatch:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(centres, 1, 8, generator=generator) + 0.1 * torch.randn(centres, each, 8, generator=generator)
    points = F.normalize(points.flatten(0, 1), dim=-1)
    return PromptBatch([f"prompt {i}" for i in range(len(points))], points)


def router(context) -> KMeansRouter:
    made = KMeansRouter(KMeansRouter.Options())
    made.setup(context)
    return made


def test_finds_the_clusters_and_their_centres(make_context) -> None:
    prompts = around(3, 10)
    made = router(make_context(prompts))
    route = serve(made.scores(prompts), torch.zeros(3))
    assert [len(part.unique()) for part in route.split(10)] == [1, 1, 1]
    assert len(route.unique()) == 3
    means = torch.stack([prompts.embeds[route == expert].mean(0) for expert in range(3)])
    torch.testing.assert_close(made.clusters.centres, means, atol=1e-5, rtol=0)


@given(prompts=st.integers(3, 40), experts=st.integers(1, 3), seed=st.integers(0, 99))
def test_scores_are_distances_to_the_centres(make_context, prompts: int, experts: int, seed: int) -> None:
    batch = around(prompts, 1, seed)
    made = router(make_context(batch, experts, seed=seed))
    expected = -(batch.embeds.double()[:, None] - made.clusters.centres.double()).square().sum(-1)
    torch.testing.assert_close(made.scores(batch), expected, atol=1e-12, rtol=0)


def test_the_centres_are_the_seed_s_and_do_not_learn(make_context) -> None:
    prompts = around(12, 2)
    one, same, other = (router(make_context(prompts, 4, seed=seed)).clusters.centres for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert [name for name, _ in router(make_context(prompts)).named_parameters()] == ["code_logits"]


def test_prompts_that_are_all_alike_are_defined(make_context) -> None:
    prompts = around(1, 1)[[0] * 8]
    made = router(make_context(prompts))
    assert len(serve(made.scores(prompts), torch.zeros(3)).unique()) == 1


def test_fewer_prompts_than_experts_are_refused(make_context) -> None:
    with pytest.raises(RequestError, match=r"3 experts are more than the 2 training prompts\."):
        router(make_context(around(1, 2)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_points_without_distances_are_told_and_do_not_end_the_program(value: float) -> None:
    points = torch.randn(20, 4)
    points[3, 1] = value
    with pytest.raises(FloatingPointError, match=r"not finite, or too large; lower search\.rate"):
        k_means(points, 3, seed=0)


def test_centres_are_those_of_all_points() -> None:
    """Of far more than faiss looks at by itself, 256 a centre: each centre is the mean of the points nearest to it."""
    points = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    points[:, 0] += torch.arange(5000) % 4 * 20.0
    centres = k_means(points, 4, seed=0)
    nearest = torch.cdist(points, centres).argmin(1)
    assert sorted(nearest.bincount().tolist()) == [1250] * 4, "no two share a cluster"
    means = torch.stack([points[nearest == place].mean(0) for place in range(4)])
    torch.testing.assert_close(centres, means, rtol=1e-4, atol=1e-4)


def test_clusters_of_very_many_prompts_are_looked_for_among_a_choice() -> None:
    points = torch.arange(MOST + 1000.0)[:, None]
    assert torch.equal(some_of(points[:MOST], 0), points[:MOST])
    some = some_of(points, 0)
    assert len(some) == len(some.unique()) == MOST
    assert torch.equal(some, some.sort(0).values)
    assert torch.equal(some, some_of(points, 0))
    assert not torch.equal(some, some_of(points, 1))
    assert (some >= MOST).any()
