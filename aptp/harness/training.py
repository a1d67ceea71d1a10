"""What every training stage shares: batches by step number, logs and checkpoints.

Everything random in a step is drawn from generators seeded by (run seed, stage, step), so a resumed stage needs no
random state: a step is the same step whenever it runs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aptp.config import DistillOptions, TrainingOptions, Weights
from aptp.core.denoiser import Denoiser, TextStates
from aptp.core.errors import RequestError, gist
from aptp.core.files import replacing, write_text
from aptp.core.objective import Diffused, block_distillation, watch, weighted_mse

CHECKPOINT_SECONDS = 15.0
"""Time between checkpoints; which step is saved changes nothing that is computed."""


def generator_for(*key: Any) -> torch.Generator:
    """A generator seeded by what it is for."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def batch_index(count: int, batch: int, step: int, *key: Any) -> Int[Tensor, "batch"]:
    """The examples of a step: epochs of `count` in an order drawn anew for each; a batch may span two."""
    start, index = step * batch, []
    while len(index) < batch:
        epoch, offset = divmod(start + len(index), count)
        order = torch.randperm(count, generator=generator_for(*key, "epoch", epoch))
        index += order[offset : offset + batch - len(index)].tolist()
    return torch.tensor(index)


class Example(NamedTuple):
    """A batch of noised pictures with the text that conditions them."""

    diffused: Diffused
    timesteps: Num[Tensor, "batch"]
    text: TextStates


class Taught(NamedTuple):
    """The teacher's answer and its blocks' outputs."""

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
        noise = torch.randn(latents.shape, generator=generator)
        first, end = (0, self.scheduler.config.num_train_timesteps) if timestep is None else (timestep, timestep + 1)
        timesteps = torch.randint(first, end, (len(latents),), generator=generator)
        diffused = self.denoiser.diffuse(self.scheduler, latents, noise, timesteps)
        moved = {name: states.to(self.device) for name, states in text.items()}
        diffused = Diffused(*(part.to(self.device) for part in diffused))
        return Example(diffused, diffused.timesteps, moved)


class Distiller:
    """The objective of a student with the dense model as teacher: denoising, output and block distillation."""

    def __init__(self, denoiser: Denoiser, teacher: torch.nn.Module, options: DistillOptions) -> None:
        self.denoiser, self.teacher, self.options = denoiser, teacher, options
        self.blocks = denoiser.blocks(teacher)

    def terms(self, student: torch.nn.Module, example: Example, taught: Taught | None) -> dict[str, Tensor]:
        """The unweighted terms by name; without a teacher, the denoising one alone."""
        with watch(student, self.blocks if taught else ()) as seen:
            prediction = self.denoiser.predict(student, example.diffused.noisy, example.timesteps, example.text)
        terms = {"denoising": weighted_mse(prediction, example.diffused.target, example.diffused.weight)}
        if taught:
            terms["distillation"] = (prediction - taught.answer).square().mean()
            by_variance = self.options.block_scale == "variance"
            terms["blocks"] = block_distillation(seen, taught.blocks, by_variance=by_variance)
        return terms

    @torch.no_grad()
    def teach(self, example: Example, weights: Weights) -> Taught | None:
        """What the dense model says, or None where no term with a weight asks for it; ask before its gates are set."""
        if not weights.distill:
            return None
        with watch(self.teacher, self.blocks) as outputs:
            answer = self.denoiser.predict(self.teacher, example.diffused.noisy, example.timesteps, example.text)
        return Taught(answer, outputs)


def weighted(terms: dict[str, Tensor], weights: Weights) -> Tensor:
    """The sum of the objective's terms, each times its weight."""
    return sum(weight * terms[name] for name, weight in weights if name in terms)


def with_dropout(
    text: TextStates, nothing: TextStates, probability: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Captions dropped at random for `nothing`: a model keeps its unconditional branch for classifier-free guidance."""
    dropped = torch.rand(len(next(iter(text.values()))), generator=generator) < probability
    return {
        name: torch.where(
            dropped.to(states.device).view(-1, *[1] * (states.ndim - 1)), nothing[name].to(states), states
        )
        for name, states in text.items()
    }


class Log:
    """One JSON object a step; a resumed stage keeps the first `start` lines (`kept`) and goes on from there."""

    def __init__(self, path: Path, start: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines()[:start] if path.exists() else []
        self.kept = [json.loads(line) for line in lines]
        write_text(path, "".join(f"{line}\n" for line in lines))
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one line."""
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps(rounded) + "\n")
        self._file.flush()


class Checkpoint:
    """The state of a training loop in one safetensors file: modules, optimizer and the number of steps done."""

    def __init__(self, path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.module, self.optimizer = path, module, optimizer

    def save(self, step: int) -> None:
        """Write atomically that `step` steps are done."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        with replacing(self.path) as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, {"step": str(step)})

    def restore(self) -> int:
        """Load what was saved, if anything; the number of steps done.

        Raises:
            RequestError: if the file is damaged, or belongs to another model.
        """
        if not self.path.is_file():
            return 0
        try:
            return self._load()
        except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise RequestError(
                f"checkpoint {str(self.path)!r} is damaged ({gist(error)}); delete it to repeat its stage."
            ) from error

    def _load(self) -> int:
        with safe_open(self.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step = int(file.metadata()["step"])
        self.module.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("module.")})
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                states.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        return step


def rate_factor(options: TrainingOptions, steps: int, step: int) -> float:
    """What the learning rate of a step is multiplied by: a linear rise over the warm-up, then its schedule."""
    rise = min(1.0, (step + 1) / max(options.warmup, 1))
    return rise * (1 - step / steps if options.schedule == "linear" else 1.0)


def train(
    *,
    module: torch.nn.Module,
    options: TrainingOptions,
    steps: int,
    checkpoint: Path,
    log: Path,
    step_loss: Callable[[int], dict[str, Tensor]],
    observe: Callable[[int, dict[str, float]], None],
) -> None:
    """Train the parameters of `module` with AdamW, from the checkpoint on.

    Args:
        steps: of this phase; those of `options` are the stage's, which may have several.
        step_loss: gives the named scalars of a step, the one called `loss` being minimised.
        observe: told every step's number and scalars, those of steps done before included (from the log).

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        (p for p in module.parameters() if p.requires_grad), lr=options.rate, weight_decay=0.0
    )
    saved = Checkpoint(checkpoint, module, optimizer)
    start = saved.restore()
    lines = Log(log, start)
    for step, values in enumerate(lines.kept):
        observe(step, values)
    last_save = time.monotonic()
    for step in range(start, steps):
        optimizer.param_groups[0]["lr"] = options.rate * rate_factor(options, steps, step)
        values = step_loss(step)
        if not torch.isfinite(values["loss"]):
            raise FloatingPointError(f"the loss of step {step} is {values['loss'].item()}; lower the learning rate.")
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        optimizer.step()
        scalars = {name: float(value.detach()) for name, value in values.items()}
        lines.write(step=step, total=steps, **scalars)
        if step + 1 == steps or time.monotonic() - last_save > CHECKPOINT_SECONDS:
            saved.save(step + 1)
            last_save = time.monotonic()
        observe(step, scalars)
