"""Where the pictures of a finished run's models lie: how far from the real ones, how far from the dense model's, and
whether they left the dense model's the way that leads on from the real ones.

Embeddings have unit length, and the kernel of CMMD is nearly linear on them, so CMMD is about ten times the squared
distance between two mean embeddings. With d the offset of the dense model's mean from the real one and s the shift of a
pruned model's mean from the dense one's, its CMMD is about 10·|d + s|² = 10·(|d|² + |s|² + 2·|d|·|s|·cos(d, s)): who
keeps close to the dense model inherits d, and whether a shift counts for or against a model is a matter of its cosine.

`python benchmarks/shift.py RUN PICTURES GUIDANCE...`
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import aptp
from aptp.config import load_config
from aptp.harness.data import fit
from aptp.host import default_host
from aptp.plugins.metrics._features import EMBEDDED, load_features
from aptp.plugins.metrics.cmmd import squared_mmd
from aptp.plugins.metrics.frechet import frechet_distance


def main(run: Path, pictures: int, strengths: list[float]) -> None:
    config, features = load_config(file=run / "config.yaml"), load_features(EMBEDDED)
    samples = default_host().create("dataset", config.data.name, config.data.options).samples("validation")[:pictures]
    prompts = [sample.caption for sample in samples]

    def embeds(images: list[Image.Image]) -> Tensor:
        arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
        return features.images(torch.from_numpy(arrays).permute(0, 3, 1, 2)).double()

    pipes = {"experts": aptp.load(run, device="cpu")}
    pipes |= {folder.name: aptp.load(folder, device="cpu") for folder in sorted(run.glob("baselines/*"))}
    pipe = pipes["experts"]
    size = pipe.base.unet.config.sample_size * pipe.base.vae_scale_factor
    real = embeds([fit(sample, size) for sample in samples])
    rows = {"dense": (pipe, [-1] * len(prompts))}
    rows |= {name: (own, [route.expert for route in own.route(prompts)]) for name, own in pipes.items()}
    for strength in strengths:
        print(f"guidance {strength:g}: CMMD and Fréchet distance to real, to dense; cosine of offset and shift")
        dense = None
        for name, (drawer, experts) in rows.items():
            drawn = drawer(
                prompts,
                seed=list(range(len(prompts))),
                experts=experts,
                num_inference_steps=config.evaluate.steps,
                guidance_scale=strength,
                batch_size=config.evaluate.batch,
            )
            mine = embeds(drawn.images)
            told = f"  {name:8} {squared_mmd(mine, real):.4f} {frechet_distance(mine, real):.5f}"
            if dense is None:
                dense = mine
            else:
                offset, shift = dense.mean(0) - real.mean(0), mine.mean(0) - dense.mean(0)
                cosine = torch.cosine_similarity(offset, shift, dim=0)
                told += f"; {squared_mmd(mine, dense):.4f} {frechet_distance(mine, dense):.5f}; {cosine:+.2f}"
            print(told, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]), [float(strength) for strength in sys.argv[3:]])
