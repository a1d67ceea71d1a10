"""Figures with methods as points: quality against cost, against time and against training, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from aptp.report.comparison.intervals import Interval, interval
from aptp.report.comparison.methods import Method
from aptp.report.comparison.tables import ranked
from aptp.report.comparison.trials import Comparison, Setting
from aptp.report.drawing import BLUE, INK, MUTED, ORANGE, RULE, VERMILLION, Picture, draw
from aptp.report.measures import Measure
from aptp.report.wording import listed, number, percent

GREEN, PURPLE, SKY = "#009E73", "#CC79A7", "#56B4E9"
"""Three more of the colours of Okabe and Ito."""
ROUTED = [(c, m) for m, c in zip("os^DvPX*", [BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, MUTED, INK], strict=True)]
SINGLE = [(c, m) for m, c in zip("s^DvPX*o", [INK, ORANGE, SKY, PURPLE, GREEN, VERMILLION, MUTED, BLUE], strict=True)]
PANELS = 4
"""Measures that a figure shows."""
CROWD = 12
"""With more methods than this, a figure leaves out those that differ in a setting from the others."""
FAR = 10
"""Distances of which the largest is so many times the smallest get a logarithmic axis."""
LABEL = 0.12
"""The room that a label takes, of the width of the curve that it stands on."""
OFF_SCALE = 6
"""A paired difference that is so many times the median one is drawn as an arrow."""

Point = tuple[Interval, Interval]


@dataclass(frozen=True)
class Look:
    """How a method is drawn in all figures. Single models are hollow and dashed, routed methods full and solid."""

    colour: str
    marker: str
    full: bool

    @property
    def line(self) -> dict[str, Any]:
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": 6,
            "markerfacecolor": self.colour if self.full else "white",
            "markeredgewidth": 1.4,
            "lw": 1.2,
            "ls": "-" if self.full else "--",
        }


def looks(methods: Sequence[Method]) -> dict[Method, Look]:
    """A look for each method, no two the same before all are used up."""
    found = {}
    for kind, palette in (("routed", ROUTED), ("single", SINGLE)):
        for place, method in enumerate(m for m in methods if m.kind == kind):
            colour, marker = palette[place % len(palette)]
            found[method] = Look(colour, marker, kind == "routed")
    return found


def shown(comparison: Comparison) -> list[Method]:
    """The pruned methods that figures show: all, or where there are many those that no setting sets apart."""
    methods = dict.fromkeys(m for s in comparison.settings for m in comparison.methods(s) if m.kind != "dense")
    if len(methods) <= CROWD:
        return list(methods)
    granularities: dict[tuple[str, ...], set[str | None]] = {}
    for method in methods:
        granularities.setdefault(_strategy(method), set()).add(dict(method.settings).get("granularity"))
    alone = {strategy for strategy, used in granularities.items() if len(used) == 1}
    plain = [m for m in methods if not (m.without("granularity") if _strategy(m) in alone else m).settings]
    return [m for m in methods if m in plain or m == comparison.reference]


def _strategy(method: Method) -> tuple[str, ...]:
    """The pruner or the router: a granularity that is the only one used with it sets no method apart."""
    return tuple(name for kind, name in method.strategies if kind in ("pruner", "router"))


def quality_picture(comparison: Comparison, across: str) -> Picture | None:
    """Every measure against `across`, the cost or the time of a picture, in the protocol of the main setting.

    `None` where no measure's direction is known.
    """
    letter = comparison.main.letter
    settings = [setting for setting in comparison.settings if setting.letter == letter]
    methods = [m for m in shown(comparison) if any(comparison.seeds(s, m) for s in settings)]
    look, measures = looks(methods), [m for m in comparison.measures if m.less is not None][:PANELS]
    if not measures:
        return None
    columns = min(2, len(measures))
    rows = -(-len(measures) // columns)
    what = "cost" if across == "cost" else "measured time"

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
        for axes in grid[len(measures) :]:
            axes.set_visible(False)
        drawn: list[Point] = []
        for axes, measure in zip(grid, measures, strict=False):
            courses = {m: [p for s in settings for p in _point(comparison, s, m, across, measure)] for m in methods}
            dense = _dense_points(comparison, settings[0], across, measure)
            points = [*dense.values(), *(point for course in courses.values() for point in course)]
            most = _spread(points)
            for method, course in courses.items():
                _draw(axes, course, method.name, look[method].line, most)
            _dense(axes, dense, most)
            drawn += points
            if real := _real(comparison, settings[0], measure):
                axes.axhline(real, color=MUTED, lw=0.9, ls=(0, (1, 2)), label="real pictures")
            _frame(axes, measure)
            means = [y.mean for _, y in points]
            if measure.less and _far_apart(means):
                _logarithmic(axes, "y")
                axes.set_ylim(min(means) / 1.5, max(means) * 1.5)
            elif measure.less and min(means, default=1) <= 0 and _far_apart([abs(m) for m in means if m]):
                axes.set_yscale("symlog", linthresh=median(abs(m) for m in means))
                axes.yaxis.set_major_formatter(_plain)
            elif points and axes.get_yscale() == "linear":
                axes.set_ylim(_limits([y for _, y in points]))
            axes.set_xlabel(f"{what} of a picture, % of dense")
            axes.tick_params(labelbottom=True)
            axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        if drawn:
            grid[0].set_xlim(_limits([x for x, _ in drawn]))
        _legend(figure)

    measure = comparison.primary or measures[0]
    told = []
    for method in methods:
        means = [(s, comparison.mean(s, method, measure.key)) for s in settings]
        if parts := [f"{number(value)} at {percent(s.budget, 0)}" for s, value in means if value is not None]:
            told.append(f"{method.name} {listed(parts)}")
    alt = f"{listed([m.label for m in measures])} against the {what} of a picture. {measure.label}: {'; '.join(told)}."
    return draw(alt, 3.2 * rows + 0.3 + 0.2 * -(-(len(methods) + 2) // 4), paint)


def _point(comparison: Comparison, setting: Setting, method: Method, across: str, measure: Measure) -> list[Point]:
    """A method's place in a panel, if it has one."""
    x, y = (comparison.interval(setting, method, key) for key in (across, measure.key))
    return [(x, y)] if x and y else []


def _spread(points: Sequence[Point]) -> float:
    """How far apart the means of a panel are."""
    means = [y.mean for _, y in points]
    return max(means) - min(means) if means else 0.0


def _draw(axes: Axes, points: Sequence[Point], label: str, line: dict[str, Any], most: float = math.inf) -> None:
    """Means joined by a line, with their intervals as bars; pale ones where they are longer than `most` either way."""
    if not points:
        return
    xs, ys = zip(*sorted(points, key=lambda point: point[0].mean), strict=True)
    long = [(y.half or 0) > most for y in ys]
    axes.errorbar(
        [x.mean for x in xs],
        [y.mean for y in ys],
        xerr=[x.half or 0 for x in xs],
        yerr=[0 if cut else y.half or 0 for y, cut in zip(ys, long, strict=True)],
        elinewidth=0.8,
        capsize=2,
        label=label,
        **line,
    )
    pale = {"ecolor": line["color"], "elinewidth": 0.8, "alpha": 0.25, "zorder": 0}
    for x, y, cut in zip(xs, ys, long, strict=True):
        if cut:
            axes.errorbar(x.mean, y.mean, yerr=y.half, fmt="none", **pale)


def _dense_points(comparison: Comparison, setting: Setting, across: str, measure: Measure) -> dict[Method, Point]:
    """Where the dense model is with all and with fewer steps; not its teacher error, which is 0.

    More steps than all would press together what is compared.
    """
    if measure.key == "teacher_error":
        return {}
    methods = [m for m in comparison.methods(setting, "dense") if (comparison.mean(setting, m, "cost") or 0) <= 1]
    return {m: point for m in methods for point in _point(comparison, setting, m, across, measure)}


def _dense(axes: Axes, points: Mapping[Method, Point], most: float) -> None:
    """The dense model as one curve. Of points that lie close, the first has a label."""
    line = {"color": INK, "marker": "|", "markersize": 9, "markeredgewidth": 1.6, "lw": 1.2, "ls": ":"}
    _draw(axes, list(points.values()), "dense, fewer sampling steps" if len(points) > 1 else "dense", line, most)
    place: dict[str, Any] = {"textcoords": "offset points", "size": 7, "color": MUTED, "ha": "center"}
    places = [x.mean for x, _ in points.values()]
    labelled: list[float] = []
    for method, (x, y) in points.items():
        if all(abs(x.mean - other) > LABEL * (max(places) - min(places)) for other in labelled):
            labelled.append(x.mean)
            axes.annotate(method.base.removeprefix("dense, "), (x.mean, y.mean), (0, -14), **place)


def _far_apart(values: Sequence[float]) -> bool:
    """Whether one value would press the others together on a linear axis, and a logarithmic one can show them all."""
    return bool(values) and min(values) > 0 and max(values) > FAR * min(values)


def _limits(intervals: Sequence[Interval]) -> tuple[float, float]:
    """The ends of an axis that the means fill: intervals much longer than the means are apart are cut by the frame."""
    means = [each.mean for each in intervals]
    room = 0.35 * (max(means) - min(means)) or 0.1 * abs(means[0]) or 1.0
    low = max(min(means) - room, min(each.mean - (each.half or 0) for each in intervals))
    high = min(max(means) + room, max(each.mean + (each.half or 0) for each in intervals))
    margin = 0.06 * (high - low) or room
    return low - margin, high + margin


def _real(comparison: Comparison, setting: Setting, measure: Measure) -> float | None:
    figures = [
        f for m in comparison.methods(setting) if (f := comparison.mean(setting, m, f"{measure.key}_real")) is not None
    ]
    return sum(figures) / len(figures) if figures else None


def _frame(axes: Axes, measure: Measure) -> None:
    detail = f" ({measure.detail})" if measure.detail else ""
    axes.set_ylabel(f"{measure.label}{detail} {measure.arrow}")
    axes.grid(color=RULE, lw=0.5)
    axes.margins(0.08)
    if measure.key == "teacher_error":
        _logarithmic(axes, "y")


def _logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers."""
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(_plain)
    axis.set_minor_locator(NullLocator())


def _plain(value: float, _: float) -> str:
    return f"{value:g}".replace("-", "−")


def _legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for each in figure.axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(
                label, handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
            )  # without the bars
    if entries:
        figure.legend(list(entries.values()), list(entries), loc="outside lower left", ncols=4, fontsize=8.5)


def differences_picture(comparison: Comparison, setting: Setting) -> Picture | None:
    """Each method's paired difference to the reference with its interval, a panel a measure; needs three seeds."""
    reference = comparison.reference
    measures = [m for m in comparison.measures if m.less is not None][:PANELS]
    methods = [m for m in ranked(comparison, setting) if m != reference]
    known = {
        (method, m.key): found
        for method in methods
        for m in measures
        if not (method.kind == "dense" and m.key == "teacher_error")
        if (found := comparison.difference(setting, method, reference, m.key)) and found.half is not None
    }
    methods = [m for m in methods if any((m, measure.key) in known for measure in measures)]
    if not methods:
        return None

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for axes, measure in zip(grid, measures, strict=True):
            mine = [found for method in methods if (found := known.get((method, measure.key)))]
            edge = _edge(mine)
            for row, method in enumerate(methods):
                if (found := known.get((method, measure.key))) is None:
                    continue
                apart = found.above(0) or found.below(0)
                colour = BLUE if apart else MUTED
                mark = {"color": colour, "markerfacecolor": colour if apart else "white"}
                if abs(found.mean) > edge:
                    axes.plot(edge if found.mean > 0 else -edge, row, marker=">" if found.mean > 0 else "<", **mark)
                else:
                    bars = {"xerr": found.half, "elinewidth": 1.2, "capsize": 2.5}
                    axes.errorbar(found.mean, row, marker="o", markersize=5.5, **bars, **mark)
            if edge < max((abs(found.mean) for found in mine), default=0):
                axes.set_xlim(-1.08 * edge if any(found.mean < 0 for found in mine) else -0.15 * edge, 1.08 * edge)
            axes.axvline(0, color=VERMILLION, lw=1, ls="--", zorder=0)
            axes.set_title(f"{measure.label} {measure.arrow}")
            axes.set_xlabel("better ← difference → worse" if measure.less else "worse ← difference → better")
            axes.set_yticks(range(len(methods)), [comparison.label(setting, m) for m in methods], color=INK)
            axes.grid(axis="x", color=RULE, lw=0.5)
            axes.locator_params(axis="x", nbins=3)
            axes.xaxis.set_major_formatter(_plain)
            axes.spines["left"].set_visible(False)
        grid[0].set_ylim(len(methods) - 0.4, -0.6)

    measure = comparison.primary or measures[0]
    told = [
        f"{m.name} {number(found.mean)}, {number(found.low)} to {number(found.high)}"
        for m in methods
        if (found := known.get((m, measure.key)))
    ]
    alt = f"Paired differences to {reference.name} at {percent(setting.budget, 0)}. {measure.label}: {'; '.join(told)}."
    return draw(alt, 0.9 + 0.27 * len(methods), paint)


def _edge(differences: Sequence[Interval]) -> float:
    """From where on a difference is off the scale, so that one method which is far off does not hide the others."""
    sizes = sorted(abs(found.mean) for found in differences)
    usual = OFF_SCALE * sizes[len(sizes) // 2] if sizes else 0.0
    return usual if sizes and sizes[-1] > usual > 0 else float("inf")


def steps_picture(comparison: Comparison) -> Picture | None:
    """Teacher error and the deciding measure against all training steps; `None` where no method has several totals."""
    setting = comparison.main
    measures = [m for m in comparison.measures if m.key == "teacher_error"]
    measures += [m for m in [comparison.primary] if m and m not in measures]
    lines = {m: line for m in measures if (line := _courses(comparison, setting, m))}
    if not lines:
        return None
    look = looks(list(dict.fromkeys(method for line in lines.values() for method in line)))

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(lines), squeeze=False)[0]
        for axes, (measure, courses) in zip(grid, lines.items(), strict=True):
            for method, points in courses.items():
                _draw(axes, points, method.name, look[method].line)
            _frame(axes, measure)
            _logarithmic(axes, "x")
            axes.set_xlabel("training steps, search and recovery")
        _legend(figure)

    told = [
        f"{method.name} from {number(points[0][1].mean)} at {number(points[0][0].mean)} steps to "
        f"{number(points[-1][1].mean)} at {number(points[-1][0].mean)}"
        for method, points in next(iter(lines.values())).items()
    ]
    return draw(f"{next(iter(lines)).label} against training steps: {'; '.join(told)}.", 3.9, paint)


def _courses(comparison: Comparison, main: Setting, measure: Measure) -> dict[Method, list[Point]]:
    """A method's points by total of steps, over protocols that differ from the main one in that alone."""
    found: dict[Method, list[Point]] = {}
    own = {k: v for k, v in comparison.protocols[main.letter] if k != "recover.steps"}
    for setting in comparison.settings:
        same = {k: v for k, v in comparison.protocols[setting.letter] if k != "recover.steps"} == own
        if setting.budget != main.budget or not same:
            continue
        for method in comparison.methods(setting):
            if method.kind == "dense":
                continue
            totals = [
                t.figures.get("search_steps", 0.0) + t.figures["recovery_steps"]
                for t in comparison.runs(setting, method)
            ]
            x, y = interval(totals), comparison.interval(setting, method, measure.key)
            if x and y:
                found.setdefault(method.without("search.steps"), []).append((x, y))
    courses = {m: sorted(points, key=lambda point: point[0].mean) for m, points in found.items()}
    return {m: points for m, points in courses.items() if len({x.mean for x, _ in points}) > 1}
