"""Parts of diffusers layers, and those that are refused."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from aptp.core import anatomy
from aptp.core.anatomy import Anatomy, Cut, Part
from aptp.core.errors import RequestError


def resnet(**options) -> ResnetBlock2D:
    return ResnetBlock2D(in_channels=8, out_channels=16, temb_channels=4, groups=4, **options)


def test_resnet_units_are_the_groups_of_its_second_norm():
    part = anatomy.resnet_channels("r", resnet(groups_out=8), inside=["outer"])
    assert (part.units, part.taps, part.channel_dim, part.inside) == (8, ("r.conv2",), 1, ("outer",))
    assert {(c.path, c.side, c.chunks) for c in part.cuts} == {
        ("r.conv1", "out", 1),
        ("r.norm2", "out", 1),
        ("r.conv2", "in", 1),
        ("r.time_emb_proj", "out", 1),
    }
    scaled = anatomy.resnet_channels("r", resnet(time_embedding_norm="scale_shift"))
    assert Cut("r.time_emb_proj", "out", 2) in scaled.cuts


def test_heads():
    part = anatomy.attention_heads("a", Attention(16, heads=4, dim_head=4))
    assert (part.units, part.taps, part.channel_dim) == (4, ("a.to_out.0",), -1)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"qk_norm": "layer_norm_across_heads", "kv_heads": 4}, "across heads"),
        ({"kv_heads": 2}, "groups its keys"),
        ({"added_kv_proj_dim": 8}, "second set of keys"),
    ],
)
def test_heads_that_cannot_be_cut_apart_are_refused(options, why):
    with pytest.raises(RequestError, match=why):
        anatomy.attention_heads("a", Attention(16, heads=4, dim_head=4, **options))


@pytest.mark.parametrize("ends", [False, True])
def test_a_joint_head_is_one_unit_of_both_streams(ends):
    attention = Attention(16, heads=4, dim_head=4, out_dim=16, added_kv_proj_dim=16, context_pre_only=ends)
    part = anatomy.joint_attention_heads("a", attention, inside=["outer"])
    assert (part.units, part.channel_dim, part.inside) == (4, -1, ("outer",))
    assert part.taps == (("a.to_out.0",) if ends else ("a.to_out.0", "a.to_add_out"))
    assert {cut.path for cut in part.cuts if cut.side == "in"} == set(part.taps)
    assert {cut.path for cut in part.cuts if cut.side == "out"} == {
        *("a.to_q", "a.to_k", "a.to_v"),
        *("a.add_q_proj", "a.add_k_proj", "a.add_v_proj"),
    }


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "one stream alone"),
        ({"added_kv_proj_dim": 8}, "one stream alone"),
        ({"added_kv_proj_dim": 8, "context_pre_only": False, "kv_heads": 2}, "groups its keys"),
        (
            {"added_kv_proj_dim": 8, "context_pre_only": False, "kv_heads": 4, "qk_norm": "rms_norm_across_heads"},
            "across heads",
        ),
    ],
)
def test_joint_heads_that_cannot_be_cut_apart_are_refused(options, why):
    with pytest.raises(RequestError, match=why):
        anatomy.joint_attention_heads("a", Attention(16, heads=4, dim_head=4, **options))


def test_norms_within_heads_are_fine():
    assert anatomy.attention_heads("a", Attention(16, heads=4, dim_head=4, qk_norm="layer_norm")).units == 4


@pytest.mark.parametrize(("width", "units"), [(64, 32), (48, 24), (31, 31), (37, 1), (320, 32)])
def test_feedforward_bundles_divide_the_hidden_units(width, units):
    part = anatomy.feedforward_units("f", FeedForward(8, inner_dim=width, activation_fn="geglu"))
    assert part.units == units
    assert part.cuts == (Cut("f.net.0.proj", "out", 2), Cut("f.net.2", "in"))
    assert anatomy.feedforward_units("f", FeedForward(8, inner_dim=width, activation_fn="gelu")).cuts[0].chunks == 1


def test_an_anatomy_tells_width_from_blocks():
    block, heads = anatomy.block("b", 8), Part("b.a", "attention_heads", 2)
    both = Anatomy((block, heads))
    assert both.blocks == (block,)
    assert both.width == (heads,)
    assert block.is_block
    assert (block.units, block.channels) == (1, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cut("x", "around"),
        lambda: Cut("x", "in", 0),
        lambda: Part("x", "soul", 1),
        lambda: Part("x", "attention_heads", 0),
    ],
)
def test_impossible_parts_are_refused(make):
    with pytest.raises(RequestError, match="'x'"):
        make()


def test_a_path_to_nowhere_names_itself():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    assert anatomy.submodule(model, "0") is model[0]
    with pytest.raises(RequestError, match=r"Sequential has no '0\.weights'"):
        anatomy.submodule(model, "0.weights")
