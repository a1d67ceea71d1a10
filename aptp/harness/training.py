"""What every training stage shares: batches by step number, the objective, the loop.

Everything random in a step is drawn from generators seeded by (run seed, stage, step), so a resumed stage needs no
random state: a step is the same step whenever it runs. The draws are those of the global batch, of which each of
several processes takes its rows, so a step is also the same step on any number of them.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from aptp.config import DistillOptions, TrainingOptions, Weights
from aptp.core import distributed
from aptp.core.denoiser import Denoiser, TextStates
from aptp.core.objective import Diffused, block_distillation, block_variances, moments_of, watch, weighted_mse
from aptp.harness.checkpoint import Checkpoint, Log

CHECKPOINT_SECONDS = 15.0
"""Time between checkpoints, at least; which step is saved changes nothing that is computed."""
CHECKPOINT_SHARE = 0.05
"""Of the time, at most so much goes into saving them."""


Observe = Callable[[int, dict[str, float]], None]
"""Is told the number of a step, and its scalars."""


def generator_for(*key: Any) -> torch.Generator:
    """A generator seeded by what it is for."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def batch_index(count: int, batch: int, step: int, *key: Any) -> Int[Tensor, "batch"]:
    """The examples of a step: epochs of `count` in an order drawn anew for each; a batch may span two."""
    start, index = step * batch, list[int]()
    while len(index) < batch:
        epoch, offset = divmod(start + len(index), count)
        order = torch.randperm(count, generator=generator_for(*key, "epoch", epoch))
        index += order[offset : offset + batch - len(index)].tolist()
    return torch.tensor(index)


def micro_batches(options: TrainingOptions, batch: int | None = None) -> list[slice]:
    """The rows of the global batch that this process takes, in the equal parts that it calls the model with.

    Args:
        batch: the rows of all, `options.batch` by default.
    """
    size = (batch or options.batch) // (distributed.processes() * options.accumulate)
    first = distributed.rank() * options.accumulate
    return [slice(size * place, size * (place + 1)) for place in range(first, first + options.accumulate)]


class Example(NamedTuple):
    """A batch of noised pictures with the text that conditions them."""

    diffused: Diffused
    timesteps: Num[Tensor, "batch"]
    text: TextStates


class Taught(NamedTuple):
    """The teacher's answer and its blocks' outputs, none where these have no weight."""

    answer: Float[Tensor, "batch channels height width"]
    blocks: dict[str, Tensor]


class Noiser:
    """Makes training examples of latents with a family's diffusion process."""

    def __init__(self, denoiser: Denoiser, scheduler: Any, device: torch.device) -> None:
        self.denoiser, self.scheduler, self.device = denoiser, scheduler, device

    def __call__(
        self, latents: Tensor, text: TextStates, generator: torch.Generator, timestep: int | None = None
    ) -> Example:
        """Noise the latents, each to a random time or all to `timestep`."""
        return self.example(self.draw(latents, generator, timestep), slice(None), text)

    def draw(self, latents: Tensor, generator: torch.Generator, timestep: int | None = None) -> Diffused:
        """The same without text and on the CPU, for a global batch whose rows become examples."""
        noise = torch.randn(latents.shape, generator=generator)
        first, end = (0, self.scheduler.config.num_train_timesteps) if timestep is None else (timestep, timestep + 1)
        timesteps = torch.randint(first, end, (len(latents),), generator=generator)
        return self.denoiser.diffuse(self.scheduler, latents, noise, timesteps)

    def example(self, noised: Diffused, rows: slice, text: TextStates) -> Example:
        """Some rows of noised pictures, with the text of these rows, on the device."""
        diffused = Diffused(*(part[rows].to(self.device) for part in noised))
        moved = {name: states.to(self.device) for name, states in text.items()}
        return Example(diffused, diffused.timesteps, moved)


class Distiller:
    """The objective of a student with the dense model as teacher: denoising, output and block distillation."""

    def __init__(
        self, denoiser: Denoiser, teacher: torch.nn.Module, options: DistillOptions, precision: str = "fp32"
    ) -> None:
        self.denoiser, self.teacher, self.options, self.precision = denoiser, teacher, options, precision
        self.blocks = denoiser.blocks(teacher)

    def learn(
        self,
        student: torch.nn.Module,
        examples: Sequence[Example],
        weights: Weights,
        gating: Callable[[int], AbstractContextManager[Any]] = lambda place: nullcontext(),
        guidance: float = 0,
    ) -> dict[str, Tensor]:
        """Add the gradient of the mean objective of equal micro-batches to what the student's output depends on.

        Args:
            guidance: if not 0, the second half of an example's rows are those of the first without their text, and the
                students' guided answers are compared with the teacher's.
            gating: the context of a micro-batch, by its place. It lasts over the backward pass, in which blocks that
                kept no activations are computed again and need their gates again.

        Returns:
            The unweighted terms by name, and `loss`, their weighted sum: means over this process's examples.
        """
        # of several the teacher is asked once more, for all its answers together take what micro-batches save
        kept = self.teach(examples[0], weights) if len(examples) == 1 else None
        variances = None
        if weights.blocks and self.options.block_scale == "variance":
            said = (kept or self.teach(example, weights) for example in examples)
            variances = block_variances([moments_of(taught.blocks) for taught in said if taught])
        means: dict[str, Tensor] = {}
        for place, example in enumerate(examples):
            taught = kept or self.teach(example, weights)
            with gating(place):
                terms = self.terms(student, example, taught, variances, guidance)
                (weighted(terms, weights) / len(examples)).backward()
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + value.detach() / len(examples)
        return {"loss": weighted(means, weights), **means}

    def terms(
        self,
        student: torch.nn.Module,
        example: Example,
        taught: Taught | None,
        variances: Float[Tensor, "blocks"] | None = None,
        guidance: float = 0,
    ) -> dict[str, Tensor]:
        """The unweighted terms by name; without a teacher, the denoising one alone."""
        with watch(student, self.blocks if taught and taught.blocks else ()) as seen:
            prediction = self.predict(student, example)
        terms = {"denoising": weighted_mse(prediction, example.diffused.target, example.diffused.weight)}
        if taught:
            error = prediction - taught.answer
            terms["distillation"] = (guided(error, guidance) if guidance else error).square().mean()
        if taught and taught.blocks:
            by_variance = self.options.block_scale == "variance"
            terms["blocks"] = block_distillation(seen, taught.blocks, by_variance, variances)
        return terms

    @torch.no_grad()
    def teach(self, example: Example, weights: Weights) -> Taught | None:
        """What the dense model says, or None where no term with a weight asks for it; ask before its gates are set."""
        if not weights.distill:
            return None
        with watch(self.teacher, self.blocks if weights.blocks else ()) as outputs:
            answer = self.predict(self.teacher, example)
        return Taught(answer, outputs)

    def predict(self, model: torch.nn.Module, example: Example) -> Float[Tensor, "batch channels height width"]:
        """A model's answer in the run's precision, as float32."""
        noisy = example.diffused.noisy
        with autocast(noisy.device, self.precision):
            return self.denoiser.predict(model, noisy, example.timesteps, example.text).float()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a model computes in a run's precision; weights, losses and the optimizer stay in float32.

    It is torch's own and not accelerate's, which is one for the whole program and could not be another's of two runs.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def recomputing(model: Any, wanted: bool) -> Iterator[None]:
    """Let a diffusers model keep no activations within its blocks, but compute them again in the backward pass."""
    if not wanted:
        yield
        return
    model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        model.disable_gradient_checkpointing()


def guided(
    answers: Float[Tensor, "twice channels height width"], strength: float
) -> Float[Tensor, "batch channels height width"]:
    """Answers with text, and after them those without, as classifier-free guidance joins them (Ho and Salimans, 2022).

    Scaled so that independent errors of a size in both leave an error of that size.
    """
    with_text, without = answers.chunk(2)
    return (strength * with_text - (strength - 1) * without) / math.hypot(strength, strength - 1)


def weighted(terms: dict[str, Tensor], weights: Weights) -> Tensor:
    """The sum of the terms that have a weight, each times it."""
    return sum(weight * terms[name] for name, weight in weights if name in terms)


def dropped(count: int, probability: float, generator: torch.Generator) -> Bool[Tensor, "count"]:
    """Which of so many captions are left out, so that a model keeps its branch for classifier-free guidance."""
    return torch.rand(count, generator=generator) < probability


def with_dropout(text: TextStates, nothing: TextStates, dropped: Bool[Tensor, "batch"]) -> dict[str, Tensor]:
    """Text states with `nothing` for the dropped captions."""
    return {
        name: torch.where(
            dropped.to(states.device).view(-1, *[1] * (states.ndim - 1)), nothing[name].to(states), states
        )
        for name, states in text.items()
    }


def with_and_without(example: Example, nothing: TextStates) -> Example:
    """The rows of an example, and after them the same rows with `nothing` for their text."""
    return Example(
        Diffused(*(torch.cat([part, part]) for part in example.diffused)),
        torch.cat([example.timesteps, example.timesteps]),
        {
            name: torch.cat([states, nothing[name].to(states).expand_as(states)])
            for name, states in example.text.items()
        },
    )


WHOLE = (0.0, 1.0)
"""All of a schedule."""


def rate_factor(options: TrainingOptions, steps: int, step: int, part: tuple[float, float] = WHOLE) -> float:
    """What the learning rate of a step is multiplied by: a linear rise over the warm-up, then its schedule.

    Args:
        steps: of the phase.
        part: of the schedule, what the phase takes, from its begin to its end.
    """
    begin, end = part
    rise = min(1.0, (step + 1) / max(options.warmup, 1))
    return rise * (1 - begin - (end - begin) * step / steps if options.schedule == "linear" else 1.0)


def train(
    *,
    module: torch.nn.Module,
    options: TrainingOptions,
    steps: int,
    checkpoint: Path,
    log: Path,
    learn: Callable[[int], dict[str, Tensor]],
    observe: Observe,
    warn: Callable[[str], None],
    part: tuple[float, float] = WHOLE,
    rates: Mapping[str, float] | None = None,
) -> None:
    """Train the parameters of `module` with AdamW, from the checkpoint on.

    Several processes train the same module: gradients and scalars are the means of theirs.

    Args:
        steps: of this phase; those of `options` are the stage's, which may have several.
        learn: adds a step's gradients to the parameters' and gives its named scalars, `loss` being the one minimised.
        observe: told every step's number and scalars, those of steps done before included (from the log); by the main
            process alone.
        warn: told of a checkpoint that is damaged.
        part: of the rate's schedule, what this phase takes.
        rates: what the rate is multiplied by, by the name of a parameter; 1 for those that are not named.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    parameters = [parameter for _, parameter in named]
    by_rate: dict[float, list[Tensor]] = {}
    for name, parameter in named:
        by_rate.setdefault((rates or {}).get(name, 1.0), []).append(parameter)
    optimizer = torch.optim.AdamW([{"params": those} for those in by_rate.values()], lr=options.rate, weight_decay=0.0)
    saved = Checkpoint(checkpoint, module, optimizer)
    with distributed.main_first():
        start = saved.restore(warn)
    distributed.agree(module)
    main = distributed.is_main()
    lines = Log(log, start) if main else None
    for step, values in enumerate(lines.kept if lines else ()):
        observe(step, values)
    next_save = time.monotonic() + CHECKPOINT_SECONDS
    for step in range(start, steps):
        for group, factor in zip(optimizer.param_groups, by_rate, strict=True):
            group["lr"] = factor * options.rate * rate_factor(options, steps, step, part)
        optimizer.zero_grad(set_to_none=True)
        scalars = _means(learn(step))
        if not math.isfinite(scalars["loss"]):
            raise FloatingPointError(f"the loss of step {step} is {scalars['loss']}; lower the stage's rates.")
        distributed.average_gradients(parameters)
        optimizer.step()
        if not lines:
            continue
        lines.write(step=step, total=steps, **scalars)
        if step + 1 == steps or time.monotonic() > next_save:
            began = time.monotonic()
            lines.settle()
            saved.save(step + 1)
            took = time.monotonic() - began
            next_save = began + took + max(CHECKPOINT_SECONDS, took / CHECKPOINT_SHARE)
        observe(step, scalars)


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    """Scalars by name, each the mean of all processes'."""
    device = values["loss"].device
    means = distributed.mean(torch.stack([value.detach().double().to(device) for value in values.values()]))
    return dict(zip(values, means.tolist(), strict=True))
