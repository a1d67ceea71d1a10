"""Fill a working folder from the shipped weights, so that training goes on from them.

python benchmarks/embedded/unpack.py --work DIR --step 11760
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
    parser.add_argument("--step", type=int, default=0, help="steps that each part has seen")
    args = parser.parse_args()
    shutil.copytree(TINY / "tokenizer", args.work / "tokenizer")
    begun = {"step": args.step, "spent": 0.0}
    checkpoint(args.work / "vae.pt", begun | {"model": weights(TINY / "vae" / "diffusion_pytorch_model.safetensors")})
    checkpoint(args.work / "evaluator.pt", begun | {"model": weights(ASSETS / "evaluator" / "model.safetensors")})
    painter = weights(TINY / "unet" / "diffusion_pytorch_model.safetensors", "unet.")
    painter |= weights(TINY / "text_encoder" / "model.safetensors", "text.")
    checkpoint(args.work / "unet.pt", begun | {"model": painter, "average": painter})


if __name__ == "__main__":
    main()
