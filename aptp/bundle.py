"""What serving needs of a run or a bundle: the router, how it decides, the experts. Safetensors and JSON only.

`router/router.json` names the strategies and the costs; `router/router.safetensors` is the router's state and bias;
`router/space.json` the search space. `calibration.json`, if there is one, is a bias that serves in place of the
router's own, with the budget it meets. A bundle is what serving needs of a run in a folder of its own, with a manifest.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aptp.config import BudgetChoice, Choice
from aptp.core.architecture import SearchSpace
from aptp.core.denoiser import Denoiser
from aptp.core.encoder import PromptEncoder
from aptp.core.errors import RequestError, gist
from aptp.core.files import replacing, write_json
from aptp.core.manifest import MANIFEST, Manifest, paths_in
from aptp.core.options import RelaxationOptions
from aptp.core.record import Record
from aptp.core.relaxation import Relaxation
from aptp.core.router import PromptBatch, Router, RouterContext
from aptp.core.slicing import SHARED, WEIGHTS, load_expert
from aptp.host import Host

FORMAT = 1
MODEL = "model"
"""Where the dense pipeline lies: in a bundle always, in a run if it was adapted before it was pruned."""
ENCODER = "encoder"
"""Where in a bundle the prompt encoder lies, if it is neither in a package nor on the hub."""
TRAINING = "training.safetensors"
"""In `router/`: the training prompts that are kept, float16 embeddings with the texts as metadata."""
WIDEST = 2**16
"""Of an encoder's embeddings: larger ones than any has."""
LARGEST_ROUTER = 2**27
"""Any two of gates, experts and the embeddings' width, multiplied: half a gigabyte, a hundred times the published."""
LARGEST_OPTION = 1024
"""Of a number that a bundle gives every call: pictures of that height and width can be had."""
ROUNDING = 1e-3
"""By how much loads may sum to another number than 1."""
LARGEST_CALIBRATION = 2**20
"""Bytes: a number for each of some 40,000 experts."""
CALIBRATION = "calibration.json"
"""Lies beside the manifest of a bundle, for it is made where it serves; in `router/` it came with the bundle."""


@dataclass(frozen=True)
class Bundle:
    """A trained router with all it takes to serve, and the experts of `folder`.

    `fractions` [experts] are the experts' costs as fractions of dense, `bias` [experts] is added to the scores, and
    `own_bias` is what the run ended with, where a calibration came after it. `load` [experts] is each expert's share of
    the training prompts, `budget` what the average prompt is to cost; None where a run did not keep it.
    """

    router: Router
    encoder: PromptEncoder
    embed: int
    """Width of the embeddings that the router reads."""
    bias: Float[Tensor, "experts"]
    own_bias: Float[Tensor, "experts"]
    fractions: list[float]
    load: list[float]
    budget: BudgetChoice | None
    model: str
    model_fingerprint: str
    component: str
    call_options: dict[str, Any]
    """What every call of the diffusers pipeline is given unless asked else (see `Denoiser.call_options`)."""
    folder: Path
    manifest: Manifest | None
    """None for a run, which is where it was made."""

    def expert(self, index: int, dtype: torch.dtype | None = None) -> nn.Module:
        """Load an expert; one that a manifest names is compared with it first.

        Raises:
            RequestError: if there is none of this number, or it is damaged.
        """
        if not 0 <= index < len(self.fractions):
            raise RequestError(
                f"there is no expert {index}; {str(self.folder)!r} has {len(self.fractions)}, numbered from 0."
            )
        if self.manifest:
            self.manifest.verify(expert_folder(index), f"experts/{SHARED}")
        return load_expert(self.folder / expert_folder(index), dtype)

    @property
    def weights(self) -> list[Path]:
        """The files of the experts' weights: one for each, or a single one of which all are slices."""
        shared = self.folder / "experts" / SHARED
        own = [self.folder / expert_folder(index) / WEIGHTS for index in range(len(self.fractions))]
        return [shared] if shared.is_file() else own

    @property
    def base(self) -> str:
        """The dense pipeline: a folder that lies with the router, or a name."""
        homes = [self.folder, self.folder.parent.parent] if self.folder.parent.name == "baselines" else [self.folder]
        return next((str(home / MODEL) for home in homes if (home / MODEL).is_dir()), self.model)


def expert_folder(index: int) -> str:
    """Where an expert lies in a run directory, or in a bundle."""
    return f"experts/{index:02d}"


def check_experts(folder: Path, count: int) -> None:
    """Raise `RequestError` for the first file of a run's experts that is not there, or is cut short."""
    shared = folder / "experts" / SHARED
    for home in (folder / expert_folder(index) for index in range(count)):
        weights = shared if shared.is_file() else home / WEIGHTS
        for file in (home / "architecture.json", home / "config.json", weights):
            lost = f"{str(folder)!r} has lost {file.relative_to(folder).as_posix()!r}"
            if not file.is_file():
                raise RequestError(f"{lost}; put it back, or make the run anew in another folder.")
        try:
            with safe_open(weights, "pt"):
                continue
        except (OSError, SafetensorError) as error:
            why = gist(error).rstrip(".")
            raise RequestError(f"{str(weights)!r} is damaged ({why}); put back what it was.") from error


def save_router(
    folder: Path,
    *,
    router: Router,
    space: SearchSpace,
    router_choice: Choice,
    balancer: Choice,
    encoder_choice: Choice,
    encoder: PromptEncoder,
    relaxation: RelaxationOptions,
    training: PromptBatch,
    bias: Float[Tensor, "experts"],
    threshold: float,
    fractions: list[float],
    load: Float[Tensor, "experts"],
    budget: BudgetChoice,
    model: str,
    model_fingerprint: str,
    denoiser: Denoiser,
) -> None:
    """Write a router's folder; `router.json` comes last, so a folder that has it is whole.

    The encoder is named with the commit that it was, where it came from the hub, and with its fingerprint. Folders are
    named as they were given, and from which folder (see `found_from`).
    `training` are the training prompts to keep, at least one.
    """
    write_json(folder / "space.json", space.to_dict())
    with replacing(folder / "router.safetensors") as temporary:
        # an empty file is no safetensors file, and a router may have no state
        state = {name: value.detach().cpu().contiguous() for name, value in router.state_dict().items()}
        save_file(state | {"__bias__": bias.double().cpu()}, temporary)
    with replacing(folder / TRAINING) as temporary:
        texts = json.dumps(list(training.text), ensure_ascii=False)
        save_file({"embeds": training.embeds.half().contiguous()}, temporary, metadata={"prompts": texts})
    pinned = {"revision": encoder.revision} if encoder.revision else {}
    write_json(
        folder / "router.json",
        {
            "format": FORMAT,
            "router": router_choice.model_dump(mode="json"),
            "balancer": balancer.model_dump(mode="json"),
            "encoder": encoder_choice.model_dump(mode="json") | pinned,
            "encoder_fingerprint": encoder.fingerprint(),
            "relaxation": relaxation.model_dump(mode="json"),
            "embed": training.embeds.shape[1],
            "threshold": threshold,
            "fractions": fractions,
            "load": load.tolist(),
            "budget": budget.model_dump(mode="json"),
            "home": str(Path.cwd()),
            "model": model,
            "model_fingerprint": model_fingerprint,
            "component": denoiser.component,
            "call_options": dict(denoiser.call_options),
        },
    )


def found_from(home: str | None, name: str) -> str:
    """A folder's name as it is found here: as it is, or from `home`, where the run was made; another name as it is."""
    there = Path(home or "", name)
    return str(there) if home and not Path(name).expanduser().is_dir() and there.is_dir() else name


def load_finished(run: Path, host: Host) -> Bundle:
    """The bundle of a run that is done.

    Raises:
        RequestError: for a folder that is no finished run.
    """
    bundle, record = load_bundle(run, host), run / "record.json"
    if bundle.manifest is None and record.is_file() and (status := Record.load(record).status) != "done":
        raise RequestError(f"run {str(run)!r} is {status}, not done; finish it with --resume before it serves.")
    return bundle


def load_bundle(run: Path, host: Host, loaded: PromptEncoder | None = None) -> Bundle:
    """Read what `save_router` wrote into `run/router`, with the run's encoder where that is `loaded` already.

    Of a bundle all but the experts is compared with its manifest first.

    Raises:
        RequestError: for a folder that is neither a run with a router nor a whole bundle.
    """
    folder = run / "router"
    manifest = Manifest.load(run) if (run / MANIFEST).is_file() else None
    if manifest:
        manifest.require("router/router.json", "router/router.safetensors", "router/space.json")
        manifest.require(f"{MODEL}/model_index.json")
        manifest.verify("router", MODEL, ENCODER)
    if not (folder / "router.json").is_file():
        raise RequestError(f"{str(run)!r} is no run with a router: it has no router/router.json.")
    try:
        data = json.loads((folder / "router.json").read_text())
        if data["format"] != FORMAT:
            raise RequestError(f"{str(run)!r} has format {data['format']}; this version of aptp reads {FORMAT}.")
        if manifest and (path := next(paths_in(data), None)):
            raise ValueError(f"it names {path!r}, which lies outside of the bundle.")
        space = SearchSpace.from_dict(json.loads((folder / "space.json").read_text()))
        state = load_file(folder / "router.safetensors")
        bias = _bias(state.pop("__bias__"))
        embed = data["embed"]
        if not isinstance(embed, int) or not 1 <= embed <= WIDEST:
            raise ValueError(f"its embeddings are {embed!r} wide; 1 to {WIDEST:,} are right.")
        sizes = sorted((space.num_gates, embed, len(bias)))
        if manifest and not all(
            bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point()
        ):
            raise ValueError("its router holds values that are not finite.")
        if manifest and (room := sizes[1] * sizes[2]) > LARGEST_ROUTER:
            raise ValueError(f"its router would take {room:,} numbers; at most {LARGEST_ROUTER:,} are right.")
        router_choice, balancer, encoder = (Choice(**data[name]) for name in ("router", "balancer", "encoder"))
        if manifest and not data.get("encoder_fingerprint"):
            raise ValueError("it does not say which prompt encoder it was trained with.")
        carried = manifest and any(name.startswith(f"{ENCODER}/") for name in manifest.files)
        own = {"model": str(run / ENCODER)} if carried else {}
        home = None if manifest else data.get("home")
        if isinstance(named := encoder.options.get("model"), str) and not carried:
            own = {"model": found_from(home, named)}
        router = host.create("router", router_choice.name, router_choice.options)
        router.setup(
            RouterContext(
                space,
                len(bias),
                host.create("balancer", balancer.name, balancer.options),
                None,
                Relaxation(space, RelaxationOptions(**data["relaxation"])),
                PromptBatch([], torch.zeros(0, embed)),
                0,
            )
        )
        router.load_state_dict(state)
        fractions = [float(fraction) for fraction in data["fractions"]]
        if len(fractions) != len(bias):
            raise ValueError(f"it has {len(bias)} experts, but the costs of {len(fractions)}.")
        if not all(0 <= fraction < math.inf for fraction in fractions):
            raise ValueError(f"its costs are {fractions}; fractions of dense are right.")
        load = [float(share) for share in data.get("load", [1 / len(bias)] * len(bias))]
        if len(load) != len(bias) or not all(0 <= share <= 1 for share in load) or abs(sum(load) - 1) > ROUNDING:
            raise ValueError(f"its loads are not the shares of {len(bias)} experts, which sum to 1.")
        call_options = dict(data.get("call_options", {}))
        if manifest and not all(map(_is_small, call_options.values())):
            raise ValueError(f"its call options are not null, true, false, or numbers of at most {LARGEST_OPTION:,}.")
        if manifest:
            for index in range(len(bias)):
                manifest.require(f"{expert_folder(index)}/architecture.json")
        serving, budget = bias, data.get("budget")
        for calibration in (run / CALIBRATION, folder / CALIBRATION):
            if calibration.is_file():
                if manifest:
                    manifest.admit(calibration.relative_to(run).as_posix(), LARGEST_CALIBRATION)
                serving, budget = _calibrated(calibration, bias)
                break
        return Bundle(
            router.eval(),
            loaded or _encoder(host, encoder, own, data.get("encoder_fingerprint"), run),
            embed,
            serving,
            bias,
            fractions,
            load,
            budget and BudgetChoice(**budget),
            found_from(home, str(data["model"])),
            str(data["model_fingerprint"]),
            str(data["component"]),
            call_options,
            run,
            manifest,
        )
    except RequestError:
        raise
    except (
        OSError, LookupError, ArithmeticError, AttributeError, TypeError, ValueError, RuntimeError, SafetensorError,
    ) as error:  # fmt: skip
        raise RequestError(f"the router of {str(run)!r} is damaged: {gist(error)}") from error


def _is_small(option: object) -> bool:
    """Whether an option of every call is one that a bundle may give."""
    return option is None or (isinstance(option, int | float) and abs(option) <= LARGEST_OPTION)


def _bias(bias: Tensor) -> Float[Tensor, "experts"]:
    """A router's bias, for at least one expert."""
    if bias.ndim != 1 or not len(bias) or not bias.is_floating_point() or not bool(bias.isfinite().all()):
        raise ValueError("its bias is not a finite number for each of at least one expert.")
    return bias


def _encoder(host: Host, choice: Choice, own: dict[str, str], fingerprint: str | None, run: Path) -> PromptEncoder:
    """The encoder of a router. Raises `RequestError` if it is another one than the router was trained with."""
    encoder = host.create("encoder", choice.name, choice.options | own)
    if fingerprint not in (None, encoder.fingerprint()):  # None: of a run from before it was kept
        named = own.get("model") or choice.options.get("model", choice.name)
        raise RequestError(
            f"prompt encoder {named!r} is not what {str(run)!r} was trained with: its files have changed; put back the "
            "former ones, or train the router anew."
        )
    return encoder


def _calibrated(file: Path, bias: Float[Tensor, "experts"]) -> tuple[Float[Tensor, "experts"], dict[str, Any]]:
    """The bias of a calibration, in place of a run's own, and its budget."""
    data = json.loads(file.read_text())
    if data["format"] != FORMAT:
        raise RequestError(f"{str(file)!r} has format {data['format']}; this version of aptp reads {FORMAT}.")
    fitted = torch.tensor(data["bias"], dtype=torch.float64)
    if fitted.shape != bias.shape or not bool(fitted.isfinite().all()):
        raise ValueError(f"its {CALIBRATION} does not hold {len(bias)} finite numbers.")
    return fitted, data["budget"]
