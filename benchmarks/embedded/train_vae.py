"""Train the embedded model's autoencoder: 64 × 64 pictures to 16 × 16 × 4 latents, letters kept crisp.

python benchmarks/embedded/train_vae.py --work DIR --minutes 20
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from common import Clock, checkpoint, fresh_scenes, log, pixels
from diffusers import AutoencoderKL
from torch import Tensor

SEED = 101
KIND_WEIGHTS = (0.5, 1.5, 2, 1.5, 4.5)
BATCH = 16
RATE = 2e-3
KL = 2e-4


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=2,  # small groups would normalise the colour of a plain ground away
        layers_per_block=1,
        sample_size=64,
        mid_block_add_attention=False,
    )


def start(model: AutoencoderKL) -> None:
    """Initialise so that a picture's colours pass undamped: unit-gain convolutions without bias."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            torch.nn.init.zeros_(module.bias)


def edges(x: Tensor, y: Tensor) -> Tensor:
    """L1 distance of the horizontal and vertical differences of two batches of pictures."""
    across = (x.diff(dim=-1) - y.diff(dim=-1)).abs().mean()
    return across + (x.diff(dim=-2) - y.diff(dim=-2)).abs().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--decay", type=float, default=9, help="minutes of linear decay at the end")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    model = autoencoder()
    start(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    step, spent, first, state = 0, 0.0, 0, args.work / "vae.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        step, spent = saved["step"], saved["spent"]
        if "optimizer" in saved:
            optimizer.load_state_dict(saved["optimizer"])
        else:
            first = step
    clock = Clock(args.minutes, args.decay, 30, spent, first)
    while not clock.done():
        rng = Random(f"{SEED} vae {step}")
        x = pixels(fresh_scenes(rng, BATCH, KIND_WEIGHTS), rng)
        for group in optimizer.param_groups:
            group["lr"] = RATE * clock.factor(step)
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.sample()).sample
        l1, edge = (x - y).abs().mean(), edges(x, y)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + 0.5 * F.mse_loss(x, y) + 0.5 * edge + KL * kl
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            figures = {"l1": l1.item(), "edge": edge.item(), "kl": kl.item(), "norm": norm.item()}
            log("vae", step=step, minutes=clock.spent, **figures, std=posterior.mean.std().item())
        if step % 100 == 0 or clock.done():
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            checkpoint(state, {**saved, "spent": clock.spent})


if __name__ == "__main__":
    main()
