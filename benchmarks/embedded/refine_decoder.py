"""Train the autoencoder's decoder further with the encoder fixed, so that cached latents stay valid.

    python benchmarks/embedded/refine_decoder.py --work DIR --minutes 15

Latents get some noise, as those of the denoiser have; plain grounds get a larger share than in the first training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from common import Clock, checkpoint, fresh_scenes, log, pixels
from models import trained_vae
from train_vae import BATCH, edges

SEED = 105
KIND_WEIGHTS = (2, 1, 1.5, 1.5, 3)
RATE = 1e-3
NOISE = 0.12
"""Largest standard deviation of the noise, in units of the latents' own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--decay", type=float, default=10, help="minutes of linear decay at the end")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    model, state = trained_vae(args.work), args.work / "decoder.pt"
    parts = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    for part in parts:
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW(parts, lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    step, spent = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
    clock = Clock(args.minutes, args.decay, warmup=50, spent=spent)
    while not clock.done():
        rng = Random(f"{SEED} decoder {step}")
        x = pixels(fresh_scenes(rng, BATCH, KIND_WEIGHTS), rng)
        for group in optimizer.param_groups:
            group["lr"] = RATE * clock.factor(step)
        with torch.no_grad():
            latents = model.encode(x).latent_dist.mean
            latents += NOISE * torch.rand(BATCH, 1, 1, 1) * latents.std() * torch.randn_like(latents)
        y = model.decode(latents).sample
        l1, edge = (x - y).abs().mean(), edges(x, y)
        loss = l1 + 0.5 * F.mse_loss(x, y) + 0.5 * edge
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts, 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            log("decoder", step=step, minutes=clock.spent, l1=l1.item(), edge=edge.item())
        if step % 100 == 0 or clock.done():
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            checkpoint(state, {**saved, "spent": clock.spent})


if __name__ == "__main__":
    main()
