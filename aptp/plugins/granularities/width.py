"""Width: channel groups of ResNet blocks, attention heads, feed-forward bundles."""

from __future__ import annotations

from collections.abc import Sequence

from aptp.core.anatomy import Anatomy
from aptp.core.architecture import GateSite
from aptp.core.granularity import Granularity
from aptp.plugins.options import WidthOptions


class Width(Granularity):
    """Gates every width part of the anatomy."""

    Options = WidthOptions

    def __init__(self, options: WidthOptions) -> None:
        self.align = options.align

    def sites(self, anatomy: Anatomy) -> Sequence[GateSite]:
        return anatomy.width
