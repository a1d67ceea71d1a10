"""Slicing: the physically smaller stock model of an architecture, and saving and loading it as an expert."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aptp.core.anatomy import HEADS, Cut, Part, submodule
from aptp.core.architecture import Architecture, SearchSpace
from aptp.core.errors import RequestError, gist
from aptp.core.files import replacing, write_json
from aptp.core.gates import passed_on, without_gates

WEIGHTS = "expert.safetensors"
"""Not the name that diffusers looks for: stock `from_pretrained` must fail on an expert, never fill it with noise."""
SHARED = "shared.safetensors"
"""Beside the folders of experts that share one set of weights: those weights, in the dense model's shapes."""


class PassThrough(nn.Module):
    """What stays of a dropped block.

    It passes on the first channels of an image, or a sequence as it is; of a block of several streams, all of them.
    """

    def __init__(self, site: Part, as_tuple: bool = False) -> None:
        super().__init__()
        self.site = site
        self.as_tuple = as_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        passed = passed_on(self.site, args, kwargs)
        return tuple(passed) if self.as_tuple else passed[0]


def slice(module: nn.Module, space: SearchSpace, architecture: Architecture) -> nn.Module:
    """A new stock model with only the units that `architecture` keeps; `module` is untouched.

    Every weight of the result is the weight at its place in `module`, the same bits. Dropped blocks become
    `PassThrough`s, so module lists keep their indices.

    Raises:
        RequestError: if the architecture belongs to another space, or the space to another model.
    """
    if architecture.space.signature != space.signature:
        raise RequestError("this architecture belongs to another search space; slice with the space it was made for.")
    memo: dict[int, Any] = {}
    for site, kept in zip(space.sites, architecture.kept, strict=True):
        if site.is_block and not kept:
            block = submodule(module, site.path)
            memo[id(block)] = _pass_through(block, site)
    for site, kept in zip(space.sites, architecture.kept, strict=True):
        if site.is_block or len(kept) == site.units:
            continue
        for cut in site.cuts:
            for parameter in submodule(module, cut.path).parameters(recurse=False):
                smaller = _cut(memo.get(id(parameter), parameter), cut, site.units, kept)
                if smaller is not None:
                    memo[id(parameter)] = nn.Parameter(smaller, requires_grad=parameter.requires_grad)
    sliced = without_gates(copy.deepcopy(module, memo))
    for site, kept in zip(space.sites, architecture.kept, strict=True):
        if not site.is_block and not _is_dropped(sliced, site):
            _resize(sliced, site, len(kept))
    return sliced


def _pass_through(block: nn.Module, site: Part) -> PassThrough:
    """diffusers' `Transformer2DModel` and blocks of several streams answer with a tuple, others with the tensor itself.

    A joint block is asked whether its text ends in it before a ControlNet's residual is added to what leaves it.
    """
    through = PassThrough(site, as_tuple=bool(site.streams) or hasattr(block, "transformer_blocks"))
    if hasattr(block, "context_pre_only"):
        through.context_pre_only = block.context_pre_only
    return through


def _is_dropped(sliced: nn.Module, site: Part) -> bool:
    return any(isinstance(sliced.get_submodule(path), PassThrough) for path in site.inside)


def _cut(weight: Tensor, cut: Cut, units: int, kept: tuple[int, ...]) -> Tensor | None:
    """`weight` with only the kept units along the cut's side; None for one that does not have that side (a bias)."""
    dim = 0 if cut.side == "out" else 1
    if weight.ndim <= dim:
        return None
    size, rest = divmod(weight.shape[dim], cut.chunks * units)
    if rest:
        raise RequestError(
            f"{cut.path!r} does not divide into {units} units: the search space belongs to another model."
        )
    index = torch.arange(weight.shape[dim], device=weight.device).view(cut.chunks, units, size)[:, list(kept)].flatten()
    return weight.detach().index_select(dim, index)


def _resize(sliced: nn.Module, site: Part, kept: int) -> None:
    """Set the sizes that layers remember beside their weights."""
    for cut in site.cuts:
        layer = sliced.get_submodule(cut.path)
        match layer:
            case nn.Conv2d():
                layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
            case nn.Linear():
                layer.out_features, layer.in_features = layer.weight.shape
            case nn.GroupNorm():
                layer.num_channels, layer.num_groups = layer.weight.shape[0], kept
            case _:
                raise RequestError(f"{cut.path!r} is a {type(layer).__name__}, which slicing does not know.")
    if site.kind in HEADS:
        attention = sliced.get_submodule(site.path)
        attention.inner_dim = attention.inner_kv_dim = attention.to_q.out_features
        attention.heads = attention.sliceable_head_dim = kept


def save_expert(expert: nn.Module, architecture: Architecture, folder: str | Path) -> None:
    """Write an expert: the dense model's config, the architecture, and the weights as safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(expert.to_json_string())
    config.pop("_name_or_path", None)  # a place on this machine
    write_json(folder / "config.json", config)
    architecture.save(folder / "architecture.json")
    _save_weights(expert, folder / WEIGHTS)


def share_weights(module: nn.Module, folder: str | Path) -> None:
    """Have all experts in the folders of `folder` be slices of `module`, whose weights are written once.

    `load_expert` cuts an expert out when it is asked for; weights of the experts' own are removed.
    """
    folder = Path(folder)
    _save_weights(module, folder / SHARED)
    for own in folder.glob(f"*/{WEIGHTS}"):
        own.unlink()


def _save_weights(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, temporary)


def _without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose weights take no memory; what a state dict does not hold is as the module made it.

    Memory that nobody fills is none yet, so the weights are let go before they take any. What accelerate patches to
    that end is torch itself, for all threads.
    """
    with _Unfilled():
        module = make()
    saved = module.state_dict().keys()
    for path, part in module.named_modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and f"{path}.{name}".lstrip(".") in saved:
                    hollow = tensor.detach().to("meta")
                    tensors[name] = nn.Parameter(hollow, False) if isinstance(tensor, nn.Parameter) else hollow
    return module


class _Unfilled(TorchFunctionMode):
    """Initialisations are left out, in the thread that says so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_expert(folder: str | Path, dtype: torch.dtype | None = None) -> nn.Module:
    """The expert that `save_expert` wrote: a stock model, in eval mode, ready for a diffusers pipeline.

    Args:
        folder: an expert's folder, e.g. `runs/demo/experts/00`.
        dtype: the type of its weights; as saved if None.

    Raises:
        RequestError: if the folder is no expert, or its parts do not fit each other.
    """
    import diffusers
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "architecture.json").is_file():
        raise RequestError(f"{str(folder)!r} is not an expert: it has no architecture.json.")
    architecture = Architecture.load(folder / "architecture.json")
    try:
        config = json.loads((folder / "config.json").read_text())
        family = getattr(diffusers, config["_class_name"], None)
        if not (isinstance(family, type) and issubclass(family, diffusers.ModelMixin)):
            raise RequestError(f"{str(folder)!r} names {config['_class_name']!r}, which is no diffusers model.")
        expert = _without_weights(lambda: family.from_config(config))  # type: ignore[attr-defined]
        shared = folder.parent / SHARED
        if together := shared.is_file():
            expert.load_state_dict(load_file(shared), strict=True, assign=True)
        expert = slice(expert, architecture.space, architecture)
        if not together:
            expert.load_state_dict(load_file(folder / WEIGHTS), strict=True, assign=True)
    except (OSError, LookupError, AttributeError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise RequestError(f"the expert in {str(folder)!r} is damaged: {gist(error)}") from error
    if dtype is not None:
        nn.Module.to(expert, dtype)  # diffusers' own `to` remarks on casts that are wanted here
    return expert.eval()
