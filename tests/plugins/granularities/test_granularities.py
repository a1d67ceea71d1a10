"""Which parts each granularity gates; that masked equals sliced is tested with the gates."""

from __future__ import annotations

import pytest

from aptp.host import default_host
from aptp.plugins.denoisers.unet import UNetDenoiser
from aptp.testing import FAMILIES, tiny_unet


def sites(name: str, anatomy, **options):
    return list(default_host().create("granularity", name, options).sites(anatomy))


@pytest.mark.parametrize("family", FAMILIES)
def test_choices(family):
    anatomy = UNetDenoiser().anatomy(tiny_unet(family))
    last = [part for part in anatomy.blocks if part.path in anatomy.last_blocks]
    assert sites("width", anatomy) == list(anatomy.width)
    assert sites("depth", anatomy) == sites("depth", anatomy, blocks="all") == list(anatomy.blocks)
    assert sites("depth", anatomy, blocks="last") == last
    assert sites("width-depth", anatomy, blocks="all") == list(anatomy.parts)
    assert set(sites("width-depth", anatomy)) == {*anatomy.width, *last}
    assert 0 < len(last) < len(anatomy.blocks)
