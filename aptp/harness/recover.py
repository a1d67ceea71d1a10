"""Recovery: experts are fine-tuned on the prompts that the router sends them, with the dense model as teacher.

Phase `joint` trains one set of weights under all codes, each prompt through its own expert's gates; phase `own` slices
it and trains each expert apart, in the rest of one schedule of the rate. Where all steps are joint, the experts stay
slices of the one set, which is kept once. By default the steps are shared by all, so that N experts cost what one
static model costs; `steps.py` says how.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aptp.bundle import expert_folder
from aptp.core import distributed
from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.files import write_text
from aptp.core.gates import gated
from aptp.core.router import load_of, serve
from aptp.core.slicing import load_expert, save_expert, share_weights, slice
from aptp.harness.checkpoint import before
from aptp.harness.fresh import fresh_share, renew
from aptp.harness.low_rank import low_rank
from aptp.harness.search import Found
from aptp.harness.spread import OwnPhase, spread
from aptp.harness.steps import joint_steps, own_steps, parts_of_schedule, total_steps
from aptp.harness.training import (
    Example,
    Observe,
    batch_index,
    dropped,
    generator_for,
    micro_batches,
    recomputing,
    train,
    with_and_without,
    with_dropout,
)
from aptp.harness.workspace import Workspace


def make_experts(work: Workspace, found: Found) -> None:
    """Slice the dense model (with a pruner's updated weights, if any) into the experts, as `recover.start` says."""
    source = work.dense
    if found.weights:
        source = copy.deepcopy(work.dense)
        if unexpected := source.load_state_dict(found.weights, strict=False).unexpected_keys:
            raise RequestError(f"the pruner updated {unexpected[0]!r}, which is no weight of the model.")
    for index, architecture in enumerate(found.architectures):
        expert = slice(source, work.space, architecture)
        if work.config.recover.start == "fresh":
            renew(expert, work.dense, work.config.seed, index)
        save_expert(expert, architecture, work.path(expert_folder(index)))


def recover(work: Workspace, architectures: list[Architecture], bias: Float[Tensor, "experts"]) -> int:
    """Both phases; each expert's folder is replaced as it is done. Returns the training steps of all of them."""
    options = work.config.recover
    if options.start == "fresh":
        _warn_of_fresh_starts(work, len(architectures))
    route = distributed.shared(serve(work.scores(work.train), bias))
    load = load_of(route, len(architectures))
    total, joint = total_steps(options, load), joint_steps(options, load)
    if not total:
        return 0
    with work.progress.task("recovering the experts", total) as advance:

        def observe(who: str, done: int) -> Observe:
            def told(step: int, values: dict[str, float]) -> None:
                work.step_ended("recover", done + step, total, values)
                advance(note=f"{who}, loss {values['loss']:.4f}")

            return told

        if joint:
            together = copy.deepcopy(work.dense)
            codes = torch.stack([architecture.gates for architecture in architectures])
            part, _ = parts_of_schedule(options, work.config.experts)
            everything, told = torch.arange(len(route)), observe("all experts", 0)
            _train(work, together, "joint", everything, joint, told, part, lambda pictures: codes[route[pictures]])
            if joint == total and distributed.is_main():
                share_weights(together, work.path("experts"))
            for index, architecture in enumerate(architectures) if joint < total else ():
                own = work.path(f"checkpoints/recover-{index:02d}.safetensors")
                if distributed.is_main() and not (own.exists() or before(own).exists()):
                    save_expert(
                        slice(together, work.space, architecture), architecture, work.path(expert_folder(index))
                    )
            del together  # an expert that trains needs the room
            distributed.wait()
        shares = own_steps(work, route, load)
        if idle := [str(i) for i, steps in enumerate(shares) if not joint and not steps and load[i]]:
            work.warn(f"experts that serve without a step of recovery: {', '.join(idle)}; raise recover.steps.")
        phases = {i: OwnPhase((route == i).nonzero().flatten(), steps) for i, steps in enumerate(shares) if steps}
        if work.elsewhere and len(phases) > 1:
            spread(work, phases, work.elsewhere)
        for index, phase in phases.items():
            expert = train_apart(work, index, phase, observe(f"expert {index}", joint + sum(shares[:index])))
            if distributed.is_main():
                save_expert(expert, architectures[index], work.path(expert_folder(index)))
            del expert
    if distributed.is_main():
        _join_logs(work, total)
    distributed.wait()
    return total


def train_apart(work: Workspace, index: int, phase: OwnPhase, observe: Observe) -> nn.Module:
    """An expert at the end of its own phase, which goes on from its checkpoint."""
    expert = load_expert(work.path(expert_folder(index))).to(work.device)
    _, part = parts_of_schedule(work.config.recover, work.config.experts)
    _train(work, expert, f"{index:02d}", phase.pictures, phase.steps, observe, part)
    return expert


def _warn_of_fresh_starts(work: Workspace, experts: int) -> None:
    shares = [fresh_share(load_expert(work.path(expert_folder(index))), work.dense) for index in range(experts)]
    work.warn(
        f"recovery starts from experts of which {100 * fmean(shares):.0f}% of the values are newly initialised "
        "(recover.start=fresh), as the published code does; this shows what it costs and is not meant to be used."
    )


def _join_logs(work: Workspace, total: int) -> None:
    """`logs/recover.jsonl`: all phases one after the other, with the phase and the expert of each step."""
    lines: list[str] = []
    for path in [work.path("logs/recover-joint.jsonl"), *sorted(work.path("logs").glob("recover-[0-9]*.jsonl"))]:
        name = path.stem.removeprefix("recover-")
        who = {"phase": "joint", "expert": None} if name == "joint" else {"phase": "own", "expert": int(name)}
        for line in path.read_text().splitlines() if path.exists() else []:
            lines.append(json.dumps({**json.loads(line), **who, "step": len(lines), "total": total}))
    write_text(work.path("logs/recover.jsonl"), "".join(f"{line}\n" for line in lines))


def _train(
    work: Workspace,
    student: nn.Module,
    name: str,
    pictures: Int[Tensor, "pictures"],
    steps: int,
    observe: Observe,
    part: tuple[float, float],
    gates: Callable[[Int[Tensor, "rows"]], Float[Tensor, "rows gates"]] | None = None,
) -> None:
    """Train on `pictures`; where they are several experts', `gates` says how pictures are gated."""
    options, seed = work.config.recover, work.config.seed
    count = options.batch // 2 if options.guidance else options.batch
    with torch.no_grad():
        unconditional = work.denoiser.unconditional(work.pipeline, work.sample_size)
    nothing = {name: states.cpu() for name, states in unconditional.items()}

    def learn(step: int) -> dict[str, Tensor]:
        own = batch_index(len(pictures), count, step, seed, "recover", name)
        index = pictures[own]
        generator = generator_for(seed, "recover", name, step)
        lost = dropped(len(index), options.caption_dropout, generator)
        noised = work.noiser.draw(work.train.latents_of(index, generator), generator)
        parts = micro_batches(options, count)

        def example(place: int) -> Example:
            rows = parts[place]
            text = work.train.text_states(index[rows])
            if options.guidance:
                return with_and_without(work.noiser.example(noised, rows, text), nothing)
            return work.noiser.example(noised, rows, with_dropout(text, nothing, lost[rows]))

        def gating(place: int) -> AbstractContextManager[Any]:
            if gates is None:
                return nullcontext()
            return gated(student, work.space, gates(index[parts[place]]).to(work.device))

        examples = [example(place) for place in range(len(parts))]
        return work.distiller.learn(student, examples, options.weights, gating, options.guidance)

    student.requires_grad_(True)
    changes = low_rank(student, options.rank, seed, "recover", name) if options.rank else nullcontext()
    with recomputing(student, work.config.checkpointing), changes:
        train(
            module=student,
            options=options,
            steps=steps,
            checkpoint=work.path(f"checkpoints/recover-{name}.safetensors"),
            log=work.path(f"logs/recover-{name}.jsonl"),
            learn=learn,
            observe=observe,
            warn=work.warn,
            part=part,
        )
    student.requires_grad_(False).eval().zero_grad()
