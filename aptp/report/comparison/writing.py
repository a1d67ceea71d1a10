"""The files of a comparison: the page, the same as Markdown, every row as CSV, and everything as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from aptp.core.files import write_text
from aptp.report.comparison import charts, maps, tables
from aptp.report.comparison.album import album
from aptp.report.comparison.claims import claims
from aptp.report.comparison.intervals import LEVEL, Interval
from aptp.report.comparison.phrases import setting_title, unit_of
from aptp.report.comparison.protocols import differences_of
from aptp.report.comparison.trials import EQUAL_COST, Comparison, Setting, Trial
from aptp.report.comparison.verdict import verdicts
from aptp.report.rendering import environment
from aptp.report.wording import listed, moment, percent, plural
from aptp.report.wording import protocol as recovery_steps

PAGE = "report.html"


def write_comparison(comparison: Comparison, out: Path, command: str) -> Path:
    """Write `report.html`, `report.md`, `report.csv` and `report.json` into a folder; the page's path.

    Args:
        comparison: what is told.
        out: the folder, which is made where it is missing.
        command: what makes the report again, for its last section.
    """
    told = _contents(comparison, command)
    write_text(
        out / "report.json", json.dumps(_finite(as_json(comparison, command)), indent=1, ensure_ascii=False) + "\n"
    )
    write_text(out / "report.csv", as_csv(comparison))
    write_text(out / "report.md", _rendered("page.md", told, html=False))
    write_text(out / PAGE, _rendered("page.html", told, html=True))
    return out / PAGE


def _rendered(name: str, told: Mapping[str, Any], html: bool) -> str:
    style = (files("aptp.report") / "page.css").read_text(encoding="utf-8") if html else ""
    return environment(html).get_template(f"comparison/{name}").render(style=style, **told)


def _contents(comparison: Comparison, command: str) -> dict[str, Any]:
    main, found = comparison.main, verdicts(comparison)
    gallery, pictured = album(comparison, main)
    settings = comparison.settings
    return {
        "headline": _headline(comparison),
        "subline": _subline(comparison),
        "warnings": comparison.warnings,
        "verdicts": found,
        "short": tables.short_table(comparison, found),
        "core": [tables.core_table(comparison, setting) for setting in settings],
        "differences": [_differences(comparison, setting) for setting in settings],
        "reference": comparison.reference.name,
        "usual": [f"{key}={value}" for key, value in comparison.naming.shared().items()],
        "primary": comparison.primary.label if comparison.primary else None,
        "quality": charts.quality_picture(comparison, "cost"),
        "latency": charts.quality_picture(comparison, "time") if _timed(comparison) else None,
        "steps": charts.steps_picture(comparison),
        "shown": ""
        if len(charts.shown(comparison)) == len(_pruned(comparison))
        else "Methods named after a setting are left out.",
        "ablations": [grid for setting in settings if (grid := tables.ablation_table(comparison, setting))],
        "main": setting_title(comparison, main),
        "main_budget": f"{percent(main.budget, 0)} of the dense {unit_of(comparison)}",
        "experts": [
            part for setting in settings if setting.letter == main.letter and (part := _experts(comparison, setting))
        ],
        "claims": claims(comparison),
        "gallery": gallery,
        "pictured": pictured,
        "steps_told": _steps_told(comparison),
        "training": [tables.training_table(comparison, setting) for setting in settings],
        "failures": comparison.failures,
        "protocols": tables.protocols_table(comparison),
        "protocol": [] if comparison.mixed else list(comparison.protocols["A"]),
        "facts": _facts(comparison),
        "sources": [(source.name, moment(source.record.started)) for source in comparison.sources],
        "command": command,
        "level": f"{LEVEL:.0%}",
        "tolerance": percent(EQUAL_COST),
        "mixed": comparison.mixed,
        "plural": plural,
    }


def _steps_told(comparison: Comparison) -> str:
    """Whose the steps of recovery were, for each protocol."""
    told = []
    for letter in comparison.protocols:
        first = next(row.source.record for row in comparison.rows if row.letter == letter)
        said = recovery_steps(first) or "Recovery steps are the same for all methods."
        told.append(f"{letter}: {said}" if comparison.mixed else said)
    return " ".join(told)


def _differences(comparison: Comparison, setting: Setting) -> dict[str, Any]:
    return {
        "title": setting_title(comparison, setting),
        "table": tables.differences_table(comparison, setting),
        "picture": charts.differences_picture(comparison, setting),
    }


def _experts(comparison: Comparison, setting: Setting) -> dict[str, Any] | None:
    """What is told of the experts of a setting; `None` where no method has several."""
    if (table := tables.experts_table(comparison, setting)) is None:
        return None
    return {
        "table": table,
        "picture": maps.experts_picture(comparison, setting),
        "kinds": maps.kinds_picture(comparison, setting),
        "kind_costs": maps.kind_costs_picture(comparison, setting),
        "cross": maps.cross_picture(comparison, setting),
    }


def _pruned(comparison: Comparison) -> set[Any]:
    return {m for s in comparison.settings for m in comparison.methods(s) if m.kind != "dense"}


def _timed(comparison: Comparison) -> bool:
    return any("time" in row.figures for row in comparison.rows if row.method.kind != "dense")


def _headline(comparison: Comparison) -> str:
    budgets = listed([percent(b, 0) for b in sorted({s.budget for s in comparison.settings})])
    models = {Path(str(s.record.config.get("model", "a model"))).name for s in comparison.sources}
    return f"Which method to use: pruning {listed(sorted(models))} to {budgets} of its {unit_of(comparison)}"


def _subline(comparison: Comparison) -> list[str]:
    seeds = {row.seed for row in comparison.rows}
    data = {str((s.record.config.get("data") or {}).get("name")) for s in comparison.sources}
    times = sorted(s.record.finished or s.record.started for s in comparison.sources)
    said = [plural(len(comparison.sources), "run"), plural(len(_pruned(comparison)), "pruned method")]
    said += [plural(len(seeds), "seed"), f"data {listed(sorted(data))}", f"measured {_span(times)}"]
    return said + ([f"{plural(len(comparison.failures), 'run')} failed"] if comparison.failures else [])


def _span(times: list[str]) -> str:
    first, last = times[0][:10], times[-1][:10]
    return first if first == last else f"{first} to {last}"


def _facts(comparison: Comparison) -> list[tuple[str, dict[str, str]]]:
    """Machines and versions, with the number of runs where not all have the same."""
    machines, versions = {}, {}
    for key in dict.fromkeys(k for s in comparison.sources for k in s.record.hardware):
        values = [s.record.hardware.get(key) for s in comparison.sources]
        if any(value is not None for value in values):
            machines[key] = _values("none" if value is None else str(value) for value in values)
    for key in dict.fromkeys(k for s in comparison.sources for k in s.record.versions):
        versions[key] = _values(s.record.versions.get(key, "–") for s in comparison.sources)
    return [("Machine", machines), ("Versions", versions)]


def _values(values) -> str:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{v} ({plural(n, 'run')})" for v, n in counts.items())


def as_csv(comparison: Comparison) -> str:
    """One row a run and method. `counted` is 1 where the row stands for its seed and 0 where another run's does."""
    settings = list(dict.fromkeys(key for row in comparison.rows for key, _ in row.method.settings))
    figures = list(dict.fromkeys(key for row in comparison.rows for key in row.figures))
    differing = [
        key for key, _ in differences_of(comparison.protocols) if any(key in r.config for r in comparison.rows)
    ]
    setup = list(dict.fromkeys(["experts", *settings, *differing]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "method", "kind", "protocol", "budget", "seed", "counted", *setup, *figures])
    for row in comparison.rows:
        dense = row.method.kind == "dense"
        writer.writerow(
            [
                row.source.name,
                row.method.name,
                row.method.kind,
                row.letter,
                f"{row.budget:g}",
                row.seed,
                int(_counts(comparison, row)),
                *("" if dense else row.config.get(key, "") for key in setup),
                *(repr(row.figures[key]) if key in row.figures else "" for key in figures),
            ]
        )
    return file.getvalue()


def _counts(comparison: Comparison, row: Trial) -> bool:
    budget = None if row.method.kind == "dense" else row.budget
    return comparison.trials[row.letter, budget, row.method][row.seed].source is row.source


def as_json(comparison: Comparison, command: str) -> dict[str, Any]:
    """Everything that the page tells, as figures, and every row that went into it."""
    keys = list(dict.fromkeys(key for row in comparison.rows for key in row.figures))
    return {
        "format": 1,
        "command": command,
        "level": LEVEL,
        "reference": comparison.reference.name,
        "primary": comparison.primary.key if comparison.primary else None,
        "usual": comparison.naming.shared(),
        "protocols": {letter: dict(protocol) for letter, protocol in comparison.protocols.items()},
        "warnings": comparison.warnings,
        "settings": [_setting(comparison, setting, keys) for setting in comparison.settings],
        "claims": [vars(claim) for claim in claims(comparison)],
        "failures": [vars(failure) for failure in comparison.failures],
        "runs": [
            {"name": s.name, "started": s.record.started, "finished": s.record.finished, "config": s.record.config}
            for s in comparison.sources
        ],
        "rows": [
            {
                "run": row.source.name,
                "method": row.method.name,
                "kind": row.method.kind,
                "protocol": row.letter,
                "budget": row.budget,
                "seed": row.seed,
                "counted": _counts(comparison, row),
                "figures": row.figures,
            }
            for row in comparison.rows
        ],
    }


def _setting(comparison: Comparison, setting: Setting, keys: list[str]) -> dict[str, Any]:
    verdict = next(v for v in verdicts(comparison) if v.setting == setting)
    methods = []
    for method in comparison.methods(setting):
        figures = {k: _spread(comparison.interval(setting, method, k)) for k in keys}
        apart = {k: _spread(comparison.difference(setting, method, comparison.reference, k)) for k in keys}
        methods.append(
            {
                "method": method.name,
                "label": comparison.label(setting, method),
                "kind": method.kind,
                "strategies": dict(method.strategies),
                "settings": dict(method.settings),
                "seeds": comparison.seeds(setting, method),
                "figures": {k: v for k, v in figures.items() if v},
                "differences": {} if method == comparison.reference else {k: v for k, v in apart.items() if v},
            }
        )
    return {
        "protocol": setting.letter,
        "budget": setting.budget,
        "use": verdict.choice,
        "advice": verdict.advice,
        "reasons": verdict.reasons,
        "methods": methods,
    }


def _spread(found: Interval | None) -> dict[str, float | int | None] | None:
    return None if found is None else {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _finite(value: Any) -> Any:
    """JSON knows no infinities and no NaN: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
