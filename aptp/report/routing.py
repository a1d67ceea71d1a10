"""How routing is to be judged: every expert on every cluster, and its agreement with kinds and hardness in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from aptp.report.drawing import LOAD, ORANGE, Picture, draw, heat_map
from aptp.report.wording import change, listed, number, percent, plural

MANY = 8
"""Experts over which labels and cells are short."""
MULTIPLE = 3
"""From here on an error is told as a multiple of another, below it in percent more or less."""


def cross_picture(cross: Mapping[str, Any], fractions: Sequence[float]) -> Picture:
    """The teacher error of experts (rows, cheapest first) on the prompts that each serves (columns, likewise).

    Shades compare within a column, by the ratio to its least error; twice that is at most half of the scale.
    """
    order = sorted(range(len(fractions)), key=lambda expert: (fractions[expert], expert))
    errors = np.array(cross["teacher_error"], dtype=float)[np.ix_(order, order)]  # None becomes NaN
    prompts = {expert: cross["prompts"][expert] for expert in order}
    shades = column_shades(errors)
    few = len(order) <= MANY

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = [f"expert {e} ({percent(fractions[e], 0)} of dense)" if few else f"expert {e}" for e in order]
        heads = [f"expert {e} ({plural(n, 'prompt')})" if few else str(e) for e, n in prompts.items()]
        texts = [[_cell(errors, row, column, few) for column in range(len(order))] for row in range(len(order))]
        heat_map(axes, shades, texts, rows, heads, LOAD, size=8.5 if few else 6)
        frame_diagonal(axes, len(order))
        axes.set_xlabel("prompts that are served by")
        axes.xaxis.set_label_position("top")
        axes.xaxis.tick_top()

    best = [
        f"expert {order[int(np.nanargmin(errors[:, place]))]} errs least on the prompts of expert {expert}"
        for place, expert in enumerate(order)
        if np.isfinite(errors[:, place]).any()
    ]
    alt = f"Teacher error of every expert on the prompts of every cluster: {listed(best)}."
    return draw(alt, 1.0 + 0.5 * len(order), paint)


def _cell(errors: np.ndarray, row: int, column: int, few: bool) -> str:
    """An error, and where there is room how it compares with that of the expert which serves these prompts."""
    error, own = errors[row, column], errors[column, column]
    if not np.isfinite(error):
        return "–"
    if not few or row == column or not np.isfinite(own) or own <= 0:
        return number(error)
    return f"{number(error)}\n{change(error, own) if error < MULTIPLE * own else f'×{number(error / own, 2)}'}"


def frame_diagonal(axes: Axes, count: int) -> None:
    """Frame every expert's error on its own prompts."""
    for place in range(count):
        axes.add_patch(Rectangle((place + 0.03, place + 0.03), 0.94, 0.94, fill=False, edgecolor=ORANGE, linewidth=2.4))


def column_shades(errors: np.ndarray) -> np.ndarray:
    """Each error by the logarithm of its ratio to the least of its column: 0 is the least, 1 the largest ratio or 4."""
    safe = np.where(np.isfinite(errors) & (errors > 0), errors, np.nan)
    least = np.min(np.where(np.isfinite(safe), safe, np.inf), axis=0, keepdims=True)
    ratios = np.nan_to_num(np.log(safe / least))
    return np.where(np.isfinite(errors), ratios / max(np.log(4), ratios.max()), np.nan)


def agreement(routing: Mapping[str, Any]) -> str | None:
    """What the mutual information of experts and kinds says; None where it was not measured."""
    value = routing.get("nmi")
    if value is None:
        return None
    return (
        f"Experts and kinds agree to {value:.2f} (normalised mutual information: at 1 either tells the other, at 0 the "
        "routes know nothing of kinds)."
    )


def hardness(routing: Mapping[str, Any]) -> str | None:
    """Whether prompts that pruning hurts get costly experts, and how sure that is; None where it was not measured."""
    found = routing.get("hardness")
    if not found:
        return None
    rho, low, high = (f"{found[name]:.2f}".replace("-", "−") for name in ("spearman", "low", "high"))
    if found["low"] > 0:
        verdict = "the prompts that pruning hurts most get the costlier experts"
    elif found["high"] < 0:
        verdict = "the prompts that pruning hurts most get the cheaper experts"
    else:
        verdict = "the interval holds 0, so this run does not tell whether the prompts that pruning hurts get more"
    captions = f", {plural(found['clusters'], 'caption')}" if found["clusters"] < found["prompts"] else ""
    counted = f"{plural(found['prompts'], 'prompt')}{captions}"
    return (
        "How much slicing down to the cheapest expert hurts a prompt, before any recovery, and what the prompt's own "
        f"expert costs have a rank correlation of {rho} (95% interval {low} to {high}; {counted}): {verdict}."
    )
