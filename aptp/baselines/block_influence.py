"""Block influence: drop the blocks that change least of what passes through them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from aptp.baselines.options import BlockInfluenceOptions
from aptp.core.anatomy import Part
from aptp.core.gates import passed_on
from aptp.core.pruner import PrunerContext, ScoringPruner, check_reach, misfit


class BlockInfluencePruner(ScoringPruner):
    """A block's score is 1 − the mean cosine between what would pass it by and what leaves it.

    The cosine is taken over channels, at every place of an image or token of a sequence, the mean also over calibration
    batches, and of a joint block over both its streams. Width gates all stay, so the floor is that of the blocks alone.
    (Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", equation 1.)
    """

    Options = BlockInfluenceOptions

    def __init__(self, options: BlockInfluenceOptions) -> None:
        self.options = options

    def check(self, context: PrunerContext) -> None:
        if context.space.width_gates.all():
            raise misfit(
                context,
                "pruner 'block-influence' drops whole blocks, and this space has none; choose granularity depth or "
                "width-depth",
            )
        check_reach(context, ~context.space.width_gates)

    def scores(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        """Of every gate, in [0, 2] for blocks and infinite for width gates."""
        scores = torch.full((context.space.num_gates,), torch.inf, dtype=torch.float64)
        with torch.no_grad(), _influences(context) as seen:
            for _ in context.calibration_loss(batches=self.options.batches):
                pass
        for gate, values in seen.items():
            scores[gate] = torch.stack(values).mean().cpu()
        return scores


@contextmanager
def _influences(context: PrunerContext) -> Iterator[dict[int, list[Tensor]]]:
    """Collect, by gate, each call's mean of 1 − cosine."""
    seen: dict[int, list[Tensor]] = {}

    def watch(site: Part, values: list[Tensor]) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            answer = output if isinstance(output, tuple) else (getattr(output, "sample", output),)
            cosines = [
                cosine_similarity(passed.double(), leaving.double(), dim=1 if leaving.ndim == 4 else -1).flatten()
                for passed, leaving in zip(passed_on(site, args, kwargs), answer, strict=False)
                if leaving is not None
            ]
            values.append(1 - torch.cat(cosines).mean())

        return context.module.get_submodule(site.path).register_forward_hook(hook, with_kwargs=True)

    with ExitStack() as stack:
        for site, place in zip(context.space.sites, context.space.slices, strict=True):
            if site.is_block:
                stack.callback(watch(site, seen.setdefault(place.start, [])).remove)
        yield seen
