"""Search spaces and architectures: which gates there are, and which of them are on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core.anatomy import Cut, Part
from aptp.core.errors import RequestError
from aptp.core.files import write_json

FORMAT = 1
"""Of the file that `Architecture.save` writes."""

MOST_GATES = 2**24
"""Of a search space; the largest models have some thousands. A file that names more is not read into memory."""

GateSite = Part
"""A site is a part that a granularity chose to gate."""


@dataclass(frozen=True)
class SearchSpace:
    """The gated sites of a denoiser; a gate vector holds their units one site after the other.

    The last dimension of every gate tensor has `num_gates` = G entries.

    Attributes:
        sites: what is gated.
        align: a width site keeps a multiple of so many channels, or stays whole.
    """

    sites: tuple[GateSite, ...]
    align: int = 1

    def __post_init__(self) -> None:
        if not self.sites:
            raise RequestError("the search space is empty: this granularity finds nothing to gate in this denoiser.")
        if self.num_gates > MOST_GATES:
            raise RequestError(f"a search space has at most {MOST_GATES:,} gates, not {self.num_gates:,}.")
        if self.align < 1:
            raise RequestError(f"align is a number of channels of 1 or more, not {self.align}.")
        for site in self.sites:
            if self.align > 1 and not site.is_block and (site.channels < 1 or site.channels % site.units):
                raise RequestError(
                    f"width site {site.path!r} has {site.channels} channels in {site.units} units; to be aligned, each "
                    "unit must have the same number of them, at least 1."
                )

    @cached_property
    def num_gates(self) -> int:
        return sum(site.units for site in self.sites)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The place of each site in a gate vector, in the order of `sites`."""
        ends = torch.tensor([site.units for site in self.sites]).cumsum(0).tolist()
        return tuple(slice(end - site.units, end) for site, end in zip(self.sites, ends, strict=True))

    @cached_property
    def site_of_gate(self) -> Tensor:
        """[G] int64: the index in `sites` of every gate."""
        return torch.repeat_interleave(torch.tensor([site.units for site in self.sites]))

    @cached_property
    def depth_order(self) -> Tensor:
        """[depth sites] int64: their gates, outermost first: the last block run, the first, the one before the last, …

        The innermost block is the first to go.
        """
        depth = [place.start for site, place in zip(self.sites, self.slices, strict=True) if site.is_block]
        order: list[int] = []
        while depth:
            order.append(depth.pop(-1 if len(order) % 2 == 0 else 0))
        return torch.tensor(order, dtype=torch.long)

    @cached_property
    def width_gates(self) -> Tensor:
        """[G] bool: which gates belong to width sites."""
        return torch.tensor([not self.sites[i].is_block for i in self.site_of_gate.tolist()])

    @cached_property
    def blocks_of_site(self) -> tuple[tuple[int, ...], ...]:
        """For each site the gates of the gated blocks around it, and, for a block, its own."""
        gate = {site.path: place.start for site, place in zip(self.sites, self.slices, strict=True) if site.is_block}
        return tuple(
            tuple(gate[p] for p in (*site.inside, *((site.path,) if site.is_block else ())) if p in gate)
            for site in self.sites
        )

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """For each site how many of its units come and go together: as few as have a multiple of `align` channels."""
        return tuple(
            1 if site.is_block else self.align // math.gcd(self.align, site.channels // site.units or 1)
            for site in self.sites
        )

    def aligned(self, soft: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch gates"]:
        """Relaxed gates of which, in each site, the largest `strides` have their mean, then the next as many.

        At any threshold as many stay as keep the width aligned. The smallest, which may be fewer, stay last. Where
        `align` is 1 nothing changes.
        """
        if set(self.strides) == {1}:
            return soft
        return torch.cat(
            [
                soft[..., place] if size == 1 else _means(soft[..., place], size)
                for place, size in zip(self.slices, self.strides, strict=True)
            ],
            -1,
        )

    def ones(self) -> Float[Tensor, "gates"]:
        """The dense architecture."""
        return torch.ones(self.num_gates)

    def features(self, gates: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch gates"]:
        """Architectures as unit vectors whose dot product is their similarity.

        Each width gate times the gates of the blocks around it, each site divided by the square root of its number of
        units, the whole normalised (METHOD of APTP, section on contrastive routing).
        """
        alive = torch.stack(
            [gates[..., list(b)].prod(-1) if b else torch.ones_like(gates[..., 0]) for b in self.blocks_of_site], -1
        )
        units = torch.tensor([site.units for site in self.sites], dtype=gates.dtype, device=gates.device)
        place = self.site_of_gate.to(gates.device)
        own = torch.where(self.width_gates.to(gates.device), gates, torch.ones_like(gates))
        return torch.nn.functional.normalize(own * (alive / units.sqrt())[..., place], dim=-1)

    def to_dict(self) -> dict:
        sites = [{**vars(site), "cuts": tuple(dict(vars(cut)) for cut in site.cuts)} for site in self.sites]
        return {"sites": sites, "align": self.align}

    @classmethod
    def from_dict(cls, data: dict) -> SearchSpace:
        """The space that `to_dict` described. Raises `RequestError` for anything else."""
        try:
            return cls(tuple(_site(s) for s in data["sites"]), data.get("align", 1))
        except (KeyError, TypeError) as error:
            raise RequestError(f"this is not a search space: {error}.") from error

    @cached_property
    def signature(self) -> str:
        """A short hash of the sites: gate vectors fit each other only where it is equal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def _site(data: dict) -> GateSite:
    data = {"streams": (), **data}
    lists = {name: tuple(data[name]) for name in ("taps", "inside", "streams")}
    return GateSite(**{**data, **lists, "cuts": tuple(Cut(**cut) for cut in data["cuts"])})


@dataclass(frozen=True, eq=False)
class Architecture:
    """One sub-network: hard gates over a space. A width site always keeps at least one unit, and its alignment."""

    space: SearchSpace
    gates: Float[Tensor, "gates"]

    def __post_init__(self) -> None:
        if self.gates.shape != (self.space.num_gates,):
            raise RequestError(
                f"an architecture of this space has {self.space.num_gates} gates, not {tuple(self.gates.shape)}."
            )
        if not ((self.gates == 0) | (self.gates == 1)).all():
            raise RequestError("the gates of an architecture are 0 or 1; threshold relaxed gates first.")
        for site, kept in zip(self.space.sites, self.kept, strict=True):
            if not site.is_block and not kept:
                raise RequestError(f"width site {site.path!r} has no unit left; at least one must stay.")
        for site, size, kept in zip(self.space.sites, self.space.strides, self.kept, strict=True):
            if len(kept) % size and len(kept) != site.units:
                channels = len(kept) * site.channels // site.units
                raise RequestError(
                    f"width site {site.path!r} keeps {channels} of {site.channels} channels, which is no multiple of "
                    f"the {self.space.align} that this space is aligned to."
                )

    @cached_property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """For each site the indices of the units that stay."""
        return tuple(tuple(self.gates[place].nonzero().flatten().tolist()) for place in self.space.slices)

    @classmethod
    def dense(cls, space: SearchSpace) -> Architecture:
        return cls(space, space.ones())

    @classmethod
    def random(cls, space: SearchSpace, keep: float = 0.5, seed: int = 0) -> Architecture:
        """Each unit stays with probability `keep`; a width site that would go empty keeps its luckiest unit."""
        if not 0 <= keep <= 1:
            raise RequestError(f"keep is a probability in [0, 1], not {keep}.")
        luck = torch.rand(space.num_gates, generator=torch.Generator().manual_seed(seed))
        return cls(space, harden(space, 1 - luck, threshold=1 - keep))

    def save(self, path: str | Path) -> None:
        """Write as JSON: the sites and which of their units stay; loading needs no plugin."""
        write_json(path, {"format": FORMAT, **self.space.to_dict(), "kept": [list(kept) for kept in self.kept]})

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Read what `save` wrote. Raises `RequestError` if the file does not fit."""
        try:
            data = json.loads(Path(path).read_text())
            if data["format"] != FORMAT:
                raise RequestError(f"its format is {data['format']!r}, and this version reads {FORMAT}.")
            space = SearchSpace.from_dict(data)
            return cls(space, _gates_of(space, data["kept"]))
        except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).rstrip(".")
            raise RequestError(f"{path} is not an architecture written by aptp: {reason}.") from error


def _gates_of(space: SearchSpace, kept: Sequence[Sequence[int]]) -> Tensor:
    gates = torch.zeros(space.num_gates)
    for site, place, units in zip(space.sites, space.slices, kept, strict=True):
        if not all(0 <= unit < site.units for unit in units):
            raise RequestError(f"site {site.path!r} has {site.units} units; {list(units)} are not all among them.")
        gates[[place.start + unit for unit in units]] = 1.0
    return gates


def harden(
    space: SearchSpace, soft: Float[Tensor, "*batch gates"], threshold: float = 0.5
) -> Float[Tensor, "*batch gates"]:
    """0/1 gates: 1 where `soft`, aligned, reaches the threshold; a width site that would go empty keeps its largest.

    Carries no gradient (see `Relaxation.straight_through`).
    """
    soft = space.aligned(soft.detach())
    hard = (soft >= threshold).to(soft.dtype)
    for site, place, size in zip(space.sites, space.slices, space.strides, strict=True):
        if not site.is_block:
            largest = soft[..., place].argsort(dim=-1, descending=True, stable=True)[..., :size]
            hard[..., place] = hard[..., place].scatter(-1, largest, 1.0)
    return hard


def _means(soft: Float[Tensor, "*batch units"], size: int) -> Float[Tensor, "*batch units"]:
    """Each `size` units from the largest on, and the rest, have their mean."""
    values, order = soft.sort(dim=-1, descending=True, stable=True)
    means = [part.mean(-1, keepdim=True).expand_as(part) for part in values.split(size, -1)]
    return torch.empty_like(soft).scatter(-1, order, torch.cat(means, -1))
