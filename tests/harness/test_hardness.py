"""Whether hard prompts get costly experts."""

from __future__ import annotations

import pytest
import torch

from aptp.core.architecture import Architecture
from aptp.core.gates import gated
from aptp.harness.exam import answers
from aptp.harness.hardness import TIMES, hardness, hurt_of_pruning
from aptp.harness.training import generator_for
from aptp.harness.workspace import Workspace


@pytest.fixture
def work(open_work) -> Workspace:
    work = open_work(evaluate={"exam": 10})
    work.architectures = [Architecture.random(work.space, keep=keep, seed=0) for keep in (0.9, 0.5)]
    return work


COSTS = torch.tensor([0.9, 0.5]).double()


def test_hurt_is_that_of_the_masked_dense_model(work: Workspace) -> None:
    """The true slice before recovery, so gates on the dense model say the same."""
    index, generator = work.exam.index, generator_for(work.config.seed, "hardness")
    latents, text = work.validation.latents_of(index), work.validation.text_states(index)
    shares = []
    for timestep in (250, 750):
        example = work.noiser(latents, text, generator, timestep)
        dense = answers(work, work.dense, example)
        with gated(work.dense, work.space, work.architectures[1].gates):
            error = (answers(work, work.dense, example) - dense).square().mean((1, 2, 3))
        shares.append(error / error.mean())
    hurt = hurt_of_pruning(work, 1)
    assert hurt.mean() == pytest.approx(1)
    assert len(shares) == TIMES
    torch.testing.assert_close(hurt.float(), torch.stack(shares).mean(0), atol=1e-4, rtol=1e-3)


def test_says_whether_the_hurt_are_served_at_more_cost(work: Workspace) -> None:
    hurt = hurt_of_pruning(work, 1)
    hard_to_large = (hurt < hurt.median()).long()
    found, wrong_way = hardness(work, COSTS, hard_to_large), hardness(work, COSTS, 1 - hard_to_large)
    assert found["spearman"] == pytest.approx(-wrong_way["spearman"])
    assert found["spearman"] > 0.8
    assert -1 <= found["low"] <= found["spearman"] <= found["high"] <= 1
    assert found["prompts"] == 10
    assert found["clusters"] == len({work.validation.prompts().text[i] for i in work.exam.index})


def test_is_undefined_where_all_are_served_at_one_cost(work: Workspace) -> None:
    assert hardness(work, COSTS, torch.ones(10, dtype=torch.long)) is None
    assert hardness(work, COSTS[:1], torch.zeros(10, dtype=torch.long)) is None
    assert hardness(work, torch.ones(2).double(), torch.arange(10) % 2) is None


def test_the_record_has_it(finished) -> None:
    found = finished.record.routing["hardness"]
    assert set(found) == {"spearman", "low", "high", "prompts", "clusters"}
    assert found["prompts"] == finished.record.data["validation_pictures"]
