"""`aptp generate`: pictures of prompts; and how commands read prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aptp.commands.failing import Debug, checking, working
from aptp.core.errors import RequestError

if TYPE_CHECKING:
    from aptp.pipeline import RoutedPipeline

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
Margin = Annotated[
    float,
    typer.Option("--fallback-margin", min=0, help="Prompts whose expert leads by less go to the dense model."),
]
FILE_HELP = "Prompts, one a line; - is standard input."


def generate(
    run: Run,
    prompts: Annotated[str, typer.Option(metavar="FILE|-", help=FILE_HELP)],
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 25,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; the model's own by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise; repetitions of a prompt count on from it.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time.")] = 16,
    margin: Margin = 0.0,
    debug: Debug = False,
) -> None:
    """Draw a picture of each prompt with its expert."""
    asked = read_prompts(prompts)
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {str(out)!r} is a file; name a folder.")
    if next(out.glob("*.png"), None):
        raise RequestError(f"--out {str(out)!r} has pictures in it already; name a new folder, or an empty one.")
    with working("drawing", debug):
        from aptp.core.files import replacing, write_json
        from aptp.request import seeds_from
        from aptp.terminal import Terminal

        pipe = _pipeline(run, asked)
        routes = pipe.route(asked, fallback_margin=margin)
        seeds = seeds_from(seed, asked)
        names = [f"{place:03d}.png" for place in range(len(asked))]
        by_expert = sorted(range(len(asked)), key=lambda place: routes[place].expert)
        with Terminal().task("drawing", len(asked)) as advance:
            for start in range(0, len(asked), batch):
                places = by_expert[start : start + batch]
                drawn = pipe(
                    [asked[place] for place in places],
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    seed=[seeds[place] for place in places],
                    batch_size=batch,
                    experts=[routes[place].expert for place in places],
                )
                for place, image in zip(places, drawn.images, strict=True):
                    with replacing(out / names[place]) as temporary:
                        image.save(temporary, format="PNG")
                advance(len(places))
        listed = [
            {"file": name, "prompt": route.prompt, "expert": route.expert, "cost": route.cost, "seed": seed}
            for name, route, seed in zip(names, routes, seeds, strict=True)
        ]
        write_json(out / "pictures.json", listed)
        typer.echo(f"{len(asked)} pictures in {out}")


def read_prompts(source: str) -> list[str]:
    """Prompts from a file, or from standard input for `-`, one a line. Raises `RequestError` if it cannot be read."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"prompts {source!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"prompts {source!r} are not UTF-8 text.") from error
    return text.removesuffix("\n").split("\n") if text else []


def _pipeline(run: Path, prompts: Sequence[str]) -> RoutedPipeline:
    """The pipeline of a run, once the prompts are known to be good."""
    with checking():
        from aptp.pipeline import load
        from aptp.routing import check_prompts

        check_prompts(prompts)
        return load(run)
