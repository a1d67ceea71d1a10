"""BK-SDM: fixed blocks go."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL

from aptp.api import search_space
from aptp.baselines.bk_sdm import BKSDMPruner
from aptp.core.errors import RequestError
from aptp.core.pruner import PrunerContext
from aptp.core.slicing import PassThrough, slice
from aptp.testing import FAMILIES, tiny_inputs, tiny_pruner_context, tiny_unet

BASE = {
    "down_blocks.0.resnets.1",
    "down_blocks.0.attentions.1",
    "down_blocks.1.resnets.1",
    "up_blocks.0.resnets.1",
    "up_blocks.1.resnets.1",
    "up_blocks.1.attentions.1",
}
MID = {"mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"}
EVEN = {"block_out_channels": (32, 32)}
"""Of which the innermost stage keeps its width, as Stable Diffusion's does."""


def asked(family: str = "sd2", granularity: str = "depth", **config: object) -> PrunerContext:
    unet = tiny_unet(family, **config)
    options = {} if granularity == "width" else {"blocks": "all"}
    return tiny_pruner_context(unet, search_space(unet, granularity, **options))


def dropped(context: PrunerContext, size: str) -> set[str]:
    gates = BKSDMPruner(BKSDMPruner.Options(size=size)).prune(context).architecture.gates
    return {context.space.sites[i].path for i in context.space.site_of_gate[gates == 0].tolist()}


@pytest.mark.parametrize("granularity", ["depth", "width-depth"])
def test_base_and_small_drop_what_bk_sdm_does(granularity: str) -> None:
    context = asked(granularity=granularity)
    assert dropped(context, "base") == BASE
    assert dropped(context, "small") == BASE | MID


def test_tiny_drops_the_innermost_stages() -> None:
    inner = {
        f"{stage}.resnets.{i}" for stage, count in (("down_blocks.1", 2), ("up_blocks.0", 3)) for i in range(count)
    }
    assert dropped(asked(**EVEN), "tiny") == BASE | MID | inner


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_that_is_left_runs_without_them(family: str) -> None:
    context = asked(family, **EVEN)
    costs = []
    for size in ("base", "small", "tiny"):
        architecture = BKSDMPruner(BKSDMPruner.Options(size=size)).prune(context).architecture
        small = slice(context.module, context.space, architecture)
        assert isinstance(small.get_submodule("down_blocks.0.resnets.1"), PassThrough)
        with torch.no_grad():
            assert small(**tiny_inputs(context.module)).sample.isfinite().all()
        costs.append(float(context.cost_model.fraction(architecture.gates)))
    assert 1 > costs[0] > costs[1] > costs[2] > context.cost_model.floor


def test_one_layer_a_block_leaves_nothing_to_pair() -> None:
    assert dropped(asked(layers_per_block=1), "base") == set()
    assert {path.split(".")[-1] for path in dropped(asked(layers_per_block=4), "base")} == {"1", "3"}


def test_the_target_does_not_matter() -> None:
    context = dataclasses.replace(asked(), target=0.01)
    assert dropped(context, "base") == BASE


def test_refuses_what_is_no_depth_site() -> None:
    with pytest.raises(RequestError, match=r"'base' drops 'down_blocks\.0\.resnets\.1', which is no depth site.*floor"):
        dropped(asked(granularity="width"), "base")
    with pytest.raises(RequestError, match=r"'tiny' drops 'down_blocks\.1\.resnets\.0'.*width changes"):
        dropped(asked(), "tiny")
    unet = tiny_unet()
    last = tiny_pruner_context(unet, search_space(unet, "depth", blocks="last"))
    with pytest.raises(RequestError, match=r"'up_blocks\.0\.resnets\.1'.*blocks=all"):
        dropped(last, "base")
    other = dataclasses.replace(asked(), module=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4))
    with pytest.raises(RequestError, match="a U-Net, which a AutoencoderKL is not"):
        dropped(other, "base")
