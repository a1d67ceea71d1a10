"""Fill a working folder from the shipped weights, so that training goes on from them.

python benchmarks/embedded/unpack.py --work DIR --step 5330
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from common import ASSETS, checkpoint
from safetensors.torch import load_file
from torch import Tensor

TINY = ASSETS / "tiny"


def weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """A safetensors file in float32, its names behind a prefix."""
    return {prefix + name: value.float() for name, value in load_file(path).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--step", type=int, default=0, help="steps the denoiser has seen, so that its batches are new")
    args = parser.parse_args()
    shutil.copytree(TINY / "tokenizer", args.work / "tokenizer")
    checkpoint(args.work / "vae.pt", {"model": weights(TINY / "vae" / "diffusion_pytorch_model.safetensors")})
    checkpoint(args.work / "evaluator.pt", {"model": weights(ASSETS / "evaluator" / "model.safetensors")})
    painter = weights(TINY / "unet" / "diffusion_pytorch_model.safetensors", "unet.")
    painter |= weights(TINY / "text_encoder" / "model.safetensors", "text.")
    checkpoint(args.work / "unet.pt", {"model": painter, "average": painter, "step": args.step, "spent": 0.0})


if __name__ == "__main__":
    main()
