"""`aptp export`: what a finished run made, to be used elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aptp.commands.failing import Debug, working
from aptp.core.errors import RequestError
from aptp.core.extras import check_extra
from aptp.core.files import check_new


class Format(StrEnum):
    """What an expert is written as."""

    diffusers = "diffusers"
    onnx = "onnx"
    torch = "torch"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or of a bundle.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; a new one, or an empty one.")],
    expert: Annotated[int | None, typer.Option(help="One expert alone, instead of the whole bundle.")] = None,
    form: Annotated[
        Format, typer.Option("--format", help="Of an expert: a diffusers model, or a graph of ONNX or torch.export.")
    ] = Format.diffusers,
    debug: Debug = False,
) -> None:
    """Write a bundle: all that serving needs in one folder, to share; or one expert.

    A bundle has the base model, the router, all experts, a model card, and a manifest with the SHA-256 of every file.
    """
    if expert is None and form is not Format.diffusers:
        raise RequestError(f"--format {form} is for one expert; name it with --expert.")
    if form is Format.onnx:
        check_extra("--format onnx", "onnx")
    check_new(to)
    if not (run / "router/router.json").is_file():
        raise RequestError(f"{str(run)!r} is no run with a router: it has no router/router.json.")
    if expert is not None and not (run / f"experts/{expert:02d}/architecture.json").is_file():
        raise RequestError(f"there is no expert {expert}; {str(run)!r} has no folder experts/{expert:02d} of one.")
    with working("the export", debug):
        from aptp.bundle import load_finished
        from aptp.host import default_host
        from aptp.pipeline import load
        from aptp.publishing import write_expert

        if expert is None:
            load(run, device="cpu").save_pretrained(to)
        else:
            write_expert(load_finished(run, default_host()), expert, to, form)
        typer.echo(f"{'the bundle' if expert is None else f'expert {expert}'} is in {to}")
