"""What serving needs of a run: the router, how it decides, and the experts' costs. Safetensors and JSON only.

`router/router.json` names the strategies and the costs; `router/router.safetensors` is the router's state and bias;
`router/space.json` the search space.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aptp.config import Choice
from aptp.core.architecture import SearchSpace
from aptp.core.denoiser import Denoiser
from aptp.core.encoder import PromptEncoder
from aptp.core.errors import RequestError, gist
from aptp.core.files import replacing, write_json
from aptp.core.options import RelaxationOptions
from aptp.core.record import Record
from aptp.core.relaxation import Relaxation
from aptp.core.router import PromptBatch, Router, RouterContext
from aptp.host import Host

FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A trained router with all it takes to serve.

    `fractions` [experts] are the experts' costs as fractions of dense, `bias` [experts] is added to the scores.
    """

    router: Router
    encoder: PromptEncoder
    bias: Float[Tensor, "experts"]
    fractions: list[float]
    model: str
    model_fingerprint: str
    component: str
    call_options: dict[str, Any]
    """What every call of the diffusers pipeline is given unless asked else (see `Denoiser.call_options`)."""


def save_router(
    folder: Path,
    *,
    router: Router,
    space: SearchSpace,
    router_choice: Choice,
    balancer: Choice,
    encoder: Choice,
    relaxation: RelaxationOptions,
    embed: int,
    bias: Float[Tensor, "experts"],
    threshold: float,
    fractions: list[float],
    model: str,
    model_fingerprint: str,
    denoiser: Denoiser,
) -> None:
    """Write a router's folder; `router.json` comes last, so a folder that has it is whole."""
    write_json(folder / "space.json", space.to_dict())
    with replacing(folder / "router.safetensors") as temporary:
        # an empty file is no safetensors file, and a router may have no state
        state = {name: value.detach().cpu().contiguous() for name, value in router.state_dict().items()}
        save_file(state | {"__bias__": bias.double().cpu()}, temporary)
    write_json(
        folder / "router.json",
        {
            "format": FORMAT,
            "router": router_choice.model_dump(mode="json"),
            "balancer": balancer.model_dump(mode="json"),
            "encoder": encoder.model_dump(mode="json"),
            "relaxation": relaxation.model_dump(mode="json"),
            "embed": embed,
            "threshold": threshold,
            "fractions": fractions,
            "model": model,
            "model_fingerprint": model_fingerprint,
            "component": denoiser.component,
            "call_options": dict(denoiser.call_options),
        },
    )


def load_finished(run: Path, host: Host) -> Bundle:
    """The bundle of a run that is done.

    Raises:
        RequestError: for a folder that is no finished run.
    """
    bundle, record = load_bundle(run, host), run / "record.json"
    if record.is_file() and (status := Record.load(record).status) != "done":
        raise RequestError(f"run {str(run)!r} is {status}, not done; finish it with --resume before it serves.")
    return bundle


def load_bundle(run: Path, host: Host, loaded: PromptEncoder | None = None) -> Bundle:
    """Read what `save_router` wrote into `run/router`, with the run's encoder where that is `loaded` already.

    Raises:
        RequestError: for a folder that is no finished run.
    """
    folder = run / "router"
    if not (folder / "router.json").is_file():
        raise RequestError(f"{str(run)!r} is no run with a router: it has no router/router.json.")
    try:
        data = json.loads((folder / "router.json").read_text())
        if data["format"] != FORMAT:
            raise RequestError(f"{str(run)!r} has format {data['format']}; this version of aptp reads {FORMAT}.")
        space = SearchSpace.from_dict(json.loads((folder / "space.json").read_text()))
        state = load_file(folder / "router.safetensors")
        bias = state.pop("__bias__")
        router_choice, balancer, encoder = (Choice(**data[name]) for name in ("router", "balancer", "encoder"))
        router = host.create("router", router_choice.name, router_choice.options)
        router.setup(
            RouterContext(
                space,
                len(bias),
                host.create("balancer", balancer.name, balancer.options),
                None,
                Relaxation(space, RelaxationOptions(**data["relaxation"])),
                PromptBatch([], torch.zeros(0, data["embed"])),
                0,
            )
        )
        router.load_state_dict(state)
        fractions = [float(fraction) for fraction in data["fractions"]]
        if len(fractions) != len(bias):
            raise ValueError(f"it has {len(bias)} experts, but the costs of {len(fractions)}.")
        return Bundle(
            router.eval(),
            loaded or host.create("encoder", encoder.name, encoder.options),
            bias,
            fractions,
            data["model"],
            data["model_fingerprint"],
            data["component"],
            data.get("call_options", {}),
        )
    except RequestError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise RequestError(f"the router of {str(run)!r} is damaged: {gist(error)}") from error
