"""Train the denoiser and its text encoder together on cached latents, with one process a core.

    python benchmarks/embedded/train_unet.py --work DIR --minutes 75 --decay 20

A run that was stopped resumes from its last checkpoint; give it other `--minutes` and the decay ends at that moment.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
from common import Clock, checkpoint, fresh_scenes, log, pixels
from models import scheduler, text_encoder, trained_vae, unet
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from train_tokenizer import TOKENS, tokenizer

from aptp.plugins.datasets._kinds import KINDS, Scene

SEED = 104
PICTURES = 24_000
CACHED = {"plain": 0.7, "shape": 1, "pair": 1.5, "pattern": 0.8, "word": 1.5}
"""Share of each kind among the cached pictures."""
DRAWN = {"plain": 0.9, "shape": 1.1, "pair": 1.7, "pattern": 0.4, "word": 1.8}
"""Share of each kind in a batch: what is learned last is shown most."""
BATCH = 32
RATE = 1.2e-3
DROP = 0.1
GAMMA = 5.0
EMA = 0.999


@torch.no_grad()
def cache_latents(work: Path) -> None:
    """Encode the training pictures once; the scaling factor brings the latents to unit variance."""
    vae, rng, means = trained_vae(work), Random(f"{SEED} pictures"), []
    drawn = fresh_scenes(Random(f"{SEED} scenes"), PICTURES, tuple(CACHED.values()))
    for start in range(0, PICTURES, 64):
        means.append(vae.encode(pixels(drawn[start : start + 64], rng)).latent_dist.mean)
    latents = torch.cat(means)
    factor = 1 / latents.std().item()
    save_file(
        {"latents": (latents * factor).contiguous()},
        work / "latents.safetensors",
        {"scaling_factor": json.dumps(factor)},
    )
    (work / "scenes.json").write_text(json.dumps([[scene.kind, asdict(scene)] for scene in drawn]))
    log("unet", latents=PICTURES, scaling_factor=factor, channel_means=str(latents.mean((0, 2, 3)).tolist()))


def cached_scenes(work: Path) -> list[Scene]:
    kinds = {kind.kind: kind for kind in KINDS}
    return [kinds[kind](**attributes) for kind, attributes in json.loads((work / "scenes.json").read_text())]


class Painter(nn.Module):
    """Text encoder and denoiser as one module: token ids in, velocity out."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text, self.unet = text_encoder(vocabulary), unet()

    def forward(self, noisy: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, time, self.text(tokens).last_hidden_state).sample


def train(rank: int, processes: int, args: argparse.Namespace) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.port)}
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    words, state = tokenizer(args.work), args.work / "unet.pt"
    model = Painter(len(words))
    step, spent, first, saved = 0, 0.0, 0, None
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        step, spent = saved["step"], saved["spent"]
    average = {k: v.clone() for k, v in (saved["average"] if saved else model.state_dict()).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    if saved and "optimizer" in saved:
        optimizer.load_state_dict(saved["optimizer"])
    else:
        first = step
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    with safe_open(args.work / "latents.safetensors", "pt") as file:
        latents = file.get_tensor("latents")
    drawn, alphas, share = cached_scenes(args.work), scheduler().alphas_cumprod, BATCH // processes
    places = {kind: [index for index, scene in enumerate(drawn) if scene.kind == kind] for kind in DRAWN}
    clock, total, done = Clock(args.minutes, args.decay, 200, spent, first), torch.zeros(1), False
    while not done:
        rng = Random(f"{SEED} step {step} of {rank}/{processes}")
        noise_source = torch.Generator().manual_seed(rng.getrandbits(63))
        chosen = [rng.choice(places[kind]) for kind in rng.choices(list(DRAWN), list(DRAWN.values()), k=share)]
        captions = ["" if rng.random() < DROP else drawn[index].caption(rng) for index in chosen]
        tokens = words(captions, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=noise_source)
        time = (torch.rand(share, generator=noise_source) + torch.arange(share)) / share  # stratified
        time = (time * 1000).long().clamp(max=999)
        signal = alphas[time].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * clean
        snr = alphas[time] / (1 - alphas[time])
        weight = (snr + 1).clamp(max=GAMMA) / (snr + 1)
        for group in optimizer.param_groups:
            group["lr"] = RATE * clock.factor(step)
        error = (wrapped(noisy, time, tokens) - velocity).square().mean((1, 2, 3))
        loss = (weight * error).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        total += loss.detach()
        momentum = min(EMA, (step + 1) / (step + 20))
        if rank == 0:
            values = model.state_dict()
            torch._foreach_lerp_(list(average.values()), [values[name] for name in average], 1 - momentum)
        if step % 50 == 0:
            if rank == 0:
                log("unet", step=step, minutes=clock.spent, loss=total.item() / 50, rate=RATE * clock.factor(step))
            total.zero_()
        finished = torch.tensor([float(clock.done())])
        if step % 10 == 0:
            dist.broadcast(finished, 0)
            done = bool(finished.item())
        if rank == 0 and (step % 200 == 0 or done):
            kept = {"model": model.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            checkpoint(state, {**kept, "step": step, "spent": clock.spent})
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where latents and checkpoints go")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--decay", type=float, default=20, help="minutes of linear decay at the end")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--port", type=int, default=29531)
    args = parser.parse_args()
    if not (args.work / "latents.safetensors").exists():
        cache_latents(args.work)
    torch.multiprocessing.spawn(train, (args.processes, args), nprocs=args.processes)


if __name__ == "__main__":
    main()
