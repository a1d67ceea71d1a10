"""Invented records of many runs: methods with a quality each, seeds that move all methods alike."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aptp.config import RunConfig, layered
from aptp.core.files import write_json
from aptp.core.record import Budget, Expert, Record, Result
from aptp.host import default_host
from aptp.report.comparison.gathering import gather
from aptp.report.comparison.sources import Source
from aptp.report.comparison.trials import Comparison

KINDS = ("plain", "shape", "pair", "pattern", "word")
HOSTILE = "<script>alert('a & b')</script> on $red$"
PROMPTS = ("blue fading to yellow", "a large white heart", "a heart left of a circle", "green grid on purple", HOSTILE)
WORSE = {"taylor": 1.05, "magnitude": 1.7, "contrastive": 1.1, "kmeans": 1.3, "random-codes": 1.6}
"""How much larger a method's distances are than the dense model's."""
DENSE_STEPS = {10: 1.04, 8: 1.12, 5: 1.5}
"""The numbers of steps that the dense model is drawn with by default, and how much larger its distances are then."""


def make_record(seed: int = 0, *, without: tuple[str, ...] = (), **changes: Any) -> Record:
    """A finished run of the default configuration with `changes`; keys may be dotted by `__`.

    `without` names the parts of `routing` that it lacks.
    """
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    base = {"seed": seed, "compare": [], "evaluate.dense_steps": list(DENSE_STEPS)}
    config = layered(None, [base, changes]).resolved(default_host()).settled()
    chance = Random(f"{seed} {sorted(map(str, changes.items()))}")
    luck = 1 + 0.03 * Random(seed).gauss(0, 1)
    names = [config.pruner.name if config.pruner else f"{config.router.name}+{config.balancer.name}"]
    names += [choice.name for choice in config.compare]
    routed = config.pruner is None and config.experts > 1
    return Record(
        status="done",
        started=f"2026-03-0{1 + seed}T10:00:00+00:00",
        finished=f"2026-03-0{1 + seed}T10:21:00+00:00",
        config=config.model_dump(mode="json"),
        model="95d50e28",
        versions={"python": "3.11.7", "aptp": "0.1.0", "torch": "2.13.0"},
        hardware={"machine": "x86_64", "processor": "a processor", "cores": 2, "gpu": None},
        seconds={"search": 41.0, "recover": 57.0},
        data={"fingerprint": "0fa758fc", "training_pictures": 2048, "validation_pictures": 512, "skipped": {}},
        budget=Budget(
            estimator="macs",
            unit="MACs",
            dense=206.4e6,
            target=config.budget.target,
            floor=0.2,
            sample_size=16,
            text_tokens=32,
        ),
        experts=_experts(config, chance),
        routing=_routing(config, chance, without) if routed else {},
        results=_results(config, names, luck, chance),
    )


def _experts(config: RunConfig, chance: Random) -> list[Expert]:
    count, target = config.experts, config.budget.target
    fractions = [target + 0.2 * (i / max(1, count - 1) - 0.5) * (count > 1) for i in range(count)]
    chance.shuffle(fractions)
    return [
        Expert(
            index=i, fraction=f, cost=f, parameters=10**6, training_load=1 / count, validation_load=1 / count, kept={}
        )
        for i, f in enumerate(fractions)
    ]


def _routing(config: RunConfig, chance: Random, without: tuple[str, ...]) -> dict[str, Any]:
    count = config.experts
    in_use = count * (0.35 if config.balancer.name == "none" else 0.95) * chance.uniform(0.97, 1.0)
    kinds = {
        k: {str(e): round(60 * math.exp(-3 * (e / count - p / 5) ** 2)) for e in range(count)}
        for p, k in enumerate(KINDS)
    }
    found = {
        "perplexity": in_use,
        "perplexity_without_bias": 0.9 * in_use,
        "kinds": kinds,
        "mean_cost_of_kind": {k: config.budget.target * (0.9 + 0.05 * p) for p, k in enumerate(KINDS)},
        "nmi": chance.uniform(0.6, 0.7) if config.router.name in ("contrastive", "kmeans") else chance.uniform(0, 0.02),
        "hardness": {
            "spearman": 0.3 + chance.uniform(-0.03, 0.03),
            "low": 0.2,
            "high": 0.4,
            "prompts": 512,
            "clusters": 40,
        },
        "cross": {
            "teacher_error": [
                [0.004 * (1 + (i != j)) * chance.uniform(0.9, 1.1) for j in range(count)] for i in range(count)
            ],
            "prompts": [128] * count,
        },
    }
    return {key: value for key, value in found.items() if key not in without}


def _results(config: RunConfig, names: list[str], luck: float, chance: Random) -> list[Result]:
    def figures(worse: float) -> dict[str, float]:
        return {
            "cmmd_evaluator": 0.31 * worse * luck,
            "cmmd_evaluator_half": 0.52 * worse * luck,
            "cmmd_evaluator_floor": 0.4 * luck,
            "frechet_evaluator": 0.112 * worse * luck,
            "clip_score_evaluator": 92 / worse**0.1 * luck,
            "clip_score_evaluator_real": 93.0 * luck,
        }

    dense = Result(
        name="dense",
        fraction=1.0,
        macs=206.4e6,
        parameters=5.9e6,
        training_steps=0,
        search_steps=0,
        training_seconds=0.0,
        latency_ms=184.0 * chance.uniform(0.9, 1.1),
        peak_memory_mb=29.0,
        teacher_error=0.0,
        metrics=figures(1.0),
        samples="samples/dense",
    )
    rows = [dense]
    for steps in config.evaluate.dense_steps:
        changed = {
            "name": f"dense, {steps} steps",
            "fraction": steps / config.evaluate.steps,
            "sampling_steps": steps,
            "teacher_error": None,
            "latency_ms": None,
            "metrics": figures(DENSE_STEPS.get(steps, 1.0)),
            "samples": f"samples/dense-{steps}",
        }
        rows.append(dense.model_copy(update=changed))
    for name in names:
        own = name == names[0]
        worse = WORSE.get(name.partition("+")[0], 1.4) + 0.15 * (0.66 - config.budget.target)
        worse += (0.12 if own and config.balancer.name == "none" and not config.pruner else 0) + 0.01 * chance.gauss(
            0, 1
        )
        worse -= 0.05 * math.log2(config.recover.steps / 100) * (own and config.pruner is None)
        fraction = config.budget.target * chance.uniform(0.995, 1.005)
        result = Result(
            name=name,
            fraction=fraction,
            macs=206.4e6 * fraction,
            parameters=5.9e6 * fraction,
            training_steps=config.recover.steps,
            search_steps=80 if "+" in name and "random-codes" not in name else 0,
            training_seconds=98.0 if "+" in name else 57.0,
            latency_ms=dense.latency_ms * (0.2 + 0.8 * fraction),
            peak_memory_mb=20.0,
            teacher_error=0.004 * worse * luck,
            metrics=figures(worse),
            samples=f"samples/{name}" if own else f"baselines/{name}/samples/{name}",
        )
        rows.append(result)
    return rows


def make_folder(record: Record, folder: Path, side: int = 8) -> Source:
    """A run directory with the pictures of a record and an expert's folder."""
    record.save(folder / "record.json")
    prompts = [
        {"prompt": p, "kind": k, "seed": 2 * i, "expert": 0}
        for i, (p, k) in enumerate(zip(PROMPTS, KINDS, strict=True))
    ]
    write_json(folder / "gallery/gallery.json", {"prompts": prompts, "columns": []})
    (folder / "experts/00").mkdir(parents=True)
    (folder / "experts/00/expert.safetensors").write_bytes(bytes(2_500_000))
    for samples in ("samples/real", *(result.samples for result in record.results)):
        (folder / samples).mkdir(parents=True)
        for prompt in prompts:
            pixels = np.random.default_rng(prompt["seed"]).integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((side, side)).save(folder / samples / f"{prompt['seed']:03d}.png")
    return Source(folder.name, record, folder)


def as_sources(*records: Record) -> list[Source]:
    """Runs known by their records alone."""
    return [Source(f"run {place}", record) for place, record in enumerate(records)]


def study(seeds: int = 3, **every: Any) -> list[Record]:
    """Three routed methods, one without transport, and two single models, with so many seeds."""
    rows: list[dict[str, Any]] = [{}, {"balancer": "none"}, {"router": "kmeans"}, {"router": "random-codes"}]
    rows += [{"pruner": "taylor"}, {"pruner": "magnitude"}]
    return [make_record(seed, **row, **every) for row in rows for seed in range(seeds)]


def pair(seeds: int = 2, **every: Any) -> list[Record]:
    """A routed method and a single model."""
    return [make_record(seed, **row, **every) for row in ({}, {"pruner": "taylor"}) for seed in range(seeds)]


@pytest.fixture(scope="session")
def compared() -> Comparison:
    """The study, gathered; change nothing in it."""
    return gather(as_sources(*study()))


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The functions of this file: `record`, `study`, `pair`, `folder` and `sources`."""
    return SimpleNamespace(record=make_record, study=study, pair=pair, folder=make_folder, sources=as_sources)
