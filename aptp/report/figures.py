"""The figures of the report: who goes where, what it costs, and how the losses went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from aptp.core.record import Budget, Expert
from aptp.report.drawing import (
    BLUE,
    INK,
    LOAD,
    MUTED,
    ORANGE,
    RULE,
    VERMILLION,
    Picture,
    draw,
    expert_colours,
    heat_map,
)
from aptp.report.wording import listed, number, percent

if TYPE_CHECKING:
    from aptp.report.reading import Log

TOO_NEAR = 0.015
"""Shares of the dense cost that are less apart have their numbers on one another."""
TERMS = {
    "loss": "total loss, weighted",
    "denoising": "denoising",
    "distillation": "distillation",
    "blocks": "block distillation",
    "contrastive": "contrastive",
    "resource": "resource",
    "spread": "spread",
    "balance": "balance",
}
"""Titles of the terms of the objective; what else a log holds keeps its own name."""


def kinds_picture(kinds: Mapping[str, Mapping[str, int]], costs: Mapping[str, float], experts: int) -> Picture:
    """Kinds of prompts against experts, coloured by the share of the kind, beside the mean cost of each kind."""
    names = sorted(kinds, key=lambda kind: (costs.get(kind, 0.0), kind))
    counts = np.array([[kinds[kind].get(str(e), 0) for e in range(experts)] for kind in names], dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(3, 0.8 * experts), 3])
        columns = [f"expert {e}" if experts <= 8 else str(e) for e in range(experts)]
        texts = [
            [f"{100 * s:.0f}%\n{n:.0f}" for s, n in zip(*row, strict=True)] for row in zip(shares, counts, strict=True)
        ]
        heat_map(left, shares, texts, names, columns, LOAD, size=8.5 if experts <= 8 else 6.5)
        left.set_title("share and number of the kind's prompts on each expert")
        _bars(right, [costs.get(kind, 0.0) for kind in names])

    where = [f"{kind} mostly to expert {shares[row].argmax()}" for row, kind in enumerate(names)]
    alt = f"Kinds of prompts by expert: {listed(where)}; beside it the mean cost of each kind."
    return draw(alt, 0.7 + 0.52 * len(names), paint)


def _bars(axes: Axes, costs: Sequence[float]) -> None:
    places = np.arange(len(costs)) + 0.5
    axes.barh(places, costs, height=0.55, color=BLUE)
    for place, cost in zip(places, costs, strict=True):
        axes.text(cost + 0.015, place, percent(cost, 0), va="center")
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.5, 1], ["0%", "50%", "100% of dense"])
    axes.set_title("mean cost of the kind")
    axes.spines["left"].set_visible(False)


def search_picture(log: Log, target: float | None, warmup: int) -> Picture:
    """Cost of the batch against the target, and every term of the objective, step by step."""
    terms = [n for n in dict.fromkeys(k for line in log for k in line) if n not in ("step", "total", "cost")]
    terms = [name for name in terms if any(isinstance(v := line.get(name), int | float) and v for line in log)]
    terms.sort(key=lambda name: list(TERMS).index(name) if name in TERMS else len(TERMS))
    panels = [*(["cost"] if any("cost" in line for line in log) else []), *terms]
    rows = -(-len(panels) // 4)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, 4, squeeze=False, sharex=True).flatten()
        for axes, name in zip(grid, panels, strict=False):
            _curve(axes, log, name, BLUE)
            axes.set_title("cost of the batch, of dense" if name == "cost" else TERMS.get(name, name))
            axes.tick_params(labelbottom=True)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if warmup:
                axes.axvspan(-0.5, warmup - 0.5, color="#eef0f3", zorder=0, lw=0)
            if name == "cost" and target is not None:
                _target_line(axes, target)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)

    costs = [line["cost"] for line in log if "cost" in line]
    course = f" from {number(costs[0])} to {number(costs[-1])} of dense" if costs else ""
    return draw(
        f"Curves of the search over {len(log)} steps: cost of the batch{course}, and losses.", 1.9 * rows, paint
    )


def _target_line(axes: Axes, target: float) -> None:
    low, high = axes.get_ylim()
    low, high = min(low, target), max(high, target)
    axes.set_ylim(low - 0.15 * (high - low), high)
    axes.axhline(target, color=VERMILLION, lw=1.2, ls="--")
    axes.annotate(
        f"target {percent(target, 0)}",
        (1, target),
        (0, -3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color=VERMILLION,
        ha="right",
        va="top",
        size=8,
    )


def recovery_picture(logs: Mapping[str, Log], fractions: Sequence[float]) -> Picture:
    """Recovery of every method, side by side on one scale: the joint phase, then each expert apart."""
    everywhere = all(any("distillation" in line for line in log) for log in logs.values())
    name = "distillation" if everywhere else "loss"
    colours = expert_colours(list(fractions))

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(logs), squeeze=False, sharey=True)[0]
        for axes, (method, log) in zip(grid, logs.items(), strict=True):
            owners = sorted({-1 if line.get("expert") is None else int(line["expert"]) for line in log})
            several = len(owners) > 2 or (len(fractions) > 1 and axes is grid[0])
            for owner in owners:
                part = [line for line in log if (-1 if line.get("expert") is None else line["expert"]) == owner]
                known = several and 0 <= owner < len(colours)
                colour = colours[owner] if known else INK if owner < 0 else ORANGE
                _curve(axes, part, name, colour, _owner(owner, owners, several))
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_title(method)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_xlabel("step of recovery")
            axes.grid(axis="y", color=RULE, lw=0.6)
            axes.legend(fontsize=8, loc="upper right")
        grid[0].set_ylabel(f"{TERMS[name]} loss" if name != "loss" else "loss")

    ends = [f"{method} ends at {number(_tail(log, name))}" for method, log in logs.items()]
    return draw(f"Loss during recovery: {listed(ends)}.", 2.9, paint)


def _owner(owner: int, owners: Sequence[int], several: bool) -> str | None:
    """The entry of a curve in the legend; many experts share one."""
    if owner < 0:
        return "all experts jointly" if several else "the masked model"
    if not several:
        return "the one model"
    if len(owners) <= 9:
        return f"expert {owner}"
    return "experts apart; light: costly" if owner == owners[-1] else None


def _tail(log: Log, name: str) -> float:
    values = [line[name] for line in log if name in line]
    return float(np.mean(values[-max(1, len(values) // 10) :])) if values else float("nan")


def _curve(axes: Axes, log: Log, name: str, colour: str, label: str | None = None) -> None:
    """The values as they are, faint, and their running mean over a twentieth of the steps or a few."""
    known = [(line["step"], line[name]) for line in log if isinstance(line.get(name), int | float)]
    if not known:
        return
    steps, values = np.array(known, dtype=float).T
    half = max(len(values) // 40, min(3, len(values) // 8))
    mean = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
    if half:
        axes.plot(steps, values, color=colour, lw=0.7, alpha=0.3)
    axes.plot(steps, mean, color=colour, lw=1.6, label=label, marker="o" if len(values) < 3 else None, markersize=3)


def _neighbours(experts: Sequence[Expert]) -> list[list[Expert]]:
    """Experts in the order of their cost, together where their numbers would lie on one another."""
    groups: list[list[Expert]] = []
    for expert in sorted(experts, key=lambda expert: expert.fraction):
        if groups and expert.fraction - groups[-1][-1].fraction < TOO_NEAR:
            groups[-1].append(expert)
        else:
            groups.append([expert])
    return groups


def budget_picture(budget: Budget, experts: Sequence[Expert]) -> Picture:
    """Target, floor and the costs that came of it, on one axis; experts as discs whose area is their share."""
    rows = [
        ("not calibrated, training prompts", budget.uncalibrated),
        ("calibrated, training prompts", budget.expected),
        ("measured, held-out prompts", budget.measured),
    ]
    known = [(label, value) for label, value in rows if value is not None]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, (_, value) in enumerate(known):
            axes.plot([budget.target, value], [row, row], color=BLUE, lw=2)
            axes.plot(value, row, "o", color=BLUE, ms=7)
            right = value >= budget.target
            axes.annotate(
                percent(value),
                (value, row),
                (9 if right else -9, 0),
                textcoords="offset points",
                va="center",
                ha="left" if right else "right",
            )
        last = len(known)
        for expert in experts:
            load = expert.training_load if expert.validation_load is None else expert.validation_load
            axes.scatter(expert.fraction, last, s=30 + 900 * load, color=ORANGE, alpha=0.55, ec=INK, lw=0.6)
        for near in _neighbours(experts):
            place = fmean(expert.fraction for expert in near)
            axes.text(place, last, ", ".join(str(e.index) for e in near), ha="center", va="center", size=8)
        axes.axvline(budget.target, color=VERMILLION, lw=1.2, ls="--", zorder=0)
        axes.axvspan(0, budget.floor, color="#eef0f3", lw=0, zorder=0)
        top = axes.get_xaxis_transform()
        axes.text(
            budget.target, 1.02, f"target {percent(budget.target, 0)}", color=VERMILLION, ha="center", transform=top
        )
        axes.text(budget.floor, 1.02, f"floor {percent(budget.floor, 0)}", color=MUTED, ha="center", transform=top)
        labels = [label for label, _ in known] + (["the experts; area: share of prompts"] if experts else [])
        axes.set_yticks(range(len(labels)), labels, color=INK)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, 1.06)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100% of dense"])
        axes.spines["left"].set_visible(False)

    told = [f"{label} {percent(value)}" for label, value in known]
    alt = (
        f"Costs as shares of dense: target {percent(budget.target)}, floor {percent(budget.floor)}, {', '.join(told)}."
    )
    return draw(alt, 0.7 + 0.45 * (len(known) + 1), paint)
