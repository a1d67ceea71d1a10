"""Writes config.md, the list of every option, from the options' own models: python docs/config_page.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from aptp.commands.inspect import option_rows
from aptp.config import BudgetChoice, Choice, RunConfig, presets
from aptp.core.files import write_text
from aptp.host import KINDS, Host

PAGE = Path(__file__).parent / "config.md"
CHOICES = {"data": "dataset", "metrics": "metric", "compare": "pruner", "pruner": "pruner", "search.start": "pruner"}
"""Fields of the run that choose strategies, of which kind, where the field's name or value does not say so."""

HEAD = """# Options

Every option with its default and meaning. This page is written by `make docs` from the options' models; a test fails
where it is out of date.

A run is configured by, in rising order of precedence, a preset (`--preset NAME`), a YAML file (`--config FILE`), the
flags of `aptp run`, and `--set KEY.PATH=VALUE`. What none of them says has its default. Unknown names and bad values
are refused before any work starts, with exit status 2. The resolved configuration, every default filled in, is left as
`config.yaml` in the run directory; `--config` takes it back. Keys of a file may be nested or dotted:
`search: {steps: 80}` or `search.steps: 80`.

A *choice* names a strategy and may give it options beside the name. These say the same:

```yaml
balancer: sinkhorn
balancer: {name: sinkhorn, epsilon: 0.05}
```

On the command line: `--balancer sinkhorn --set balancer.epsilon=0.05`. A text `NAME:ARGUMENT` gives the strategy's
first option, as in `--data imagefolder:photos/`. Where a preset or a file has named a strategy already, its
name again keeps the options given there, and another name or an argument drops them. A budget is a choice of an
estimator with a target: `macs:0.66`, or `0.66`.
"""

WEIGHTS = {
    "denoising": "weight of the denoising error, min-SNR weighted",
    "distillation": "weight of the error against the teacher's output",
    "blocks": "weight of the error against the teacher's block outputs",
}
TRAINING = {
    "steps": "training steps",
    "batch": "pictures a step, of all processes together",
    "rate": "learning rate of AdamW",
    "schedule": "of the rate: `linear` falls to zero at the end, `constant` stays",
    "warmup": "steps over which the rate rises first",
}
MEANINGS = {
    "data": "the captioned pictures",
    "encoder": "what turns prompts into the embeddings that routers read",
    "granularity": "which parts of the denoiser get gates",
    "budget": "the cost estimator, and the target",
    "budget.target": "expected cost over the prompts, as a fraction of the dense denoiser's",
    "router": "what sends prompts to experts and learns their codes",
    "balancer": "how prompts are spread over the codes in training",
    "metrics": "metrics of the generated pictures",
    "device": "where the models run: `auto`, `cpu` or `cuda`",
    "experts": "number of experts",
    "seed": "of everything random",
    **{f"{stage}.{name}": text for stage in ("adapt", "search", "recover") for name, text in TRAINING.items()},
    "adapt.steps": "training steps; 0 leaves the model as it is",
    "recover.caption_dropout": "probability that a caption is left empty in recovery and adaptation",
    "evaluate.prompts": "held-out prompts that are drawn and measured, at most",
    "evaluate.guidance": "scale of classifier-free guidance",
    "evaluate.batch": "pictures drawn at a time",
    **{f"{stage}.weights.{term}": text for stage in ("search", "recover") for term, text in WEIGHTS.items()},
}
"""The meaning of options whose models give none."""

COLUMNS = ("option", "type", "default", "meaning")
Row = tuple[str, str, str, str]


def page(host: Host) -> str:
    """The whole page. Raises `LookupError` for an option that has no meaning, or a meaning that has no option."""
    run = list(_run_rows(RunConfig()))
    parts = [HEAD, "## The run", _table(run), "## Presets", "\n".join(f"- `{name}`" for name in presets())]
    known = {row[0] for row in run}
    for kind in KINDS:
        for name, spec in host.specs(kind).items() if kind != "denoiser" else ():  # those are found, not chosen
            model = host.options_model(kind, name)
            known |= {f"{kind} {name}.{option}" for option in model.model_fields}
            parts += [f"## {kind} `{name}`", _cell(f"{spec.summary}.")]
            parts.append(_table([_with_meaning(row, f"{kind} {name}.") for row in option_rows(model)]))
    if gone := MEANINGS.keys() - known:
        raise LookupError(f"no option is called {', '.join(sorted(gone))}; correct MEANINGS.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _run_rows(values: BaseModel, prefix: str = "") -> Iterator[Row]:
    """The options of the run; those of a group stand in its place, by their whole names."""
    for row in option_rows(type(values)):
        name = row[0]
        value, whole = getattr(values, name), prefix + name
        if isinstance(value, BaseModel) and not isinstance(value, Choice):
            yield from _run_rows(value, f"{whole}.")
            continue
        described = _with_meaning(row, prefix)
        if isinstance(value, Choice) or whole in CHOICES:
            yield whole, CHOICES.get(whole, name), _chosen(value), described[3]
        else:
            yield whole, row[1], repr(value), described[3]
        if isinstance(value, BudgetChoice):
            yield "budget.target", "float, > 0, ≤ 1", repr(value.target), MEANINGS["budget.target"]


def _with_meaning(row: Row, prefix: str) -> Row:
    name, kind, default, description = row
    meaning = description or MEANINGS.get(prefix + name)
    if not meaning:
        raise LookupError(f"option {prefix + name!r} has no meaning; give its field a description.")
    return name, kind, default, meaning


def _chosen(value: Choice | list[Choice] | None) -> str:
    choices = value if isinstance(value, list) else [value] if value else []
    return ", ".join(choice.name for choice in choices) or "none"


def _table(rows: list[Row]) -> str:
    if not rows:
        return "No options."
    lines = [f"| `{name}` | {_kind(kind)} | `{default}` | {_cell(text)} |" for name, kind, default, text in rows]
    return "\n".join([f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *lines])


def _kind(text: str) -> str:
    return re.sub(r"Literal\[(.*?)\]", r"one of \1", text.replace(" | None", " or none"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_text(PAGE, page(Host(entry_points=False)))
