"""BK-SDM: fixed blocks go, whatever the budget."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from aptp.baselines.options import BKSDMOptions
from aptp.core.architecture import Architecture
from aptp.core.pruner import Pruned, PrunerContext, StaticPruner, misfit


class BKSDMPruner(StaticPruner):
    """Drops the blocks that BK-SDM drops; its cost is its own, so it takes no target.

    `base`: of the pairs of a ResNet block and an attention in a down block every second, in an up block every second
    but the last (of Stable Diffusion's two and three: the second, and the middle one). `small`: the mid block too.
    `tiny`: the innermost down and up block too, whose sampling convolutions stay, unlike there. (Kim et al. 2023,
    "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion".)
    """

    Options = BKSDMOptions
    takes_target = False

    def __init__(self, options: BKSDMOptions) -> None:
        self.options = options

    def check(self, context: PrunerContext) -> None:
        self._dropped(context)

    def prune(self, context: PrunerContext) -> Pruned:
        gates = context.space.ones()
        gates[self._dropped(context)] = 0.0
        return Pruned(Architecture(context.space, gates))

    def _dropped(self, context: PrunerContext) -> list[int]:
        """The gates of the depth sites that go. Raises `RequestError` for a block that is none."""
        name, gates = f"pruner 'bk-sdm' of size {self.options.size!r}", []
        if not hasattr(context.module, "down_blocks"):
            raise misfit(context, f"{name} drops blocks of a U-Net, which a {type(context.module).__name__} is not")
        places = list(zip(context.space.sites, context.space.slices, strict=True))
        for path in self._paths(context.module):
            found = [p.start for s, p in places if s.is_block and f"{s.path}.".startswith(f"{path}.")]
            if not found:
                raise misfit(
                    context,
                    f"{name} drops {path!r}, which is no depth site here; choose granularity depth or width-depth with "
                    "blocks=all, or, where that gates no such block because its width changes, another size",
                )
            gates += found
        return gates

    def _paths(self, unet: nn.Module) -> Iterator[str]:
        for index, block in enumerate(unet.down_blocks):
            inner = self.options.size == "tiny" and block is unet.down_blocks[-1]
            layers = len(block.resnets)
            yield from _layers(f"down_blocks.{index}", block, range(layers) if inner else range(1, layers, 2))
        if self.options.size != "base" and unet.mid_block is not None:
            yield from _layers("mid_block", unet.mid_block, range(len(unet.mid_block.resnets)))
        for index, block in enumerate(unet.up_blocks):
            inner = self.options.size == "tiny" and index == 0
            layers = len(block.resnets)
            yield from _layers(f"up_blocks.{index}", block, range(layers) if inner else range(1, layers - 1, 2))


def _layers(path: str, block: nn.Module, indices: range) -> Iterator[str]:
    """The ResNet blocks and attentions of a stage at these places."""
    attentions = getattr(block, "attentions", [])
    for index in indices:
        yield f"{path}.resnets.{index}"
        if index < len(attentions):
            yield f"{path}.attentions.{index}"
