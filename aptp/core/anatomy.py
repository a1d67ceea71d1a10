"""The anatomy of a denoiser: the parts of it that could be gated, as data.

A denoiser family lists its parts; what masking and slicing mean is defined here once a *kind* of part, for all
families: a width part is masked at the input of the layer that consumes its units (after any normalisation, so that
masked equals sliced) and sliced at every layer that carries them; a block becomes a pass-through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from aptp.core.errors import RequestError

Kind = Literal["resnet_channels", "attention_heads", "joint_attention_heads", "feedforward_units", "block"]
HEADS: tuple[Kind, ...] = ("attention_heads", "joint_attention_heads")
"""The kinds whose units are the heads of a diffusers `Attention`."""
FEEDFORWARD_BUNDLES = 32
"""A feed-forward's hidden units are gated in this many bundles (fewer where they do not divide)."""


@dataclass(frozen=True)
class Cut:
    """A layer that shrinks when units of a part go.

    `side` says which: its output rows (`"out"`; for a norm, its channels) or its input columns (`"in"`). `chunks` is
    the number of copies of the units stacked along that side (2 for the value and gate halves of a GEGLU projection).
    """

    path: str
    side: Literal["out", "in"]
    chunks: int = 1

    def __post_init__(self) -> None:
        if self.side not in ("out", "in") or self.chunks < 1:
            raise RequestError(f"a cut of {self.path!r} is at {self.side!r} in {self.chunks}; right is 'out' or 'in'.")


@dataclass(frozen=True)
class Part:
    """One thing that could be gated.

    For a width part: `units` equal slices, masked at the input of the layers in `taps` (`channel_dim` is the dimension
    of that input that holds them), sliced at `cuts`; `channels` is the width of all units. For a block: one unit, no
    taps, and `channels` is the width of what it passes on; `streams` names, for a block that answers with several
    tensors, the arguments that pass for them, in the order of its answer. `inside` names the blocks around the part,
    outermost first.
    """

    path: str
    kind: Kind
    units: int
    taps: tuple[str, ...] = ()
    channel_dim: int = -1
    cuts: tuple[Cut, ...] = ()
    channels: int = 0
    inside: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.units < 1:
            raise RequestError(
                f"part {self.path!r} has {self.units} units of kind {self.kind!r}; it needs at least 1, and kinds are "
                f"{', '.join(get_args(Kind))}."
            )

    @property
    def is_block(self) -> bool:
        return self.kind == "block"


@dataclass(frozen=True)
class Anatomy:
    """All parts of a denoiser in the order in which it runs them.

    `last_blocks` are the paths of the blocks that APTP gates (the last of each stage); all blocks are candidates.
    """

    parts: tuple[Part, ...]
    last_blocks: tuple[str, ...] = ()

    @property
    def width(self) -> tuple[Part, ...]:
        return tuple(p for p in self.parts if not p.is_block)

    @property
    def blocks(self) -> tuple[Part, ...]:
        return tuple(p for p in self.parts if p.is_block)


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The part of `module` at `path`. Raises `RequestError` if there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise RequestError(
            f"this {type(module).__name__} has no {path!r}: the search space belongs to another model."
        ) from error


def resnet_channels(path: str, resnet: nn.Module, inside: Sequence[str] = ()) -> Part:
    """The inner channels of a `ResnetBlock2D`: one unit is one group of its second GroupNorm."""
    shift_chunks = 2 if resnet.time_embedding_norm == "scale_shift" else 1
    cuts = [Cut(f"{path}.conv1", "out"), Cut(f"{path}.norm2", "out"), Cut(f"{path}.conv2", "in")]
    if resnet.time_emb_proj is not None:
        cuts.append(Cut(f"{path}.time_emb_proj", "out", shift_chunks))
    groups, channels = resnet.norm2.num_groups, resnet.norm2.num_channels
    return Part(path, "resnet_channels", groups, (f"{path}.conv2",), 1, tuple(cuts), channels, tuple(inside))


def attention_heads(path: str, attention: nn.Module, inside: Sequence[str] = ()) -> Part:
    """The heads of a diffusers `Attention`: queries, keys, values and the output projection's input.

    Raises:
        RequestError: for a layer whose heads cannot be cut apart (normalised across heads, grouped or added keys).
    """
    if getattr(attention, "add_k_proj", None) is not None:
        raise RequestError(f"attention {path!r} has a second set of keys; its heads cannot be gated one by one.")
    return _heads(path, "attention_heads", attention, ("to_q", "to_k", "to_v"), ("to_out.0",), inside)


def joint_attention_heads(path: str, attention: nn.Module, inside: Sequence[str] = ()) -> Part:
    """The heads of an `Attention` in which image and text attend to both, each with projections of its own.

    A head of the one stream and that of the other are one unit: their queries and keys meet in one softmax. A layer
    whose text goes no further has no output projection for it.

    Raises:
        RequestError: for a layer without queries, keys and values of a second stream, or whose heads cannot be cut
            apart.
    """
    if getattr(attention, "add_q_proj", None) is None:
        raise RequestError(f"attention {path!r} has one stream alone; its heads are ordinary attention heads.")
    rows = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    columns = ("to_out.0",) if attention.to_add_out is None else ("to_out.0", "to_add_out")
    return _heads(path, "joint_attention_heads", attention, rows, columns, inside)


def _heads(
    path: str, kind: Kind, attention: nn.Module, rows: Sequence[str], columns: Sequence[str], inside: Sequence[str]
) -> Part:
    """Heads that are sliced at the outputs of the layers `rows` and masked at the inputs of `columns`."""
    if attention.inner_kv_dim != attention.inner_dim:
        raise RequestError(f"attention {path!r} groups its keys; its heads cannot be gated one by one.")
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        weight = getattr(getattr(attention, name, None), "weight", None)
        if weight is not None and weight.numel() != attention.inner_dim // attention.heads:
            raise RequestError(f"attention {path!r} normalises across heads; its heads cannot be gated one by one.")
    taps = tuple(f"{path}.{name}" for name in columns)
    cuts = (*(Cut(f"{path}.{name}", "out") for name in rows), *(Cut(tap, "in") for tap in taps))
    return Part(path, kind, attention.heads, taps, -1, cuts, attention.inner_dim, tuple(inside))


def feedforward_units(path: str, feedforward: nn.Module, inside: Sequence[str] = ()) -> Part:
    """The hidden units of a diffusers `FeedForward`, in bundles."""
    up, down = feedforward.net[0].proj, feedforward.net[2]
    hidden = down.in_features
    bundles = next(n for n in range(min(FEEDFORWARD_BUNDLES, hidden), 0, -1) if hidden % n == 0)
    cuts = (Cut(f"{path}.net.0.proj", "out", up.out_features // hidden), Cut(f"{path}.net.2", "in"))
    return Part(path, "feedforward_units", bundles, (f"{path}.net.2",), -1, cuts, hidden, tuple(inside))


def block(path: str, channels: int, inside: Sequence[str] = (), streams: Sequence[str] = ()) -> Part:
    """A whole residual block, replaced by a pass-through when it goes.

    What passes are the first `channels` channels of its input, or, where it answers with several `streams`, the
    arguments of these names.
    """
    return Part(path, "block", 1, channels=channels, inside=tuple(inside), streams=tuple(streams))
