"""Static pruners, one file each: one architecture for all prompts. Imports no torch."""

from __future__ import annotations

from aptp.core.hookspecs import PluginSpec, hookimpl


@hookimpl
def aptp_pruners() -> list[PluginSpec]:
    return [
        PluginSpec(
            "bk-sdm",
            "aptp.baselines.bk_sdm:BKSDMPruner",
            "drops fixed blocks, at a cost of its own",
            "aptp.baselines.options:BKSDMOptions",
        ),
        PluginSpec(
            "block-influence",
            "aptp.baselines.block_influence:BlockInfluencePruner",
            "drops the blocks that change their input least",
            "aptp.baselines.options:BlockInfluenceOptions",
        ),
        PluginSpec(
            "diff-pruning",
            "aptp.baselines.diff_pruning:DiffPruningPruner",
            "keeps the units with the largest first-order change of the loss at informative diffusion times",
            "aptp.baselines.options:DiffPruningOptions",
        ),
        PluginSpec(
            "learned",
            "aptp.baselines.learned:LearnedPruner",
            "one code for all prompts, found by the search",
            "aptp.baselines.options:LearnedOptions",
        ),
        PluginSpec(
            "magnitude",
            "aptp.baselines.magnitude:MagnitudePruner",
            "keeps the units with the largest weights",
            "aptp.baselines.options:MagnitudeOptions",
        ),
        PluginSpec(
            "obs",
            "aptp.baselines.obs:OBSPruner",
            "drops the units whose layer can best do without, and updates the weights that stay",
            "aptp.baselines.options:OBSOptions",
        ),
        PluginSpec(
            "random",
            "aptp.baselines.random:RandomPruner",
            "keeps units drawn by seed",
            "aptp.baselines.options:RandomOptions",
        ),
        PluginSpec(
            "taylor",
            "aptp.baselines.taylor:TaylorPruner",
            "keeps the units with the largest first-order change of the loss",
            "aptp.baselines.options:TaylorOptions",
        ),
        PluginSpec(
            "uniform",
            "aptp.baselines.uniform:UniformPruner",
            "keeps the same share of units at every width site",
            "aptp.baselines.options:UniformOptions",
        ),
    ]
