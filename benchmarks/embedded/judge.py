"""Judge the embedded pipeline on held-out captions, kind by kind.

    python benchmarks/embedded/judge.py --each 40 --out sheet.png

Three figures a kind, each for generated pictures, for real ones and for real ones passed through the autoencoder:
`recognised`: among the true scene and every scene that differs from it in one attribute, the true one's procedural
drawing is the nearest to the picture (mean squared error, several draws each); `told`: the evaluator prefers the true
caption to up to 16 captions that differ in one attribute; `score`: 100 times the evaluator's cosine of picture and
caption. For words, `legible`: of all the vocabulary the true word correlates best with the picture, by 0.7 or more.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import numpy as np
import torch
from common import ASSETS, log
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from aptp.plugins.datasets._drawing import COLOURS, word_mask
from aptp.plugins.datasets._kinds import KINDS, WORDS, Scene, Word
from aptp.plugins.datasets.scenes import Scenes

SEED = 7
DRAWS = 4


def distance(picture: np.ndarray, scene: Scene) -> float:
    """Mean squared error (levels of 255) to the nearest of some drawings of a scene."""
    drawings = (np.asarray(scene.draw(Random(seed))).astype(float) for seed in range(DRAWS))
    return min(float(((picture - drawing) ** 2).mean()) for drawing in drawings)


def recognised(picture: np.ndarray, scene: Scene) -> bool:
    own = distance(picture, scene)
    return all(own < distance(picture, other) for other in scene.neighbours())


def legible(picture: np.ndarray, scene: Word) -> bool:
    """Whether the true word's letters are the best match, looking along the line from the ground to the ink."""
    axis = np.subtract(COLOURS[scene.colour], COLOURS[scene.ground]).astype(float)
    ink = picture @ axis
    match = {}
    for word in WORDS:
        mask = np.asarray(word_mask(word).reduce(4)).astype(float)
        shifts = (np.roll(mask, (down, across), (0, 1)) for down in (-1, 0, 1) for across in (-1, 0, 1))
        match[word] = max(np.corrcoef(ink.ravel(), shifted.ravel())[0, 1] for shifted in shifts)
    return max(match, key=match.__getitem__) == scene.word and match[scene.word] >= 0.7


class Evaluator:
    """The shipped evaluator with its tokenizer."""

    def __init__(self) -> None:
        self.model = CLIPModel.from_pretrained(ASSETS / "evaluator", dtype=torch.float32).eval()
        self.words = CLIPTokenizer.from_pretrained(ASSETS / "evaluator")

    @torch.no_grad()
    def cosines(self, picture: np.ndarray, captions: list[str]) -> Tensor:
        pixels = torch.from_numpy(picture / 127.5 - 1).float().permute(2, 0, 1)[None]
        output = self.model(pixel_values=pixels, **self.words(captions, padding="max_length", return_tensors="pt"))
        return (output.image_embeds @ output.text_embeds.T)[0]


def judge(pictures: list[np.ndarray], scenes: list[Scene], captions: list[str], evaluator: Evaluator) -> dict:
    """The figures of one kind for one source of pictures."""
    rng, told, scores = Random(SEED), [], []
    for picture, scene, caption in zip(pictures, scenes, captions, strict=True):
        near = list(scene.neighbours())
        others = [other.caption(rng) for other in rng.sample(near, min(16, len(near)))]
        cosines = evaluator.cosines(picture, [caption, *others])
        told.append(bool(cosines.argmax() == 0))
        scores.append(100 * cosines[0].item())
    figures = {
        "recognised": np.mean([recognised(p, s) for p, s in zip(pictures, scenes, strict=True)]),
        "told": np.mean(told),
        "score": np.mean(scores),
    }
    if isinstance(scenes[0], Word):
        figures["legible"] = np.mean([legible(p, s) for p, s in zip(pictures, scenes, strict=True)])
    return {name: round(float(value), 3) for name, value in figures.items()}


def generate(pipeline: StableDiffusionPipeline, captions: list[str], steps: int, guidance: float) -> list[np.ndarray]:
    """Pictures of captions, ten at a time, each from its own seed."""
    pictures = []
    for start in range(0, len(captions), 10):
        some = captions[start : start + 10]
        sources = [torch.Generator().manual_seed(SEED + start + index) for index in range(len(some))]
        images = pipeline(some, generator=sources, num_inference_steps=steps, guidance_scale=guidance).images
        pictures += [np.asarray(image).astype(float) for image in images]
    return pictures


@torch.no_grad()
def through_vae(pipeline: StableDiffusionPipeline, pictures: list[np.ndarray]) -> list[np.ndarray]:
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = pipeline.vae.decode(pipeline.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return list(((y.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(float))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=40, help="held-out captions a kind")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", type=Path, required=True, help="the contact sheet: generated above real, a row a kind")
    parser.add_argument("--brief", action="store_true", help="leave out the autoencoded pictures")
    parser.add_argument("--note", default="", help="kept with the figures in the log")
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "tiny", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    evaluator, rows = Evaluator(), []
    data = Scenes(Scenes.Options(seed=SEED, validation=len(KINDS) * args.each))
    everything = list(zip(data.scenes("validation"), data.samples("validation"), strict=True))
    for kind in KINDS:
        scenes = [scene for scene, _ in everything if isinstance(scene, kind)]
        samples = [sample for scene, sample in everything if isinstance(scene, kind)]
        captions = [sample.caption for sample in samples]
        real = [np.asarray(sample.open()).astype(float) for sample in samples]
        made = generate(pipeline, captions, args.steps, args.guidance)
        sources = {"generated": made, "real": real}
        if not args.brief:
            sources["autoencoded"] = through_vae(pipeline, real)
        for name, pictures in sources.items():
            figures = judge(pictures, scenes, captions, evaluator)
            settings = {"each": args.each, "steps": args.steps, "guidance": args.guidance, "note": args.note}
            log("judge", kind=kind.kind, source=name, **figures, settings=json.dumps(settings))
        rows += [np.concatenate([np.pad(p, ((1, 1), (1, 1), (0, 0))) for p in x[:16]], axis=1) for x in (made, real)]
    sheet = Image.fromarray(np.concatenate(rows).round().astype(np.uint8))
    sheet.save(args.out)


if __name__ == "__main__":
    main()
