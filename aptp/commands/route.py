"""`aptp route`: where prompts go, and why."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from aptp.commands.failing import Debug, checking, working
from aptp.commands.prompts import FILE_HELP, Run, read_prompts
from aptp.core.errors import RequestError
from aptp.core.text import printable

SHOWN_WORDS = 3
"""Of a prompt, in a table or CSV; JSON has all."""


def route(
    run: Run,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Prompts.")] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE|-", help=FILE_HELP)] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the nearest training prompts and the words that decide.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Say which expert serves each prompt.

    Cost is a share of the dense model's; the margin is the lead in score over the next expert.
    """
    if (prompts is None) == (not texts):
        raise RequestError("give prompts either after the run or as a file with --prompts.")
    if as_csv and as_json:
        raise RequestError("--csv and --json exclude each other; give one.")
    asked = list(texts) if prompts is None and texts else read_prompts(str(prompts))
    with working("routing", debug):
        with checking():
            from aptp.bundle import load_finished
            from aptp.host import default_host
            from aptp.routing import check_prompts

            check_prompts(asked)
            bundle = load_finished(run, default_host())
        if explain:
            from aptp.explain import explain as explained

            answers = [asdict(why.route) | asdict(why) for why in explained(bundle, asked)]
        else:
            from aptp import routing

            answers = [asdict(route) for route in routing.route(bundle, routing.read(bundle, asked))]
        _print(answers, as_csv, as_json)


def _print(answers: Sequence[dict[str, Any]], as_csv: bool, as_json: bool) -> None:
    columns = ["prompt", "expert", "cost", "margin", *(name for name in ("nearest", "words") if name in answers[0])]
    if as_json:
        finite = [
            {name: None if value == math.inf else value for name in columns for value in [answer[name]]}
            for answer in answers
        ]
        typer.echo(printable(json.dumps(finite, indent=1, ensure_ascii=False, allow_nan=False)))
        return
    rows: list[Sequence[object]] = [[_cell(name, answer) for name in columns] for answer in answers]
    if as_csv:
        shown = [[printable(str(cell)) for cell in row] for row in [columns, *rows]]
        csv.writer(sys.stdout, lineterminator="\n").writerows(shown)
        return
    from aptp.terminal import show, table

    show(table(columns, rows))


def _cell(name: str, answer: dict[str, Any]) -> object:
    value = answer[name]
    if name == "nearest":
        near = [f"{n['prompt']} ({n['similarity']:.2f}, expert {n['expert']})" for n in value]
        return "; ".join(near) or "none kept"
    if name == "words":
        return "; ".join(_word(word, answer["expert"]) for word in value[:SHOWN_WORDS] if word["lost"] > 0)
    return "only one" if value == math.inf else value


def _word(word: dict[str, Any], expert: int) -> str:
    moved = "" if word["expert"] == expert else f", without it expert {word['expert']}"
    return f"{word['text']} ({word['lost']:.3f}{moved})"
