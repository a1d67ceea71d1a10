from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

import aptp
from aptp.core.architecture import SearchSpace
from aptp.core.files import write_json
from aptp.core.record import Budget, Expert, Record, Result

KINDS = ("plain", "shape", "pair", "pattern", "word")
HOSTILE = "<script>alert('a & b')</script> on $red$"
HARDNESS = {"spearman": 0.213, "low": 0.052, "high": 0.361, "prompts": 128, "clusters": 120}
PROMPTS = (
    "blue fading to yellow",
    "a large white heart on purple",
    "a blue heart left of a purple circle on orange",
    "green grid on purple",
    HOSTILE,
)


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return aptp.search_space(unet)


@pytest.fixture(scope="session")
def make_run(space: SearchSpace, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a run directory as the harness leaves it; what is in it is invented."""

    def make(experts: int = 4, picture: int = 64) -> Path:
        tmp_path = tmp_path_factory.mktemp("run")
        record = make_record(experts)
        record.save(tmp_path / "record.json")
        (tmp_path / "config.yaml").write_text("model: tiny\nbudget: {name: macs, target: 0.66}\n")
        for expert in record.experts:
            architecture = aptp.Architecture.random(space, keep=expert.fraction, seed=expert.index)
            architecture.save(tmp_path / f"experts/{expert.index:02d}/architecture.json")
        _write_logs(tmp_path, experts)
        _draw_gallery(tmp_path, experts, picture)
        return tmp_path

    return make


def make_record(experts: int) -> Record:
    fractions = [0.46 + 0.42 * i / max(1, experts - 1) for i in range(experts)] if experts > 1 else [0.66]
    chance = Random(0)
    kinds = {
        kind: {
            str(e): round(60 * math.exp(-5 * (e / max(1, experts - 1) - place / 4) ** 2) + 0.4) for e in range(experts)
        }
        for place, kind in enumerate(KINDS)
    }
    cost_of = {
        kind: sum(fractions[int(e)] * n for e, n in row.items()) / sum(row.values()) for kind, row in kinds.items()
    }

    def metrics(worse: float) -> dict[str, float]:
        return {
            "cmmd_evaluator": 0.31 * worse,
            "cmmd_evaluator_half": 0.52 * worse,
            "cmmd_evaluator_floor": 0.40,
            "frechet_evaluator": 0.112 * worse,
            "frechet_evaluator_half": 0.171 * worse,
            "frechet_evaluator_floor": 0.150,
            "clip_score_evaluator": 24.2 if worse == 1.6 else 25.9 / worse,
            "clip_score_evaluator_real": 27.3,
        }

    def result(name: str, fraction: float, error: float, worse: float, samples: str) -> Result:
        return Result(
            name=name,
            fraction=fraction,
            macs=206.4e6 * fraction,
            parameters=5.93e6 * fraction,
            training_steps=0 if name == "dense" else 240,
            training_seconds=0.0 if name == "dense" else 312.4 * (1 if name == "magnitude" else 1.4),
            latency_ms=184.0 * (0.25 + 0.75 * fraction),
            peak_memory_mb=29.4 * (0.4 + 0.6 * fraction),
            teacher_error=error,
            metrics=metrics(worse),
            samples=samples,
        )

    return Record(
        status="done",
        started="2026-03-02T10:00:00+00:00",
        finished="2026-03-02T10:21:00+00:00",
        config={
            "model": "tiny",
            "data": {"name": "scenes"},
            "router": {"name": "contrastive", "warmup": 0.2},
            "balancer": {"name": "sinkhorn"},
            "pruner": None,
            "experts": experts,
            "search": {"steps": 120},
            "recover": {"steps": 240, "per": "run", "rank": 0},
            "evaluate": {"steps": 15, "guidance": 3.0, "prompts": 200},
        },
        versions={"python": "3.11.7", "aptp": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
        hardware={"machine": "x86_64", "system": "Linux", "processor": "a processor", "cores": 2, "gpu": None},
        seconds={"prepare": 41.0, "search": 190.2, "slice": 0.8, "recover": 250.0, "evaluate": 480.3, "gallery": 60.0},
        data={
            "fingerprint": "e4dffa207e2e4758",
            "training_pictures": 4096,
            "validation_pictures": 512,
            "skipped": {"7.png": "it is <b>broken</b>"},
        },
        budget=Budget(
            estimator="macs",
            unit="MACs",
            dense=206.4e6,
            target=0.66,
            floor=0.197,
            uncalibrated=0.694,
            expected=0.659,
            measured=0.652,
            sample_size=16,
            text_tokens=32,
        ),
        experts=[
            Expert(
                index=i,
                fraction=fraction,
                cost=206.4e6 * fraction,
                parameters=round(5.93e6 * fraction),
                training_load=1 / experts,
                validation_load=(1 + 0.2 * (-1) ** i * (experts % 2 == 0)) / experts,
                kept={},
            )
            for i, fraction in enumerate(fractions)
        ],
        routing={
            "perplexity": experts * 0.96,
            "perplexity_without_bias": experts * 0.71,
            "oracle": {"mean_cost": 0.648, "teacher_error": 0.0047, "least_teacher_error": 0.00312},
            "cross": _cross(experts),
            **({"nmi": 0.412, "hardness": HARDNESS} if experts > 1 else {}),
            "kinds": kinds,
            "mean_cost_of_kind": cost_of,
            "examples": {str(i): chance.sample(PROMPTS, 3) for i in range(experts)} | {"0": [HOSTILE]},
        },
        results=[
            result("dense", 1.0, 0.0, 1.0, "samples/dense"),
            result("contrastive+sinkhorn", 0.648, 0.0047, 1.21, "samples/contrastive+sinkhorn"),
            result("magnitude", 0.661, 0.0071, 1.6, "baselines/magnitude/samples/magnitude"),
            result("random", 0.66, 0.0102, 1.11, "baselines/random/samples/random"),
        ],
        warnings=["1 pictures were skipped; the first: it is <b>broken</b>."],
    )


def _cross(experts: int) -> dict:
    """Costlier experts err less, each least on its own prompts; the last serves nobody where there are several."""
    last = experts - 1
    errors = [
        [None if experts > 1 and j == last else 0.006 - 0.001 * i + 0.0006 * abs(i - j) for j in range(experts)]
        for i in range(experts)
    ]
    return {"teacher_error": errors, "prompts": [0 if experts > 1 and j == last else 30 + j for j in range(experts)]}


def _write_logs(folder: Path, experts: int) -> None:
    chance = np.random.default_rng(0)

    def wobble() -> float:
        return float(np.exp(0.12 * chance.standard_normal()))

    search = [
        {
            "step": step,
            "total": 120,
            "loss": (1.2 + 4 * math.exp(-step / 30)) * wobble(),
            "cost": 0.66 + 0.2 * math.exp(-step / 25) * wobble(),
            "denoising": 0.3 * wobble(),
            "distillation": 0.01 + 0.03 * math.exp(-((step - 40) ** 2) / 800) * wobble(),
            "blocks": 0.2 * wobble(),
            "resource": 0.4 * math.exp(-step / 20) * wobble(),
            "spread": -0.01 * wobble(),
            **({"contrastive": 4 * math.exp(-step / 60) * wobble(), "balance": 0.0} if step > 2 else {}),
        }
        for step in range(120)
    ]
    _write_log(folder / "logs/search.jsonl", search)

    def recovered(step: int, scale: float) -> dict:
        error = scale * (0.004 + 0.02 * math.exp(-step / 40)) * wobble()
        return {"step": step, "total": 240, "loss": 3 * error, "distillation": error, "blocks": 4 * error}

    lines = []
    for step in range(240):
        own = step >= 120
        expert = (step - 120) * experts // 120 if own else None
        lines.append(recovered(step, 1.0) | {"phase": "own" if own else "joint", "expert": expert})
    _write_log(folder / "logs/recover.jsonl", lines)
    for scale, name in ((1.5, "magnitude"), (2.1, "random")):
        lines = [recovered(step, scale) | {"phase": "own", "expert": 0} for step in range(240)]
        _write_log(folder / f"baselines/{name}/logs/recover.jsonl", lines)


def _write_log(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _draw_gallery(folder: Path, experts: int, side: int) -> None:
    columns = [{"name": "real", "folder": "gallery/real"}, {"name": "dense", "folder": "gallery/dense"}]
    columns += [{"name": f"expert {i}", "folder": f"gallery/expert-{i:02d}", "expert": i} for i in range(experts)]
    columns += [{"name": name, "folder": f"gallery/{name}"} for name in ("magnitude", "random")]
    prompts = [
        {"prompt": prompt, "kind": kind, "seed": i, "expert": i % experts}
        for i, (prompt, kind) in enumerate(zip(PROMPTS, KINDS, strict=True))
    ]
    for column in columns:
        (folder / column["folder"]).mkdir(parents=True)
        for i in range(len(prompts)):
            chance = np.random.default_rng(i)
            pixels = chance.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((side, side)).save(folder / column["folder"] / f"{i:03d}.png")
    write_json(folder / "gallery/gallery.json", {"prompts": prompts, "columns": columns})
