"""Depth: whole ResNet blocks and attention modules, or single transformer blocks."""

from __future__ import annotations

from collections.abc import Sequence

from aptp.core.anatomy import Anatomy
from aptp.core.architecture import GateSite
from aptp.core.granularity import Granularity
from aptp.plugins.options import DepthOptions


class Depth(Granularity):
    """Gates blocks: all of the anatomy's, or the last of each stage."""

    Options = DepthOptions

    def __init__(self, options: DepthOptions) -> None:
        self.options = options

    def sites(self, anatomy: Anatomy) -> Sequence[GateSite]:
        return [part for part in anatomy.blocks if self.options.blocks == "all" or part.path in anatomy.last_blocks]
