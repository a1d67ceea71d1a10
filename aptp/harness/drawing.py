"""Pictures of a run's models, as numbered PNG files; those of the dense model are drawn once for all runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

from PIL import Image

from aptp.core import distributed
from aptp.core.cache import alone, is_writable, key_of
from aptp.core.errors import RequestError
from aptp.core.files import replacing
from aptp.harness.training import autocast
from aptp.harness.workspace import Workspace
from aptp.models import pipeline_fingerprint, settings
from aptp.pipeline import RoutedPipeline

END_OF_PNG = b"IEND\xaeB`\x82"
DRAWN_BY = ("aptp", "torch", "diffusers", "transformers")
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
    and the libraries' versions. Of several runs one draws, and the others wait for it. A cache that cannot be written
    is left alone.

    Raises:
        RequestError: if the processes of this run do not see the same cache.
    """
    places = range(len(prompts))
    if distributed.on_main(lambda: all(is_whole(picture(folder, place)) for place in places)):
        return
    key = key_of(_depends_on(work, pipe, prompts, seeds, steps or work.config.evaluate.steps)).hex()
    cached = distributed.shared(work.preparer.cache / f"pictures-{key}" / "dense")
    if not distributed.on_main(lambda: is_writable(cached)):
        work.progress.say(f"the cache {str(cached.parent)!r} cannot be written: this run draws for itself alone")
        draw_pictures(work, pipe, folder, prompts, seeds, [-1] * len(prompts), steps)
        return
    with alone(cached, work.progress, "drawing") if distributed.is_main() else nullcontext():
        if distributed.is_main():
            _clean(cached, work.preparer.latent_size * work.pipeline.vae_scale_factor)
        distributed.wait()
        draw_pictures(work, pipe, cached, prompts, seeds, [-1] * len(prompts), steps)
        distributed.on_main(lambda: _copy(cached, folder, places))


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


def _depends_on(
    work: Workspace, pipe: RoutedPipeline, prompts: Sequence[str], seeds: Sequence[int], steps: int
) -> list[object]:
    """All that the dense model's pictures depend on."""
    options, base = work.config.evaluate, pipe.base
    parts = {name: settings(part) for name, part in sorted(base.components.items())}
    return [
        [pipeline_fingerprint(base), settings(base), parts, str(pipe.bundle.call_options)],
        [list(prompts), list(seeds)],
        [steps, options.guidance, options.batch, options.precision, work.device.type],
        [metadata.version(library) for library in DRAWN_BY],
    ]


def _clean(folder: Path, size: int) -> None:
    """Delete what killed processes left half-written, and what is no sound picture of so many pixels a side."""
    for stale in folder.glob(".*.png.*"):
        stale.unlink()
    for path in folder.glob("*.png"):
        try:
            with Image.open(path) as image:
                sound = image.size == (size, size)
                image.verify()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            sound = False
        if not sound:
            path.unlink()


def _copy(cached: Path, folder: Path, places: Sequence[int]) -> None:
    """Copy pictures out of the cache."""
    for place in places:
        if not picture(cached, place).is_file():
            raise RequestError(
                f"another process drew {str(picture(cached, place))!r} elsewhere: all processes of a run have to see "
                "one folder as prepare.cache."
            )
        with replacing(picture(folder, place), lasting=False) as temporary:
            shutil.copyfile(picture(cached, place), temporary)
