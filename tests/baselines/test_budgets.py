"""Every registered pruner, on every granularity, meets the budget or says why not."""

from __future__ import annotations

import pytest
import torch

from aptp.api import search_space
from aptp.core.errors import RequestError
from aptp.core.pruner import Pruned, PrunerContext
from aptp.host import default_host
from aptp.testing import tiny_pruner_context, tiny_unet

HOST = default_host()
NAMES = list(HOST.specs("pruner"))
REFUSED = {
    ("bk-sdm", "width"): "no depth site",
    ("bk-sdm", "width-depth"): "no depth site",  # by default, that gates the last block of each stage alone
    ("block-influence", "width"): "drops whole blocks",
    ("obs", "depth"): "drops units inside layers",
    ("uniform", "depth"): "same share of every width site",
}
UNDER_ITS_FLOOR = {("block-influence", "width-depth", 0.6)}


def asked(granularity: str, target: float, **options: str) -> PrunerContext:
    unet = tiny_unet()
    return tiny_pruner_context(unet, search_space(unet, granularity, **options), target)


def level(context: PrunerContext, gates: torch.Tensor) -> float:
    """The largest step of the cost by one gate, on or off."""
    flipped = (gates - torch.eye(len(gates))).abs()
    return float((context.cost_model.fraction(flipped) - context.cost_model.fraction(gates)).abs().max())


@pytest.mark.parametrize("target", [0.8, 0.6])
@pytest.mark.parametrize("granularity", ["width", "depth", "width-depth"])
@pytest.mark.parametrize("name", NAMES)
def test_meets_the_budget_or_says_why_not(name: str, granularity: str, target: float) -> None:
    context, pruner = asked(granularity, target), HOST.create("pruner", name)
    if reason := REFUSED.get((name, granularity)):
        for ask in (pruner.check, pruner.prune):
            with pytest.raises(RequestError, match=f"{reason}.*floor of this space is 0"):
                ask(context)
        return
    if (name, granularity, target) in UNDER_ITS_FLOOR:
        with pytest.raises(RequestError, match=f"a budget of {target} is under the floor of what this pruner drops"):
            pruner.check(context)
        return
    pruner.check(context)
    pruned: Pruned = pruner.prune(context)
    cost = float(context.cost_model.fraction(pruned.architecture.gates))
    if pruner.takes_target:
        assert abs(cost - target) <= max(0.01 * target, level(context, pruned.architecture.gates) / 2)
    else:
        assert 0.4 < cost < 0.95


@pytest.mark.parametrize("name", [name for name in NAMES if HOST.target("pruner", name).takes_target])
def test_a_budget_under_the_floor_is_refused_before_any_work(name: str) -> None:
    with pytest.raises(RequestError, match=r"a budget of 0\.05 is under the floor"):
        HOST.create("pruner", name).check(asked("width-depth", 0.05))
