"""Budgets: the cost of a gated denoiser, differentiable through its gates and exact once they are 0 or 1."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor, nn

from aptp.core.anatomy import Part
from aptp.core.architecture import SearchSpace, harden
from aptp.core.denoiser import Denoiser
from aptp.core.errors import RequestError


@dataclass(frozen=True)
class Layer:
    """The cost of one layer: `fixed`, and `per_unit` for each unit that stays of the width part it carries (if any).

    A tuple in place of the one number has what the first unit adds, the second, and so on: a measured table.
    All of it goes with any of the blocks whose module contains `path`; that at `""` is never gone.
    """

    path: str
    fixed: float
    per_unit: float | tuple[float, ...] = 0
    part: Part | None = None

    @property
    def steps(self) -> tuple[float, ...]:
        """What each unit of its part adds."""
        units = self.part.units if self.part else 0
        return self.per_unit if isinstance(self.per_unit, tuple) else (self.per_unit,) * units


class CostModel:
    """Cost as a function of the gates: a polynomial where every unit of a part costs the same.

    Σ over layers of (fixed + table(Σ gates of its site)) · Π gates of the blocks around it, where table(k) is the cost
    of k units, linear between whole numbers. Computed in float64, for whole numbers exact while the cost is below 2⁵³.

    Attributes:
        dense: cost of the whole denoiser, in `unit`.
        floor: cost with every gated thing that can go gone, as a fraction of dense.
        unit: e.g. `"MACs"`.

    Raises:
        RequestError: for a space with a site that no layer belongs to.
    """

    def __init__(self, space: SearchSpace, layers: Iterable[Layer], unit: str) -> None:
        self.space = space
        self.unit = unit
        layers = list(layers)
        carried = {layer.part for layer in layers} | {path for layer in layers for path in _around(layer.path)}
        for site in space.sites:
            if (site.path if site.is_block else site) not in carried:
                raise RequestError(f"no layer belongs to {site.path!r}: the search space belongs to another model.")
        sites = {site: index for index, site in enumerate(space.sites)}
        blocks = {
            site.path: place.start for site, place in zip(space.sites, space.slices, strict=True) if site.is_block
        }
        units = [site.units for site in space.sites]
        rows: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        for layer in layers:
            around = tuple(blocks[path] for path in _around(layer.path) if path in blocks)
            place = sites.get(layer.part, -1) if layer.part else -1
            row = rows.setdefault((place, around), torch.zeros(1 + max(units), dtype=torch.float64))
            row[0] += layer.fixed
            steps = torch.tensor(layer.steps, dtype=torch.float64)
            if place >= 0:
                row[1 : 1 + len(steps)] += steps
            else:
                row[0] += steps.sum()
        depth = max((len(around) for _, around in rows), default=0)
        always = space.num_gates
        self._site = torch.tensor([site for site, _ in rows])
        self._around = torch.tensor(
            [[*around, *[always] * (depth - len(around))] for _, around in rows], dtype=torch.long
        )
        self._steps = torch.stack(list(rows.values()))
        self._last = torch.tensor([units[site] - 1 if site >= 0 else 0 for site, _ in rows])
        self.dense = float(self.cost(space.ones()))
        lowest = harden(space, torch.zeros(space.num_gates), threshold=1.0)
        self.floor = float(self.fraction(lowest))

    @property
    def fingerprint(self) -> str:
        """A short hash of all that a cost depends on."""
        tables = (self._site, self._around, self._steps)
        told = json.dumps([self.space.signature, self.unit, *(table.tolist() for table in tables)])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def cost(self, gates: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch"]:
        """Cost in `unit` of each row of gates, in float64.

        Its slope at a whole number of units is that of one more, where there is one.
        """
        device = gates.device
        gates = gates.double()
        units = gates.new_zeros(*gates.shape[:-1], len(self.space.sites) + 1)
        units = units.index_add(-1, self.space.site_of_gate.to(device), gates)[..., self._site.to(device)]
        alive = torch.cat([gates, torch.ones_like(gates[..., :1])], -1)[..., self._around.to(device)].prod(-1)
        steps = self._steps.to(device)
        row = torch.arange(len(steps), device=device)
        whole = units.detach().floor().long().minimum(self._last.to(device))
        rows = steps.cumsum(-1)[row, whole] + (units - whole) * steps[row, whole + 1]
        return (rows * alive).sum(-1)

    def fraction(self, gates: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch"]:
        """Cost of each row of gates as a fraction of the whole dense denoiser."""
        return self.cost(gates) / self.dense

    def check(self, target: float) -> None:
        """Raise `RequestError` if no architecture of the space can be as cheap as `target` (a fraction of dense)."""
        if not 0 < target <= 1:
            raise RequestError(f"a budget is a fraction of the dense cost in (0, 1], not {target:g}.")
        if target < self.floor:
            raise RequestError(
                f"a budget of {target:g} is under the floor of this search space: with everything that can go gone, "
                f"{self.floor:.3f} of the dense {self.unit} stay; ask for more, or gate more."
            )


def _around(path: str) -> list[str]:
    """The paths of the modules that contain the layer at `path`, itself included, outermost first."""
    names = path.split(".")
    return [".".join(names[:end]) for end in range(1, len(names) + 1)]


class BudgetEstimator(ABC):
    """Measures a denoiser's layers once and gives the cost of every architecture."""

    Options: ClassVar[type[BaseModel]]

    @abstractmethod
    def __init__(self, options: BaseModel) -> None: ...

    @abstractmethod
    def profile(
        self, denoiser: Denoiser, module: nn.Module, space: SearchSpace, example_inputs: Mapping[str, Tensor]
    ) -> CostModel:
        """The cost model of `module` at the size of `example_inputs` (one input of the resolution that is served)."""

    def measured(self, modules: Sequence[nn.Module], example_inputs: Mapping[str, Tensor]) -> list[float] | None:
        """What calls of these models cost, in the cost model's unit, where that is measured; None where it is known."""
        return None
