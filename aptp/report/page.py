"""The page: everything a run left, on one self-contained sheet."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from aptp.core.files import write_text
from aptp.core.record import Record
from aptp.report import routing, tables, wording
from aptp.report.anatomy_figure import architecture_picture, legend
from aptp.report.figures import budget_picture, kinds_picture, recovery_picture, search_picture
from aptp.report.pictures import gallery_of
from aptp.report.reading import Run, read_run
from aptp.report.rendering import environment


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory, from what is there; parts that are missing leave out their section.

    Raises:
        RequestError: if it is no run directory, or its record or an architecture is broken.
    """
    page = Path(run) / "report.html"
    write_text(page, render(read_run(Path(run))))
    return page


def render(run: Run) -> str:
    """The page as HTML. Every text of the run is escaped."""
    style = (files("aptp.report") / "page.css").read_text(encoding="utf-8")
    return environment(html=True).get_template("page.html").render(style=style, **_contents(run))


def _contents(run: Run) -> dict[str, Any]:
    record = run.record
    heads, rows = tables.methods_table(record)
    return {
        "record": record,
        "config": run.config,
        "headline": wording.headline(record),
        "subline": _subline(record),
        "conclusion": wording.conclusion(record),
        "key_figures": tables.key_figures(record),
        "heads": heads,
        "rows": rows,
        "has_halves": any(name.endswith("_half") for result in record.results for name in result.metrics),
        "gallery": gallery_of(run),
        "experts": tables.experts_table(record),
        "payback": tables.payback(record),
        "figures": _figures(run),
        "legend": legend(run.architectures[0].space) if run.architectures else "",
        "agreement": routing.agreement(record.routing),
        "hardness": routing.hardness(record.routing),
        "protocol": wording.protocol(record),
        "skipped": record.data.get("skipped") or {},
        "skipped_count": record.data.get("skipped_count", len(record.data.get("skipped") or {})),
        "facts": _facts(record),
        "number": wording.number,
        "plural": wording.plural,
    }


def _figures(run: Run) -> dict[str, Any]:
    record, architectures = run.record, run.architectures
    fractions = [expert.fraction for expert in record.experts]
    kinds = record.routing.get("kinds") or {}
    figures: dict[str, Any] = {}
    if architectures:
        names = [f"expert {index}" for index in range(len(architectures))]
        costs = fractions if len(fractions) == len(names) else [None] * len(names)
        figures["architecture"] = architecture_picture(architectures, names, costs)
    if kinds and len(record.experts) > 1:
        figures["kinds"] = kinds_picture(kinds, record.routing.get("mean_cost_of_kind", {}), len(record.experts))
    if (cross := record.routing.get("cross")) and len(fractions) > 1:
        figures["cross"] = routing.cross_picture(cross, fractions)
    if run.search:
        target = record.budget.target if record.budget else None
        figures["search"] = search_picture(run.search, target, _warmup(record))
    if run.recoveries:
        figures["recovery"] = recovery_picture(run.recoveries, fractions)
    if record.budget:
        figures["budget"] = budget_picture(record.budget, record.experts)
    return figures


def _warmup(record: Record) -> int:
    """Steps of the search in which the router does not use its codes yet."""
    share = record.config.get("router", {}).get("warmup") or 0
    return round(share * record.config.get("search", {}).get("steps", 0)) if 0 < share < 1 else 0


def _subline(record: Record) -> list[str]:
    """By what method, on which data, when."""
    config = record.config
    names = {key: (config.get(key) or {}).get("name") for key in ("pruner", "router", "balancer", "data")}
    experts = wording.plural(len(record.experts) or config.get("experts", 1), "expert")
    if names["pruner"]:
        parts = [f"one model for all prompts, pruned by {names['pruner']}"]
    else:
        parts = [f"{experts}, router {names['router']}, balancer {names['balancer']}"]
    counts = [record.data.get(f"{split}_pictures") for split in ("training", "validation")]
    if None not in counts:
        parts.append(f"data {names['data']}: {counts[0]:,} training and {counts[1]:,} held-out pictures")
    parts.append(f"begun {wording.moment(record.started)}")
    if record.seconds:
        parts.append(f"took {wording.duration(sum(record.seconds.values()))}")
    return parts


def _facts(record: Record) -> list[tuple[str, dict[str, str]]]:
    """Small tables of names and values."""
    stages = {stage: wording.duration(seconds) for stage, seconds in record.seconds.items()}
    data = {key.replace("_", " "): str(value) for key, value in record.data.items() if not key.startswith("skipped")}
    hardware = {key: str(value) for key, value in record.hardware.items() if value is not None}
    facts = [("Time of each stage", stages), ("Hardware", hardware), ("Versions", record.versions), ("Data", data)]
    return [(title, values) for title, values in facts if values]
