"""Which parts each granularity gates; that masked equals sliced is tested with the gates."""

from __future__ import annotations

import pytest

from aptp.api import denoiser_of
from aptp.host import default_host
from aptp.testing import FAMILIES, MODELS


def sites(name: str, anatomy, **options):
    return list(default_host().create("granularity", name, options).sites(anatomy))


@pytest.mark.parametrize("family", MODELS)
def test_choices(family):
    anatomy = denoiser_of(model := MODELS[family]()).anatomy(model)
    last = [part for part in anatomy.blocks if part.path in anatomy.last_blocks]
    assert sites("width", anatomy) == list(anatomy.width)
    assert sites("depth", anatomy) == sites("depth", anatomy, blocks="all") == list(anatomy.blocks)
    assert sites("depth", anatomy, blocks="last") == last
    assert sites("width-depth", anatomy, blocks="all") == list(anatomy.parts)
    assert set(sites("width-depth", anatomy)) == {*anatomy.width, *last}
    assert (0 < len(last) < len(anatomy.blocks)) if family in FAMILIES else last == list(anatomy.blocks)
