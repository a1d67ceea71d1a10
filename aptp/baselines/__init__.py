"""Static pruners, one file each: one architecture for all prompts. Imports no torch."""

from __future__ import annotations

from aptp.core.hookspecs import PluginSpec, hookimpl


@hookimpl
def aptp_pruners() -> list[PluginSpec]:
    return [
        PluginSpec(
            "magnitude",
            "aptp.baselines.magnitude:MagnitudePruner",
            "keeps the units with the largest weights",
            "aptp.baselines.options:MagnitudeOptions",
        ),
        PluginSpec(
            "random",
            "aptp.baselines.random:RandomPruner",
            "keeps units drawn by seed",
            "aptp.baselines.options:RandomOptions",
        ),
    ]
