"""Whether experts' clusters of prompts mean something: their agreement with the kinds of the prompts."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor


def nmi(route: Int[Tensor, "prompts"], kinds: Sequence[str | None]) -> float | None:
    """Normalised mutual information of expert and kind, over the prompts whose kind is known.

    I(expert; kind) divided by the mean of the two entropies: 1 where either tells the other, 0 where experts know
    nothing of kinds, as with a single one in use. None where fewer than two kinds are known.
    """
    from sklearn.metrics import normalized_mutual_info_score

    known = [(expert, kind) for expert, kind in zip(route.tolist(), kinds, strict=True) if kind is not None]
    if len({kind for _, kind in known}) < 2:
        return None
    experts, of_kind = zip(*known, strict=True)
    return float(normalized_mutual_info_score(of_kind, experts, average_method="arithmetic"))
