"""Search spaces and architectures: places, order, files, thresholds."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.anatomy import Part
from aptp.core.architecture import Architecture, SearchSpace, harden
from aptp.core.errors import RequestError
from aptp.testing import tiny_space, tiny_unet


def space_of(*units: int) -> SearchSpace:
    """0 units stand for a block, which the width sites after it are inside of."""
    sites, block = [], ()
    for index, count in enumerate(units):
        if count == 0:
            sites.append(Part(f"block{index}", "block", 1))
            block = (f"block{index}",)
        else:
            sites.append(Part(f"site{index}", "resnet_channels", count, inside=block))
    return SearchSpace(tuple(sites))


spaces = st.lists(st.integers(0, 5), min_size=1, max_size=8).map(lambda units: space_of(*units))


def test_places():
    space = space_of(3, 0, 2)
    assert space.num_gates == 6
    assert space.slices == (slice(0, 3), slice(3, 4), slice(4, 6))
    assert space.site_of_gate.tolist() == [0, 0, 0, 1, 2, 2]
    assert space.width_gates.tolist() == [True] * 3 + [False] + [True] * 2
    assert space.blocks_of_site == ((), (3,), (3,))
    assert torch.equal(space.ones(), torch.ones(6))


def test_what_describes_a_space_is_all_of_its_sites():
    space = tiny_space(tiny_unet("sd2"))
    assert space.to_dict() == {"sites": [dataclasses.asdict(site) for site in space.sites], "align": 1}


def test_an_empty_space_is_refused():
    with pytest.raises(RequestError, match="nothing to gate"):
        SearchSpace(())
    with pytest.raises(RequestError, match="at most 16,777,216 gates, not 1,000,000,000,003"):
        space_of(3, 10**12)


@pytest.mark.parametrize(("blocks", "order"), [(0, []), (1, [0]), (2, [1, 0]), (5, [4, 0, 3, 1, 2])])
def test_depth_goes_from_the_outside_in(blocks, order):
    assert space_of(*[0] * blocks, 2).depth_order.tolist() == order


def test_the_real_depth_order_starts_at_both_ends_and_leaves_the_middle_to_last():
    space = tiny_space(tiny_unet("sd2"))
    paths = [space.sites[i].path for i in space.site_of_gate[space.depth_order].tolist()]
    assert paths[0].startswith("up_blocks.1")
    assert paths[1].startswith("down_blocks.0")
    assert "mid_block" in {paths[-1].split(".")[0], paths[-2].split(".")[0]}


@given(space=spaces, seed=st.integers(0, 99))
def test_features_are_the_paper_s_similarity(space, seed):
    torch.manual_seed(seed)
    gates = torch.rand(2, space.num_gates, dtype=torch.float64) + 0.1
    rows = []
    for row in gates:
        vector, block = [], 1.0
        for site, place in zip(space.sites, space.slices, strict=True):
            if site.is_block:
                block = row[place.start].item()
                vector.append(block)
            else:
                vector += [gate * (block if site.inside else 1.0) / site.units**0.5 for gate in row[place].tolist()]
        rows.append(torch.tensor(vector, dtype=torch.float64))
    features = space.features(gates)
    torch.testing.assert_close((features[0] * features[1]).sum(), torch.cosine_similarity(*rows, dim=0))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, dtype=torch.float64))


@given(space=spaces, keep=st.floats(0, 1), seed=st.integers(0, 99))
def test_random_architectures_are_valid_seeded_and_saved(space, keep, seed, tmp_path_factory):
    architecture = Architecture.random(space, keep, seed)
    assert torch.equal(architecture.gates, Architecture.random(space, keep, seed).gates)
    for site, kept in zip(space.sites, architecture.kept, strict=True):
        assert kept or site.is_block
    path = tmp_path_factory.mktemp("architecture") / "architecture.json"
    architecture.save(path)
    loaded = Architecture.load(path)
    assert torch.equal(loaded.gates, architecture.gates)
    assert loaded.space.sites == space.sites
    assert loaded.space.signature == space.signature


def test_a_file_from_before_blocks_had_several_streams_is_read(tmp_path):
    architecture = Architecture.random(space_of(2, 0), 0.5)
    architecture.save(tmp_path / "architecture.json")
    data = json.loads((tmp_path / "architecture.json").read_text())
    for site in data["sites"]:
        del site["streams"]
    (tmp_path / "architecture.json").write_text(json.dumps(data))
    assert Architecture.load(tmp_path / "architecture.json").space.signature == architecture.space.signature


def test_keep_is_a_probability():
    space = space_of(*[50] * 20)
    assert Architecture.random(space, 1.0).gates.min() == 1
    assert Architecture.random(space, 0.0).gates.sum() == 20
    assert Architecture.random(space, 0.7).gates.mean().item() == pytest.approx(0.7, abs=0.05)
    with pytest.raises(RequestError, match=r"1\.5"):
        Architecture.random(space, 1.5)


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ([1.0, 1.0], "has 3 gates"),
        ([0.5, 1.0, 1.0], "0 or 1"),
        ([float("nan"), 1, 1], "0 or 1"),
        ([0.0, 0.0, 1.0], "no unit"),
    ],
)
def test_gates_that_are_no_architecture_are_refused(gates, message):
    with pytest.raises(RequestError, match=message):
        Architecture(space_of(2, 0), torch.tensor(gates))


def test_signatures_tell_spaces_apart():
    assert space_of(2, 0).signature == space_of(2, 0).signature
    assert len({space_of(*units).signature for units in [(2, 0), (0, 2), (3, 0), (2,)]}) == 4


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "sites": [1], "kept": [[0]]}', '{"format": 2}'],
)
def test_files_that_are_no_architecture_are_refused(text, tmp_path):
    path = tmp_path / "architecture.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"architecture\.json"):
        Architecture.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="nowhere"):
        Architecture.load(tmp_path / "nowhere.json")


def test_the_file_is_plain(tmp_path):
    Architecture.dense(space_of(2, 0)).save(tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["kept"] == [[0, 1], [0]]
    assert [site["path"] for site in data["sites"]] == ["site0", "block1"]


@given(space=spaces, threshold=st.floats(0, 1), seed=st.integers(0, 99))
def test_hardening(space, threshold, seed):
    torch.manual_seed(seed)
    soft = torch.rand(3, space.num_gates)
    hard = harden(space, soft, threshold)
    for row, soft_row in zip(hard, soft, strict=True):
        for site, place in zip(space.sites, space.slices, strict=True):
            expected = (soft_row[place] >= threshold).float()
            if not site.is_block and expected.sum() == 0:
                expected[soft_row[place].argmax()] = 1.0
            assert torch.equal(row[place], expected)


def aligned_space(sites: list[tuple[int, int]], align: int) -> SearchSpace:
    """A width site for each pair of its number of units and the channels of one, and a block."""
    parts = [
        Part(f"site{index}", "attention_heads", units, channels=units * size)
        for index, (units, size) in enumerate(sites)
    ]
    return SearchSpace((*parts, Part("block", "block", 1, channels=7)), align)


aligned = st.builds(
    aligned_space,
    st.lists(st.tuples(st.integers(1, 32), st.sampled_from([1, 2, 6, 10, 20, 40, 64])), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3, 8, 12, 16, 32, 64]),
)


@given(space=aligned, seed=st.integers(0, 99))
def test_widths_are_aligned_at_every_threshold(space, seed):
    torch.manual_seed(seed)
    soft = torch.rand(2, space.num_gates)
    before = space.ones().expand_as(soft)
    for threshold in torch.linspace(0, 1.01, 12).tolist():
        hard = harden(space, soft, threshold)
        assert (hard <= before).all(), "what a lower threshold closes stays closed"
        for row in hard:
            for site, kept in zip(space.sites, Architecture(space, row).kept, strict=True):
                channels = len(kept) * site.channels // site.units
                assert site.is_block or channels % space.align == 0 or channels == site.channels
                assert site.is_block or channels
        before = hard
    assert space.align > 1 or torch.equal(harden(space, soft, 0.5), harden(SearchSpace(space.sites), soft, 0.5))


@given(space=aligned, seed=st.integers(0, 99))
def test_what_goes_together_is_next_in_size_and_keeps_the_sum(space, seed):
    torch.manual_seed(seed)
    soft = torch.rand(3, space.num_gates, dtype=torch.float64, requires_grad=True)
    together = space.aligned(soft)
    for site, place, size in zip(space.sites, space.slices, space.strides, strict=True):
        assert site.is_block or size * site.channels // site.units % space.align == 0
        own, order = together[:, place], soft[:, place].argsort(-1, descending=True)
        torch.testing.assert_close(own.sum(-1), soft[:, place].sum(-1))
        steps = own.gather(-1, order).diff(dim=-1)
        assert (steps <= 1e-12).all(), "a larger gate stays the larger"
        assert all(abs(step) <= 1e-12 for row in steps.tolist() for i, step in enumerate(row) if (i + 1) % size)
    (slope,) = torch.autograd.grad(together.sum(), soft)
    torch.testing.assert_close(slope, torch.ones_like(soft))


def test_the_least_that_is_aligned_stays():
    space = aligned_space([(8, 10), (3, 10), (6, 6)], 20)
    assert space.strides == (2, 2, 10, 1)
    assert harden(space, torch.zeros(space.num_gates)).tolist() == [1, 1] + [0] * 6 + [1, 1, 0] + [1] * 6 + [0]
    few = Architecture.random(space, keep=0.0)
    assert [len(kept) for kept in few.kept[:3]] == [2, 2, 6]


def test_what_is_not_aligned_is_refused(tmp_path):
    space = aligned_space([(8, 10)], 20)
    gates = space.ones()
    gates[0] = 0
    with pytest.raises(RequestError, match="'site0' keeps 70 of 80 channels, which is no multiple of the 20"):
        Architecture(space, gates)
    with pytest.raises(RequestError, match=r"'site' has 0 channels in 4 units"):
        SearchSpace((Part("site", "attention_heads", 4),), align=8)
    with pytest.raises(RequestError, match="1 or more, not 0"):
        SearchSpace(space.sites, align=0)
    gates[1] = 0
    Architecture(space, gates).save(tmp_path / "a.json")
    again = Architecture.load(tmp_path / "a.json").space
    assert again == space
    assert again.signature != SearchSpace(space.sites).signature
