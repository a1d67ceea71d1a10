"""Width and depth together: APTP's search space."""

from __future__ import annotations

from collections.abc import Sequence

from aptp.core.anatomy import Anatomy
from aptp.core.architecture import GateSite
from aptp.core.granularity import Granularity
from aptp.plugins.options import WidthDepthOptions


class WidthDepth(Granularity):
    """Gates every width part, and blocks: the last of each stage (APTP's), or all."""

    Options = WidthDepthOptions

    def __init__(self, options: WidthDepthOptions) -> None:
        self.options = options
        self.align = options.align

    def sites(self, anatomy: Anatomy) -> Sequence[GateSite]:
        return [
            part
            for part in anatomy.parts
            if not part.is_block or self.options.blocks == "all" or part.path in anatomy.last_blocks
        ]
