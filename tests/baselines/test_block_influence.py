"""Block influence: 1 − cosine of what enters and what leaves."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aptp.api import search_space
from aptp.baselines.block_influence import BlockInfluencePruner
from aptp.core.pruner import PrunerContext
from aptp.testing import FAMILIES, tiny_pruner_context, tiny_sd3, tiny_unet


def asked(family: str = "sd2") -> PrunerContext:
    unet = tiny_unet(family)
    return tiny_pruner_context(unet, search_space(unet, "depth"), 0.8)


def influences(context: PrunerContext, batches: int = 2) -> dict[str, float]:
    scores = BlockInfluencePruner(BlockInfluencePruner.Options(batches=batches)).scores(context)
    return {site.path: float(score) for site, score in zip(context.space.sites, scores, strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_by_hand(family: str) -> None:
    context = asked(family)
    seen: dict[str, list[float]] = {site.path: [] for site in context.space.sites}
    handles = []
    for site in context.space.sites:

        def hook(block, args, kwargs, output, path=site.path, channels=site.channels):
            before, after = args[0], output[0] if isinstance(output, tuple) else output
            if before.ndim == 4:
                before, after = before[:, :channels].flatten(2).mT, after.flatten(2).mT  # places × channels
            cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
            seen[path].append(1 - float(cosine.detach().mean()))

        handles.append(context.module.get_submodule(site.path).register_forward_hook(hook, with_kwargs=True))
    assert len(list(context.calibration_loss(batches=2))) == 2
    for handle in handles:
        handle.remove()
    found = influences(context)
    assert found == pytest.approx({path: sum(values) / len(values) for path, values in seen.items()}, abs=1e-5)
    assert all(0 < value < 2 for value in found.values())


def test_a_joint_block_s_influence_is_on_the_tokens_of_both_streams() -> None:
    model = tiny_sd3(num_layers=2)
    context = tiny_pruner_context(model, search_space(model, "depth"), 0.8)
    seen: dict[str, torch.Tensor] = {}
    for site in context.space.sites:

        def hook(block, args, kwargs, output, path=site.path):
            entering = (kwargs["encoder_hidden_states"], kwargs["hidden_states"])
            pairs = [(a, b) for a, b in zip(entering, output, strict=True) if b is not None]
            before, after = (torch.cat(streams, 1).detach().double() for streams in zip(*pairs, strict=True))
            seen[path] = 1 - ((before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)).mean()

        model.get_submodule(site.path).register_forward_hook(hook, with_kwargs=True)
    found = influences(context, batches=1)
    assert found == pytest.approx({path: float(value) for path, value in seen.items()}, abs=1e-9)
    assert seen.keys() == {"transformer_blocks.0", "transformer_blocks.1"}  # in the last one, of the image alone


def test_a_block_that_does_nothing_goes_first() -> None:
    context = asked()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(context.module.up_blocks[1].attentions[0].proj_out, name).zero_()
    assert influences(context)["up_blocks.1.attentions.0"] == pytest.approx(0, abs=1e-6)
    gates = BlockInfluencePruner(BlockInfluencePruner.Options()).prune(context).architecture.gates
    assert gates[[site.path for site in context.space.sites].index("up_blocks.1.attentions.0")] == 0


def test_width_gates_stay() -> None:
    unet = tiny_unet()
    context = tiny_pruner_context(unet, search_space(unet, "width-depth"), 0.8)
    gates = BlockInfluencePruner(BlockInfluencePruner.Options()).prune(context).architecture.gates
    assert (gates[context.space.width_gates] == 1).all()
    assert (gates == 0).any()
    assert not any(module._forward_hooks for module in unet.modules())
    depth = dataclasses.replace(asked(), target=1.0)
    assert (BlockInfluencePruner(BlockInfluencePruner.Options()).prune(depth).architecture.gates == 1).all()
