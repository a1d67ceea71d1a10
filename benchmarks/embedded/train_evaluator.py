"""Train the evaluator: a small CLIP on scenes of its own, with the nearest captions as negatives.

    python benchmarks/embedded/train_evaluator.py --work DIR --minutes 12

Every batch holds groups of scenes that differ in one attribute, so that colours, shapes, relations and words must all
be told apart. Half of the pictures are blurred or made noisy, as generated ones are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from common import ASSETS, Clock, checkpoint, fresh_scenes, log, pixels, publish
from torch import Tensor
from train_tokenizer import TOKENS, tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from aptp.plugins.datasets._kinds import KINDS, Scene

SEED = 103
GROUPS, GROUP = 8, 8
KIND_WEIGHTS = (0.6, 1, 1.8, 1.6, 1)
RATE = 1e-3


def clip(vocabulary: int) -> CLIPModel:
    tower = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 64}
    vision = tower | {"num_hidden_layers": 4, "image_size": 64, "patch_size": 8}
    text = tower | {"num_hidden_layers": 3, "vocab_size": vocabulary, "max_position_embeddings": TOKENS}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def image_processor() -> CLIPImageProcessor:
    size = {"height": 64, "width": 64}
    return CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3
    )


def groups(rng: Random) -> list[Scene]:
    """`GROUPS` scenes, each followed by neighbours that differ in one attribute; no scene twice."""
    batch: dict[Scene, None] = {}
    for scene in fresh_scenes(rng, GROUPS, KIND_WEIGHTS):
        near = [other for other in scene.neighbours() if not other.held_out()]
        batch |= dict.fromkeys([scene, *rng.sample(near, min(GROUP - 1, len(near)))])
    return list(batch)


def worn(x: Tensor, rng: Random) -> Tensor:
    """A quarter of the pictures slightly blurred, a quarter slightly noisy."""
    quarter = len(x) // 4
    x = x.clone()
    which = rng.sample(range(len(x)), 2 * quarter)
    blur, noise = which[:quarter], which[quarter:]
    x[blur] = F.avg_pool2d(F.pad(x[blur], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x[noise] += rng.uniform(0, 0.15) * torch.randn(len(noise), *x.shape[1:])
    return x


@torch.no_grad()
def accuracy(model: CLIPModel, words: CLIPTokenizer, count: int = 60) -> dict[str, float]:
    """Share of held-out scenes whose own caption beats every single-attribute distractor (12 at most), by kind."""
    model.eval()
    rng, shares = Random(f"{SEED} held out"), {}
    for kind in KINDS:
        right = done = 0
        while done < count:
            scene = kind.random(rng)
            if not scene.held_out():
                continue
            near = list(scene.neighbours())
            captions = [s.caption(rng) for s in [scene, *rng.sample(near, min(12, len(near)))]]
            tokens = words(captions, padding="max_length", return_tensors="pt")
            scores = model(pixel_values=pixels([scene], rng), **tokens).logits_per_image[0]
            right += int(scores.argmax() == 0)
            done += 1
        shares[kind.kind] = right / count
    model.train()
    return shares


def save(model: CLIPModel, words: CLIPTokenizer, work: Path) -> None:
    """Write the transformers layout in half precision to aptp/assets/evaluator."""
    folder = work / "evaluator.new"
    half = clip(len(words)).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    words.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    publish(folder, ASSETS / "evaluator")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--decay", type=float, default=5, help="minutes of linear decay at the end")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    words = tokenizer(args.work)
    model = clip(len(words))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.02)
    step, spent, first, state = 0, 0.0, 0, args.work / "evaluator.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        step, spent = saved["step"], saved["spent"]
        if "optimizer" in saved:
            optimizer.load_state_dict(saved["optimizer"])
        else:
            first = step
    clock = Clock(args.minutes, args.decay, 100, spent, first)
    while not clock.done():
        rng = Random(f"{SEED} evaluator {step}")
        batch = groups(rng)
        tokens = words([scene.caption(rng) for scene in batch], padding="longest", return_tensors="pt")
        for group in optimizer.param_groups:
            group["lr"] = RATE * clock.factor(step)
        logits = model(pixel_values=worn(pixels(batch, rng), rng), **tokens).logits_per_image
        truth = torch.arange(len(batch))
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        step += 1
        if step % 25 == 0:
            share = (logits.argmax(-1) == truth).float().mean().item()
            log("evaluator", step=step, minutes=clock.spent, loss=loss.item(), accuracy=share)
        if step % 200 == 0 or clock.done():
            log("evaluator", step=step, minutes=clock.spent, **accuracy(model, words))
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            checkpoint(state, {**saved, "spent": clock.spent})
            save(model, words, args.work)


if __name__ == "__main__":
    main()
