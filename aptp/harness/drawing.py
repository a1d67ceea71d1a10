"""Pictures of a run's models, as numbered PNG files; those of the dense model are drawn once for all runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

from PIL import Image

from aptp.core import distributed
from aptp.core.cache import alone, key_of
from aptp.core.files import replacing
from aptp.harness.training import autocast
from aptp.harness.workspace import Workspace
from aptp.models import pipeline_fingerprint
from aptp.pipeline import RoutedPipeline

END_OF_PNG = b"IEND\xaeB`\x82"
DRAWN_BY = ("torch", "diffusers", "transformers")
"""Libraries of which other versions may draw other pictures."""


def draw_pictures(
    work: Workspace,
    pipe: RoutedPipeline,
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    experts: Sequence[int],
    steps: int | None = None,
) -> None:
    """Draw what is not yet in `folder`, as `000.png`, …; expert −1 is the dense model.

    `steps` are the sampling steps, the run's own by default.

    A part of four batches is drawn whole or not at all, so that a resumed run draws the same bits. Of
    several processes, each draws parts of its own.
    """
    options = work.config.evaluate
    starts = range(0, len(prompts), options.batch * 4)[distributed.rank() :: distributed.processes()]
    parts = [range(start, min(start + options.batch * 4, len(prompts))) for start in starts]
    with work.progress.task(f"drawing {folder.name}", sum(map(len, parts))) as advance:
        for part in parts:
            if all(is_whole(picture(folder, i)) for i in part):
                advance(len(part))
                continue
            with autocast(work.device, options.precision):
                drawn = pipe(
                    [prompts[i] for i in part],
                    seed=[seeds[i] for i in part],
                    experts=[experts[i] for i in part],
                    num_inference_steps=steps or options.steps,
                    guidance_scale=options.guidance,
                    batch_size=options.batch,
                    advance=advance,
                )
            for place, image in zip(part, drawn.images, strict=True):
                save_picture(image, picture(folder, place))
    distributed.wait()


def draw_dense(
    work: Workspace,
    pipe: RoutedPipeline,
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int | None = None,
) -> None:
    """Have the dense model's pictures in `folder`, from the cache, where other runs find them again.

    What they depend on names their place there: the model, prompts and seeds, how they are sampled, the kind of device
    and the libraries' versions. Of several runs one draws, and the others wait for it.
    """
    places = range(len(prompts))
    if distributed.on_main(lambda: all(is_whole(picture(folder, place)) for place in places)):
        return
    cached = work.preparer.cache / f"pictures-{_key(work, prompts, seeds, steps)}" / folder.name
    with alone(cached, work.progress, "drawing") if distributed.is_main() else nullcontext():
        if distributed.is_main():
            _clean(cached)
        distributed.wait()
        draw_pictures(work, pipe, cached, prompts, seeds, [-1] * len(prompts), steps)
        for place in places if distributed.is_main() else ():
            with replacing(picture(folder, place), lasting=False) as temporary:
                shutil.copyfile(picture(cached, place), temporary)
    distributed.wait()


def picture(folder: Path, place: int) -> Path:
    """Where a folder has the picture of the prompt at a place."""
    return folder / f"{place:03d}.png"


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    with replacing(path, lasting=False) as temporary:
        image.save(temporary, format="PNG")


def is_whole(path: Path) -> bool:
    """Whether there is a PNG to its last bytes, which one that was being written when a machine went down has not."""
    return path.is_file() and path.read_bytes().endswith(END_OF_PNG)


def _key(work: Workspace, prompts: Sequence[str], seeds: Sequence[int], steps: int | None) -> str:
    """What the dense model's pictures depend on."""
    options, pipeline = work.config.evaluate, work.pipeline
    parts = {name: (type(part).__name__, _config(part)) for name, part in sorted(pipeline.components.items())}
    drawing = [steps or options.steps, options.guidance, options.batch, options.precision, work.device.type]
    libraries = [metadata.version(library) for library in DRAWN_BY]
    model = [type(pipeline).__name__, pipeline_fingerprint(pipeline), parts]
    return key_of(model, list(prompts), list(seeds), drawing, libraries).hex()


def _config(part: object) -> dict[str, str]:
    """How diffusers configured a part of a pipeline."""
    config = getattr(part, "config", None)
    return {k: str(v) for k, v in config.items() if not k.startswith("_")} if isinstance(config, Mapping) else {}


def _clean(folder: Path) -> None:
    """Delete what killed processes left half-written, and pictures that have been damaged since."""
    for stale in folder.glob(".*.png.*"):
        stale.unlink()
    for path in folder.glob("*.png"):
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError):
            path.unlink()
