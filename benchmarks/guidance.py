"""Where the answers of a finished run's models part from the dense model's: with the prompt, without it, and guided.

Under classifier-free guidance of strength g a picture follows g · conditional − (g − 1) · unconditional, so an error of
the unconditional branch counts g − 1 times, which a teacher error with captions alone does not see. For every model of
the run, on the held-out prompts that it serves: the mean squared difference of each answer from the dense model's, and
of that the part which all pictures share, the squared mean over pictures and places summed over channels: a cast.

`python benchmarks/guidance.py RUN [PICTURES]`
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import aptp
from aptp.api import pipeline_denoiser
from aptp.config import load_config
from aptp.harness.data import fit
from aptp.harness.training import Noiser, generator_for
from aptp.host import default_host

TIMES = (100, 300, 500, 700, 900)
CHUNK = 32


@torch.no_grad()
def main(run: Path, pictures: int) -> None:
    config, host = load_config(file=run / "config.yaml"), default_host()
    pipe = aptp.load(run, device="cpu")
    base, dense = pipe.base, pipe.dense
    denoiser = pipeline_denoiser(base)
    samples = host.create("dataset", config.data.name, config.data.options).samples("validation")[:pictures]
    prompts = [sample.caption for sample in samples]
    size = denoiser.sample_size(dense)
    pixels = base.image_processor.preprocess([fit(sample, size * base.vae_scale_factor) for sample in samples])
    latents = torch.cat([base.vae.encode(part).latent_dist.mode() for part in pixels.split(CHUNK)])
    latents = latents * base.vae.config.scaling_factor
    asked = denoiser.encode_text(base, prompts, size)
    silent = {
        name: states.expand(len(prompts), *states.shape[1:])
        for name, states in denoiser.encode_text(base, [""], size).items()
    }
    noiser, strength = Noiser(denoiser, base.scheduler, torch.device("cpu")), config.evaluate.guidance

    def answers(model: nn.Module, noised, text: dict[str, Tensor], places: Tensor) -> Tensor:
        parts = [noiser.example(noised, part, {k: v[part] for k, v in text.items()}) for part in places.split(CHUNK)]
        return torch.cat([denoiser.predict(model, p.diffused.noisy, p.timesteps, p.text) for p in parts])

    served = torch.tensor([route.expert for route in pipe.route(prompts)])
    singles = {folder.name: aptp.load_expert(folder / "experts/00") for folder in sorted(run.glob("baselines/*"))}
    print(f"guidance {strength:g}; mean squared error, and the part that all share (cast), over time steps {TIMES}")
    for expert in sorted(set(served.tolist())):
        places = (served == expert).nonzero().flatten()
        print(f"prompts of expert {expert}: {len(places)}")
        for name, model in {"experts": pipe.expert(expert), **singles}.items():
            found: dict[str, list[tuple[float, float]]] = {"conditional": [], "unconditional": [], "guided": []}
            for time in TIMES:
                noised = noiser.draw(latents, generator_for(config.seed, "guidance", time), time)
                with_text, without = (
                    answers(model, noised, text, places) - answers(dense, noised, text, places)
                    for text in (asked, silent)
                )
                guided = strength * with_text - (strength - 1) * without
                for each, error in zip(found.values(), (with_text, without, guided), strict=True):
                    each.append((float(error.square().mean()), float(error.mean((0, 2, 3)).square().sum())))
            told = [
                f"{k} {sum(m for m, _ in v) / len(v):.4f} (cast {sum(c for _, c in v) / len(v):.5f})"
                for k, v in found.items()
            ]
            print(f"  {name:10} {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 256)
