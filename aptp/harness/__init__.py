"""The one path every method takes: prepare → search → slice → recover → generate → evaluate → report."""

from __future__ import annotations

from aptp.harness.one_expert import recover_expert
from aptp.harness.plan import Plan, PlannedStage, plan
from aptp.harness.processes import leave
from aptp.harness.run import run

__all__ = ["Plan", "PlannedStage", "leave", "plan", "recover_expert", "run"]
