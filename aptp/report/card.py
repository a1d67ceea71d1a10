"""The card of a bundle: what it is made of, how good it is, under which licence; as the hub shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from aptp.core.record import Record
from aptp.report.rendering import environment
from aptp.report.tables import Cell, Head, methods_table
from aptp.report.wording import amount, conclusion, percent, plural

UNKNOWN = "unknown"
"""What the hub calls a licence of which nothing is known."""


@dataclass(frozen=True)
class Contents:
    """What a bundle is made of, as far as its card tells it."""

    base: str
    """The base model, by its name on the hub where it has one."""
    on_hub: bool
    terms: Mapping[str, Any]
    """`license`, `license_name` and `license_link` of the base model's own card, if it has them."""
    papers: Sequence[str]
    """Names of the base model's card and licences that lie in `model/`."""
    component: str
    encoder: str
    checked: bool
    """Whether the base model has a safety checker."""
    fractions: Sequence[float]
    sizes: Sequence[int]
    """Bytes of each expert's weights, or of the one set that all share."""
    shared: bool
    calibrated: str | None
    """The budget to which routes were fitted after the run, if they were."""


def card(contents: Contents, record: Record | None) -> str:
    """Markdown with the metadata that the hub reads; without figures where there is no record."""
    from huggingface_hub import ModelCardData

    licence = contents.terms.get("license") or UNKNOWN
    data = ModelCardData(
        **{**contents.terms, "license": licence},
        base_model=contents.base if contents.on_hub else None,
        pipeline_tag="text-to-image",
        library_name="aptp",
        tags=["aptp", "pruning", "diffusers"],
    )
    heads, rows = methods_table(record) if record and record.results else ([], [])
    count = len(contents.fractions)
    text = (
        environment(html=False)
        .get_template("card.md")
        .render(
            title=f"{contents.base}, pruned by prompt",
            experts=plural(count, "expert").capitalize(),
            base=contents.base,
            component=contents.component,
            version=version("aptp"),
            figures={"heads": heads, "rows": rows} if rows else None,
            measured=_measured(record),
            since=f"Since then, routes have been calibrated to {contents.calibrated}." if contents.calibrated else "",
            conclusion=conclusion(record) if rows and record else [],
            form=_form(contents),
            table=_experts(contents, record),
            encoder=contents.encoder,
            checker="The base model's safety checker is here and sees every picture."
            if contents.checked
            else "The base model has no safety checker, so pictures are not looked at.",
            papers=f"with {' and '.join(contents.papers)}"
            if contents.papers
            else "whose card and licence were not at hand",
            licence=contents.terms.get("license_name") or licence,
            data=f"the data set {record.config['data']['name']!r}" if record else "one data set",
        )
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def expert_card(expert: Any, index: int, form: str, *, size: int, base: str, component: str, cost: float) -> str:
    """What one expert is, for latents so many places wide and high, and how it is loaded."""
    told = {"index": index, "form": form, "size": size, "base": base, "component": component, "cost": percent(cost)}
    template = environment(html=False).get_template("expert.md")
    return template.render(family=type(expert).__name__, **told) + "\n"


def _measured(record: Record | None) -> str:
    if record is None or record.budget is None:
        return ""
    options = record.config["evaluate"]
    return (
        f"Asked for: {percent(record.budget.target, 0)} of the dense model's {record.budget.unit}. Measured on "
        f"{plural(options['prompts'], 'held-out prompt')} of the data set {record.config['data']['name']!r}, "
        f"{plural(options['steps'], 'sampling step')}, guidance {options['guidance']:g}."
    )


def _form(contents: Contents) -> str:
    if contents.shared:
        return (
            f"All are slices of one set of weights, which was tuned under all of them ({amount(contents.sizes[0])}B on "
            "disk); each is cut out when it is loaded."
        )
    return "Each has weights of its own, tuned on the prompts that it serves."


def _experts(contents: Contents, record: Record | None) -> dict[str, Any]:
    heads = [Head("expert"), Head("cost", notes=["of dense"]), Head("on disk")]
    rows = [
        [Cell(str(i)), Cell(percent(cost)), Cell("shared" if contents.shared else f"{amount(contents.sizes[i])}B")]
        for i, cost in enumerate(contents.fractions)
    ]
    if record and len(record.experts) == len(rows):
        heads += [Head("parameters"), Head("serves", notes=["of held-out prompts"])]
        for row, expert in zip(rows, record.experts, strict=True):
            row += [Cell(amount(expert.parameters)), Cell(percent(expert.validation_load))]
    return {"heads": heads, "rows": rows}
