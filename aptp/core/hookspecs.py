"""The hooks through which every strategy enters, built-in or a stranger's. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from aptp.core.record import Record, StepEvent

hookspec = pluggy.HookspecMarker("aptp")
hookimpl = pluggy.HookimplMarker("aptp")


@dataclass(frozen=True)
class PluginSpec:
    """A named strategy: where it is found, not the thing itself, so that listing and help import no torch.

    `target` is `"package.module:Class"`. `options` names the class's pydantic options model in the same form; give it
    where importing the target is slow (it imports torch), so that a bad option is refused at once. Without it the
    class's own `Options` attribute is used.
    """

    name: str
    target: str
    summary: str
    options: str | None = None


class Hooks:
    """What a plugin may implement; every hook of the first group returns the specs it adds."""

    @hookspec
    def aptp_routers(self) -> list[PluginSpec]:
        """Routers: prompts to experts (`aptp.core.router.Router`)."""

    @hookspec
    def aptp_balancers(self) -> list[PluginSpec]:
        """Balancers: scores to a training assignment (`aptp.core.balancer.Balancer`)."""

    @hookspec
    def aptp_granularities(self) -> list[PluginSpec]:
        """Granularities: which parts of a denoiser get gates (`aptp.core.granularity.Granularity`)."""

    @hookspec
    def aptp_budgets(self) -> list[PluginSpec]:
        """Budget estimators: the cost of a gated denoiser (`aptp.core.budget.BudgetEstimator`)."""

    @hookspec
    def aptp_pruners(self) -> list[PluginSpec]:
        """Static pruners: one architecture for all prompts (`aptp.core.pruner.StaticPruner`)."""

    @hookspec
    def aptp_metrics(self) -> list[PluginSpec]:
        """Metrics of generated pictures (`aptp.core.metric.Metric`)."""

    @hookspec
    def aptp_datasets(self) -> list[PluginSpec]:
        """Captioned picture sets (`aptp.core.data.CaptionedDataset`)."""

    @hookspec
    def aptp_encoders(self) -> list[PluginSpec]:
        """Prompt encoders: texts to embeddings (`aptp.core.encoder.PromptEncoder`)."""

    @hookspec
    def aptp_denoisers(self) -> list[PluginSpec]:
        """Denoiser families: the anatomy and the calling convention of a model (`aptp.core.denoiser.Denoiser`)."""

    @hookspec
    def aptp_step_end(self, step: StepEvent) -> None:
        """Observe the end of a training step of any stage: its stage, number, and scalar values."""

    @hookspec
    def aptp_run_end(self, record: Record) -> None:
        """Observe the end of a run: its whole record."""
