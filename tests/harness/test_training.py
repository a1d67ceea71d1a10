"""Batches, randomness by step, the loop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aptp.config import TrainingOptions, Weights
from aptp.harness.training import (
    batch_index,
    dropped,
    generator_for,
    guided,
    micro_batches,
    rate_factor,
    train,
    weighted,
    with_dropout,
)


@given(count=st.integers(1, 50), batch=st.integers(1, 70), epochs=st.integers(1, 3))
def test_every_epoch_has_every_example_once(count: int, batch: int, epochs: int) -> None:
    steps = -(-count * epochs // batch)
    index = torch.cat([batch_index(count, batch, step, 0, "x") for step in range(steps)])
    assert len(index) == steps * batch
    for epoch in index[: count * epochs].view(epochs, count):
        assert sorted(epoch.tolist()) == list(range(count))


def test_epochs_and_stages_have_orders_of_their_own() -> None:
    first, second = batch_index(40, 80, 0, 0, "search").view(2, 40)
    assert not torch.equal(first, second)
    assert not torch.equal(first, batch_index(40, 40, 0, 0, "recover"))
    assert not torch.equal(first, batch_index(40, 40, 0, 1, "search"))
    assert torch.equal(first, batch_index(40, 40, 0, 0, "search"))


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.integers(0, 99)), min_size=2, unique=True))
def test_generators_depend_on_their_whole_key(keys: list[tuple]) -> None:
    drawn = [tuple(torch.rand(4, generator=generator_for(*key)).tolist()) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn[0] == tuple(torch.rand(4, generator=generator_for(*keys[0])).tolist())


def test_draws_of_neighbouring_steps_are_unrelated() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator_for(0, "search", step)) for step in range(4)])
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.1


def fit(
    folder: Path,
    module: nn.Module,
    stop: int | None = None,
    warnings: list[str] | None = None,
    rates: dict[str, float] | None = None,
) -> list[float]:
    """Ten steps towards zero; `stop` interrupts before that step."""
    losses: list[float] = []

    def learn(step: int) -> dict[str, torch.Tensor]:
        if step == stop:
            raise KeyboardInterrupt
        noise = torch.randn(4, 3, generator=generator_for(0, step))
        loss = module(noise).square().mean()
        loss.backward()
        return {"loss": loss}

    train(
        module=module,
        options=TrainingOptions(rate=0.1),
        steps=10,
        checkpoint=folder / "c.safetensors",
        log=folder / "log.jsonl",
        learn=learn,
        observe=lambda step, values: losses.append(round(values["loss"], 6)),
        warn=warnings.append if warnings is not None else pytest.fail,
        rates=rates,
    )
    return losses


def test_a_resumed_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aptp.harness.training.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("aptp.harness.training.CHECKPOINT_SHARE", math.inf)
    whole, resumed = nn.Linear(3, 2), nn.Linear(3, 2)
    resumed.load_state_dict(whole.state_dict())
    losses = fit(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "resumed", resumed, stop=6)
    other = nn.Linear(3, 2)
    assert fit(tmp_path / "resumed", other) == losses
    assert torch.equal(whole.weight, other.weight)
    assert (tmp_path / "whole/log.jsonl").read_bytes() == (tmp_path / "resumed/log.jsonl").read_bytes()


def test_resumed_from_the_one_before_a_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aptp.harness.training.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("aptp.harness.training.CHECKPOINT_SHARE", math.inf)
    whole, resumed, warnings = nn.Linear(3, 2), nn.Linear(3, 2), []
    resumed.load_state_dict(whole.state_dict())
    losses = fit(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "resumed", resumed, stop=6)
    newest = tmp_path / "resumed/c.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    other = nn.Linear(3, 2)
    assert fit(tmp_path / "resumed", other, warnings=warnings) == losses
    assert len(warnings) == 1
    assert torch.equal(whole.weight, other.weight)
    assert (tmp_path / "whole/log.jsonl").read_bytes() == (tmp_path / "resumed/log.jsonl").read_bytes()


def test_parameters_have_rates_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's first step moves a parameter by its rate; and a resumed stage goes on with each parameter's own state."""
    monkeypatch.setattr("aptp.harness.training.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("aptp.harness.training.CHECKPOINT_SHARE", math.inf)
    rates = {"weight": 0.25, "nobody's": 9.0}
    module, whole, halted = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    for other in (whole, halted):
        other.load_state_dict(module.state_dict())
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "one", module, stop=1, rates=rates)
    for name, rate in (("weight", 0.025), ("bias", 0.1)):
        moved = (module.get_parameter(name) - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=1e-6)
    fit(tmp_path / "whole", whole, rates=rates)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "halted", halted, stop=5, rates=rates)
    again = nn.Linear(3, 2)
    fit(tmp_path / "halted", again, rates=rates)
    assert torch.equal(again.weight, whole.weight)
    assert torch.equal(again.bias, whole.bias)


def test_micro_batches_are_equal_parts_of_the_batch() -> None:
    parts = micro_batches(TrainingOptions(batch=12, accumulate=3))
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_answers_are_guided_as_a_pipeline_guides_them() -> None:
    text, nothing = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    joined = guided(torch.cat([text, nothing]), 3.0) * math.hypot(3, 2)
    assert torch.allclose(joined, nothing + 3.0 * (text - nothing), atol=1e-5)


@given(st.tuples(*[st.floats(0, 9)] * 3), st.tuples(*[st.floats(0, 9)] * 3))
def test_each_term_has_its_own_weight(weights: tuple[float, ...], values: tuple[float, ...]) -> None:
    names = ("denoising", "distillation", "blocks")
    terms = dict(zip(names, map(torch.tensor, values), strict=True))
    whole = weighted(terms, Weights(**dict(zip(names, weights, strict=True))))
    assert float(whole) == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)), rel=1e-5, abs=1e-6)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    nn.init.constant_(module.weight, torch.inf)
    with pytest.raises(FloatingPointError, match="step 0 is"):
        fit(tmp_path, module)


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, [0.5, 0.75, 0.5, 0.25]),
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 4, [0.25, 0.5, 0.75, 1]),
    ],
)
def test_the_rate_rises_and_follows_its_schedule(schedule: str, warmup: int, factors: list[float]) -> None:
    options = TrainingOptions(schedule=schedule, warmup=warmup)
    assert [rate_factor(options, 4, step) for step in range(4)] == factors


def test_a_phase_takes_its_part_of_a_schedule() -> None:
    linear, constant = (TrainingOptions(schedule=schedule) for schedule in ("linear", "constant"))
    whole = [rate_factor(linear, 8, step) for step in range(8)]
    first = [rate_factor(linear, 6, step, (0, 0.75)) for step in range(6)]
    second = [rate_factor(linear, 2, step, (0.75, 1)) for step in range(2)]
    assert first + second == pytest.approx(whole)
    assert rate_factor(TrainingOptions(warmup=2), 2, 0, (0.75, 1)) == pytest.approx(0.125), "Adam starts anew, too"
    assert rate_factor(constant, 2, 1, (0.75, 1)) == 1


def test_captions_are_dropped_as_often_as_asked() -> None:
    text, nothing = {"a": torch.ones(4000, 3, 2)}, {"a": torch.zeros(1, 3, 2)}
    mixed = with_dropout(text, nothing, dropped(4000, 0.1, torch.Generator().manual_seed(0)))["a"]
    rows = mixed.flatten(1)
    assert ((rows == 0).all(1) | (rows == 1).all(1)).all(), "a caption is dropped as a whole"
    assert 0.08 < float((rows == 0).all(1).float().mean()) < 0.12
    for probability in (0.0, 1.0):
        same = with_dropout(text, nothing, dropped(4000, probability, torch.Generator()))["a"]
        assert (same == 1 - probability).all()
