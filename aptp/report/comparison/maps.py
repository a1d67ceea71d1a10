"""Figures of the experts: how costly and how busy, who goes where, and each expert on the others' prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from aptp.report.comparison.charts import shown
from aptp.report.comparison.methods import Method
from aptp.report.comparison.tables import by_cost, load_of
from aptp.report.comparison.trials import Comparison, Setting, Trial
from aptp.report.drawing import BLUE, LOAD, RULE, VERMILLION, Picture, draw, heat_map
from aptp.report.routing import column_shades, frame_diagonal
from aptp.report.wording import listed, number, percent

STYLES = ("-", "--", "-.", ":")
LEAST_SPAN = 0.05
"""Costs that are less of the dense cost apart do not get all shades from pale to dark."""
COLUMNS = 4


def routed(comparison: Comparison, setting: Setting) -> dict[Method, list[Trial]]:
    """The routed methods that figures show, with the runs whose experts are on record."""
    runs = {m: [t for t in comparison.runs(setting, m) if t.own] for m in shown(comparison) if m.kind == "routed"}
    return {method: trials for method, trials in runs.items() if trials}


def experts_picture(comparison: Comparison, setting: Setting) -> Picture | None:
    """The cost of the expert that each share of the prompts gets, cheapest first: a line a seed, a panel a method."""
    methods = routed(comparison, setting)
    if not methods:
        return None
    rows = -(-len(methods) // COLUMNS)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True)
        for axes, (method, trials) in zip(grid.flatten(), methods.items(), strict=False):
            for place, trial in enumerate(trials):
                experts = by_cost(trial.source.record.experts)
                loads = np.cumsum([0.0, *(load_of(e) for e in experts)])
                costs = [e.fraction for e in experts]
                style = STYLES[place % len(STYLES)]
                axes.step(loads, [costs[0], *costs], where="pre", color=BLUE, lw=1.3, ls=style)
            axes.axhline(setting.budget, color=VERMILLION, lw=1, ls="--")
            axes.set_title(comparison.label(setting, method), fontsize=8.5, wrap=True)
            axes.grid(color=RULE, lw=0.5)
            axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))  # with the decimals that the range needs
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("% of the prompts")
        for axes in grid.flatten()[len(methods) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("cost, % of dense")

    told = []
    for method, trials in methods.items():
        costs = [e.fraction for t in trials for e in t.source.record.experts]
        told.append(f"{method.name} from {percent(min(costs), 0)} to {percent(max(costs), 0)}")
    alt = f"Cost of the expert that each share of the prompts gets, at {percent(setting.budget, 0)}: {listed(told)}."
    return draw(alt, 2.6 * rows, paint)


def kinds_picture(comparison: Comparison, setting: Setting) -> Picture | None:
    """What share of a kind goes to which expert, those of each seed in order of cost; mean over seeds."""
    methods = {m: found for m, trials in routed(comparison, setting).items() if (found := _kinds(trials)) is not None}
    if not methods:
        return None
    kinds = list(dict.fromkeys(kind for names, _ in methods.values() for kind in names))
    columns = max(2, min(COLUMNS, len(methods)))
    rows = -(-len(methods) // columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(methods) :]:
            axes.set_visible(False)
        for axes, (method, (names, shares)) in zip(grid, methods.items(), strict=False):
            order = [names.index(kind) for kind in kinds]
            cells = shares[order]
            texts = [[f"{100 * share:.0f}" for share in row] for row in cells]
            heat_map(axes, cells, texts, kinds, _ranks(cells.shape[1]), LOAD, size=8 if cells.shape[1] <= 8 else 6)
            axes.set_title(comparison.label(setting, method), fontsize=8.5)
            axes.set_xlabel("expert, cheapest first")

    told = []
    for method, (names, shares) in methods.items():
        where = [f"{kind} to number {int(row.argmax()) + 1}" for kind, row in zip(names, shares, strict=True)]
        told.append(f"{method.name}: mostly {listed(where)}")
    return draw(
        f"Kinds of prompts by expert, cheapest first. {'; '.join(told)}.", (0.9 + 0.36 * len(kinds)) * rows, paint
    )


def _kinds(trials: Sequence[Trial]) -> tuple[list[str], Float[np.ndarray, "kinds experts"]] | None:
    tables = []
    names = sorted({kind for t in trials for kind in t.source.record.routing.get("kinds", {})})
    for trial in trials:
        kinds, experts = trial.source.record.routing.get("kinds"), by_cost(trial.source.record.experts)
        if kinds:
            counts = np.array([[kinds.get(k, {}).get(str(e.index), 0) for e in experts] for k in names], dtype=float)
            tables.append(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    alike = [table for table in tables if table.shape == tables[0].shape]
    return (names, np.mean(alike, axis=0)) if alike else None


def kind_costs_picture(comparison: Comparison, setting: Setting) -> Picture | None:
    """The mean cost of the expert that a kind gets, by method; mean over seeds."""
    found: dict[Method, dict[str, list[float]]] = {}
    for method, trials in routed(comparison, setting).items():
        for trial in trials:
            for kind, cost in trial.source.record.routing.get("mean_cost_of_kind", {}).items():
                found.setdefault(method, {}).setdefault(kind, []).append(cost)
    if not found:
        return None
    kinds = sorted({kind for costs in found.values() for kind in costs})
    means = np.array([[np.mean(costs.get(k, [np.nan])) for k in kinds] for costs in found.values()])
    low, high = np.nanmin(means), np.nanmax(means)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        texts = [[f"{100 * cost:.0f}%" for cost in row] for row in means]
        scaled = (means - low) / max(high - low, LEAST_SPAN)
        heat_map(axes, scaled, texts, [comparison.label(setting, m) for m in found], kinds, LOAD)
        axes.set_title("mean cost of the expert that a kind gets, of dense")

    told = [
        f"{m.name}: {listed([f'{k} {percent(v, 0)}' for k, v in zip(kinds, row, strict=True)])}"
        for m, row in zip(found, means, strict=True)
    ]
    return draw(
        f"Mean cost of the expert that each kind of prompt gets. {'; '.join(told)}.", 0.7 + 0.3 * len(found), paint
    )


def cross_picture(comparison: Comparison, setting: Setting) -> Picture | None:
    """Teacher error of each expert on each expert's prompts, both in order of cost; mean over seeds."""
    found = {m: table for m, trials in routed(comparison, setting).items() if (table := _cross(trials)) is not None}
    if not found:
        return None
    columns = max(2, min(COLUMNS, len(found)))
    rows = -(-len(found) // columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(found) :]:
            axes.set_visible(False)
        for axes, (method, table) in zip(grid, found.items(), strict=False):
            texts = [["–" if np.isnan(error) else number(error, 2) for error in row] for row in table]
            ranks = _ranks(len(table))
            heat_map(axes, column_shades(table), texts, ranks, ranks, LOAD, size=7.5 if len(table) <= 4 else 6)
            frame_diagonal(axes, len(table))
            axes.set_title(comparison.label(setting, method), fontsize=8.5)
            axes.set_xlabel("prompts of expert")
            axes.set_ylabel("drawn by expert")

    told = []
    for method, table in found.items():
        best = int(
            sum(int(np.nanargmin(column)) == j for j, column in enumerate(table.T) if not np.isnan(column).all())
        )
        told.append(f"{method.name}: {best} of {len(table)} experts are the best on their own prompts")
    return draw(f"Teacher error of every expert on every expert's prompts. {'; '.join(told)}.", 2.7 * rows, paint)


def _cross(trials: Sequence[Trial]) -> Float[np.ndarray, "experts clusters"] | None:
    tables = []
    for trial in trials:
        if cross := trial.source.record.routing.get("cross"):
            order = [expert.index for expert in by_cost(trial.source.record.experts)]
            tables.append(np.array(cross["teacher_error"], dtype=float)[np.ix_(order, order)])  # None becomes NaN
    alike = [table for table in tables if table.shape == tables[0].shape]
    return np.ma.masked_invalid(np.stack(alike)).mean(axis=0).filled(np.nan) if alike else None


def _ranks(count: int) -> list[str]:
    return [str(place + 1) for place in range(count)]
