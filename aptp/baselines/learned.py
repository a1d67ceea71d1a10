"""Learned: one code for all prompts, found by the search itself."""

from __future__ import annotations

from aptp.baselines.options import LearnedOptions
from aptp.core.pruner import Pruned, PrunerContext, StaticPruner


class LearnedPruner(StaticPruner):
    """The search stage with one code: the router that ignores the prompt, no balancer, one expert.

    Objective, steps and rate are those of the run's `search`. What routing adds is what APTP gains over this.
    """

    Options = LearnedOptions
    searches = True

    def __init__(self, options: LearnedOptions) -> None: ...

    def prune(self, context: PrunerContext) -> Pruned:
        self.check(context)
        return context.search()
