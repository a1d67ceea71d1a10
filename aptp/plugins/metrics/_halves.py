"""Distances between generated and real pictures, with a floor that can be read against them.

A distance estimated from n pictures is above zero even between two samples of one distribution, and the more so the
smaller n. Its floor asks for real against real at the same count; but of real pictures there are only the n that the
prompts belong to. So the prompts are parted at random into halves A and B, and three figures are given:

- `<name>`: all generated pictures against all real ones, the published use;
- `<name>_half`: generated A against real B, and generated B against real A (the mean of both): n/2 pictures each;
- `<name>_floor`: real A against real B: n/2 pictures each.

`half` and `floor` have the same counts and the same prompts on either side, so a generator whose pictures are the real
ones has `half` equal to `floor`, whatever the bias of the estimator. `<name>` itself compares pictures of the *same*
prompts at twice the count and can lie below the floor. `half` and `floor` are means over a few fixed partitions.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.aggregation import CatMetric

from aptp.core.errors import RequestError

from ._features import Embedded

PARTITIONS = 4
FEWEST = 4

Distance = Callable[[Float[Tensor, "generated embed"], Float[Tensor, "real embed"]], float]


class Halves:
    """Collects the embeddings of generated and real pictures, over processes where there are several."""

    def __init__(self) -> None:
        self._generated, self._real = CatMetric(), CatMetric()

    def update(self, embedded: Embedded) -> None:
        """Take in the embeddings of a batch."""
        self._generated.update(embedded.images)
        self._real.update(embedded.references)

    def figures(self, name: str, distance: Distance) -> dict[str, float]:
        """The three figures of a distance.

        Raises:
            RequestError: if there are fewer pictures than two halves of two.
        """
        generated = self._generated.compute() if self._generated.update_called else torch.empty(0)
        if (count := len(generated)) < FEWEST:
            raise RequestError(f"{name} was given {count} pictures; evaluate at least {FEWEST}.")
        generated, real = generated.double(), self._real.compute().double()
        half, floor = [], []
        for seed in range(PARTITIONS):
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            a, b = order[: count // 2], order[count // 2 : count // 2 * 2]
            half += [distance(generated[a], real[b]), distance(generated[b], real[a])]
            floor.append(distance(real[a], real[b]))
        return {name: distance(generated, real), f"{name}_half": fmean(half), f"{name}_floor": fmean(floor)}
