"""What the page says in several places."""

from __future__ import annotations

from aptp.report.comparison.intervals import Interval
from aptp.report.comparison.trials import Comparison, Setting
from aptp.report.wording import number, percent


def plus_minus(found: Interval) -> str:
    """A mean and half its interval."""
    return number(found.mean) if found.half is None else f"{number(found.mean)} ± {number(found.half, 2)}"


def setting_title(comparison: Comparison, setting: Setting) -> str:
    """A setting as a heading."""
    protocol = f", protocol {setting.letter}" if comparison.mixed else ""
    changed = f" ({found[0]})" if len(found := comparison.changed(setting.letter)) == 1 else ""
    return f"{percent(setting.budget, 0)} of the dense {unit_of(comparison)}{protocol}{changed}"


def unit_of(comparison: Comparison) -> str:
    """What the budget counts."""
    budget = next((s.record.budget for s in comparison.sources if s.record.budget), None)
    return budget.unit if budget else "cost"
