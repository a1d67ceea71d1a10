"""Serving: who gets a prompt, and how evenly experts are used."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.router import SCORED, PromptBatch, load_of, perplexity, scores_of, serve


@given(st.integers(1, 8), st.integers(1, 20))
def test_perplexity_of_even_use_is_the_number_of_experts(experts: int, each: int) -> None:
    assert perplexity(load_of(torch.arange(experts).repeat(each), experts)) == pytest.approx(experts)
    assert perplexity(load_of(torch.zeros(each, dtype=torch.long), experts)) == pytest.approx(1)


def test_perplexity_of_uneven_use() -> None:
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert perplexity(load_of(torch.tensor([0, 0, 0, 2]), 3)) == pytest.approx(math.exp(entropy))


def test_the_bias_moves_routes_and_the_lowest_index_wins_a_tie() -> None:
    scores = torch.tensor([[0.2, 0.1], [0.1, 0.1]])
    assert serve(scores, torch.zeros(2)).tolist() == [0, 0]
    assert serve(scores, torch.tensor([0.0, 0.05])).tolist() == [0, 1]


@pytest.mark.parametrize("count", [0, 1, SCORED, 2 * SCORED + 1])
def test_many_prompts_are_scored_a_part_at_a_time(count: int) -> None:
    asked: list[int] = []

    class Doubling:
        def scores(self, prompts: PromptBatch) -> torch.Tensor:
            asked.append(len(prompts))
            return 2 * prompts.embeds.float()

    embeds = torch.arange(3.0 * count).view(count, 3)
    scores = scores_of(Doubling(), PromptBatch([str(i) for i in range(count)], embeds))
    assert torch.equal(scores, 2 * embeds.double())
    assert scores.dtype == torch.float64
    assert asked == ([SCORED] * (count // SCORED) + ([count % SCORED] if count % SCORED else []) or [0])
