from __future__ import annotations

import aptp
from aptp.core.architecture import SearchSpace
from aptp.report.anatomy_figure import architecture_picture, dropped, legend, slots_of
from aptp.testing import tiny_sd3, tiny_space


def test_every_width_site_has_one_place_in_running_order(space: SearchSpace) -> None:
    slots = slots_of(space)
    shown = [index for slot in slots for index in slot.sites]
    assert shown == [index for index, site in enumerate(space.sites) if not site.is_block]
    assert list(dict.fromkeys(slot.stage for slot in slots)) == [
        "down 0",
        "down 1",
        "down 2",
        "mid",
        "up 0",
        "up 1",
        "up 2",
    ]
    assert [slot.label for slot in slots[:6]] == ["R0", "R1", "R0", "A0", "R1", "A1"]


def test_dropped_block_drops_the_module_within(space: SearchSpace) -> None:
    block = next(i for i, site in enumerate(space.sites) if site.path == "down_blocks.1.attentions.1")
    gates = space.ones()
    gates[space.slices[block]] = 0
    architecture = aptp.Architecture(space, gates)
    gone = [slot.path for slot in slots_of(space) if dropped(architecture, slot)]
    assert gone == ["down_blocks.1.attentions.1.transformer_blocks.0"]
    picture = architecture_picture([architecture], ["expert 0"], [0.9])
    assert "expert 0 drops 1 of" in picture.alt


def test_space_of_blocks_alone_has_a_place_a_block(space: SearchSpace) -> None:
    blocks = SearchSpace(tuple(site for site in space.sites if site.is_block))
    slots = slots_of(blocks)
    assert [slot.path for slot in slots] == [site.path for site in blocks.sites]
    assert [slot.gates for slot in slots] == [(i,) for i in range(blocks.num_gates)]


def test_legend_tells_what_a_u_net_s_columns_and_stripes_are(space: SearchSpace) -> None:
    assert legend(space) == (
        "R is a ResNet block, whose units are groups of channels. A is an attention module with a stripe for each of "
        "its sites: heads of self-attention, heads of cross-attention, feed-forward units."
    )
    blocks = SearchSpace(tuple(site for site in space.sites if site.is_block))
    assert legend(blocks).endswith("A is an attention module.")


def test_a_transformer_has_a_column_a_block() -> None:
    space = tiny_space(tiny_sd3("sd3.5"))
    slots = slots_of(space)
    assert [(slot.stage, slot.label, len(slot.sites), len(slot.gates)) for slot in slots] == [
        ("transformer blocks", "0", 4, 1),
        ("transformer blocks", "1", 4, 1),
        ("transformer blocks", "2", 2, 1),
    ]
    assert legend(space) == (
        "A number is a transformer block with a stripe for each of its sites: heads of joint attention, heads of the "
        "image's own attention, feed-forward units of the image, feed-forward units of the text."
    )
    gates = space.ones()
    gates[-sum(space.sites[index].units for index in slots[-1].sites) - 1] = 0
    picture = architecture_picture([aptp.Architecture(space, gates)], ["expert 0"], [0.7])
    assert "expert 0 drops 1 of 3 modules" in picture.alt
