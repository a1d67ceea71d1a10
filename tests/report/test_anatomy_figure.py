from __future__ import annotations

import aptp
from aptp.core.architecture import SearchSpace
from aptp.report.anatomy_figure import architecture_picture, dropped, slots_of


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
