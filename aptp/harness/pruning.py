"""What a static pruner is given in a run: the dense model, the budget, losses on training data, and the search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.core import distributed
from aptp.core.objective import weighted_mse
from aptp.core.pruner import Pruned, PrunerContext, StaticPruner
from aptp.harness.training import batch_index, generator_for, recomputing

if TYPE_CHECKING:
    from aptp.harness.workspace import Workspace


def pruner_context(work: Workspace) -> PrunerContext:
    """What the pruners of this run look at; there is no search before the data is prepared."""
    return PrunerContext(
        work.dense,
        work.space,
        work.cost_model,
        work.config.budget.target,
        work.config.seed,
        partial(_calibration_losses, work),
        work.pipeline.scheduler.config.num_train_timesteps,
    )


def prune(work: Workspace, pruner: StaticPruner, search: Callable[[], Pruned]) -> Pruned:
    """Ask a pruner, with the weights of the dense model differentiable except while it searches."""

    def searched() -> Pruned:
        with differentiable(work.dense, False):
            return search()

    with looking_at_weights(work):
        return pruner.prune(dataclasses.replace(pruner_context(work), search=searched))


@contextmanager
def looking_at_weights(work: Workspace) -> Iterator[None]:
    """The dense model with differentiable weights, its activations computed again where the run says so."""
    with differentiable(work.dense, True), recomputing(work.dense, work.config.checkpointing):
        yield


@contextmanager
def differentiable(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Let all weights require a gradient, or none, and put back what was."""
    before = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(wanted)
    try:
        yield
    finally:
        for parameter, state in zip(module.parameters(), before, strict=True):
            parameter.requires_grad_(state)


def _calibration_losses(work: Workspace, *, batches: int, timestep: int | None = None) -> Iterator[Float[Tensor, ""]]:
    """The denoising losses of training batches (see `CalibrationLoss`), with all that saves memory in a search."""
    options, seed = work.config.search, work.config.seed
    size = max(1, options.batch // (distributed.processes() * options.accumulate))
    for step in range(batches):
        index = batch_index(len(work.train), options.batch, step, seed, "calibration")
        noised = work.noiser.draw(work.train.latents_of(index), generator_for(seed, "calibration", step), timestep)
        for rows in (slice(start, start + size) for start in range(0, options.batch, size)):
            example = work.noiser.example(noised, rows, work.train.text_states(index[rows]))
            prediction = work.distiller.predict(work.dense, example)
            weight = example.diffused.weight if timestep is None else torch.ones_like(example.diffused.weight)
            yield weighted_mse(prediction, example.diffused.target, weight) * len(weight) / options.batch
