"""Recovery: experts are fine-tuned on the prompts that the router sends them, with the dense model as teacher.

Phase `joint` trains one set of weights under all codes, each prompt through its own expert's gates; phase `own` slices
it and trains each expert apart. The steps are shared by all, so that N experts cost what one static model costs.
"""

from __future__ import annotations

import copy
import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.files import write_text
from aptp.core.gates import gated
from aptp.core.router import serve
from aptp.core.slicing import load_expert, save_expert, slice
from aptp.harness.search import Found
from aptp.harness.training import Taught, batch_index, generator_for, train, with_dropout
from aptp.harness.workspace import Workspace, expert_folder


def make_experts(work: Workspace, found: Found) -> None:
    """Slice the dense model (with a pruner's updated weights, if any) into the experts."""
    source = work.dense
    if found.weights:
        source = copy.deepcopy(work.dense)
        if unexpected := source.load_state_dict(found.weights, strict=False).unexpected_keys:
            raise RequestError(f"the pruner updated {unexpected[0]!r}, which is no weight of the model.")
    for index, architecture in enumerate(found.architectures):
        save_expert(slice(source, work.space, architecture), architecture, work.path(expert_folder(index)))


def recover(work: Workspace, architectures: list[Architecture], bias: Float[Tensor, "experts"]) -> None:
    """Both phases; each expert's folder is replaced as it is done."""
    options = work.config.recover
    if not options.steps:
        return
    route = serve(work.scores(work.train), bias)
    load = route.bincount(minlength=len(architectures)).double() / len(route)
    joint = round(options.joint * options.steps) if len(architectures) > 1 else 0
    shares = _shared_out(options.steps - joint, load)
    with work.progress.task("recovering the experts", options.steps) as advance:

        def observe(who: str, done: int):
            def told(step: int, values: dict[str, float]) -> None:
                work.step_ended("recover", done + step, options.steps, values)
                advance(note=f"{who}, loss {values['loss']:.4f}")

            return told

        if joint:
            together = copy.deepcopy(work.dense)
            gates = torch.stack([architecture.gates for architecture in architectures])[route]
            _train(work, together, "joint", torch.arange(len(route)), joint, observe("all experts", 0), gates)
            for index, architecture in enumerate(architectures):
                folder = work.path(expert_folder(index))
                if not work.path(f"checkpoints/recover-{index:02d}.safetensors").exists():
                    save_expert(slice(together, work.space, architecture), architecture, folder)
        for index, architecture in enumerate(architectures):
            mine = (route == index).nonzero().flatten()
            if not shares[index]:
                continue
            expert = load_expert(work.path(expert_folder(index))).to(work.device)
            told = observe(f"expert {index}", joint + sum(shares[:index]))
            _train(work, expert, f"{index:02d}", mine, shares[index], told)
            save_expert(expert, architecture, work.path(expert_folder(index)))
    _join_logs(work, options.steps)


def _join_logs(work: Workspace, total: int) -> None:
    """`logs/recover.jsonl`: all phases one after the other, with the phase and the expert of each step."""
    lines = []
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
    observe: Any,
    gates: Float[Tensor, "pictures gates"] | None = None,
) -> None:
    options, seed = work.config.recover, work.config.seed
    with torch.no_grad():
        unconditional = work.denoiser.unconditional(work.pipeline, work.sample_size)
    nothing = {name: states.cpu() for name, states in unconditional.items()}

    def step_loss(step: int) -> dict[str, Tensor]:
        own = batch_index(len(pictures), options.batch, step, seed, "recover", name)
        index = pictures[own]
        generator = generator_for(seed, "recover", name, step)
        text = with_dropout(work.train.text_states(index), nothing, options.caption_dropout, generator)
        example = work.noiser(work.train.latents[index], text, generator)
        taught: Taught = work.distiller.teach(example)
        with _gating(work, student, None if gates is None else gates[index].to(work.device)):
            seen = work.distiller.terms(student, example, taught)
        return {"loss": sum(weight * seen[term] for term, weight in options.weights), **seen}

    student.requires_grad_(True)
    train(
        module=student,
        options=options,
        steps=steps,
        checkpoint=work.path(f"checkpoints/recover-{name}.safetensors"),
        log=work.path(f"logs/recover-{name}.jsonl"),
        step_loss=step_loss,
        observe=observe,
    )
    student.requires_grad_(False).eval()


def _gating(work: Workspace, student: nn.Module, gates: Tensor | None) -> AbstractContextManager[Any]:
    return nullcontext() if gates is None else gated(student, work.space, gates)


def _shared_out(steps: int, load: Float[Tensor, "experts"]) -> list[int]:
    """Whole steps in proportion to the load, by largest remainders; an expert that serves nobody gets none."""
    exact = steps * load
    whole = exact.floor()
    rest = int(steps - whole.sum())
    if rest:
        whole[(exact - whole).topk(rest).indices] += 1
    return [int(share) for share in whole]
