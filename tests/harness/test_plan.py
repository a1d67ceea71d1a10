"""The dry run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aptp.config import RunConfig, layered
from aptp.core.errors import RequestError
from aptp.harness import plan
from aptp.host import default_host


def changed(config: RunConfig, **changes: object) -> RunConfig:
    return RunConfig.model_validate(config.model_dump() | changes).resolved(default_host())


@pytest.fixture
def unprepared(small_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """With a cache of its own."""
    return changed(small_config, prepare={"cache": str(tmp_path_factory.mktemp("cache"))})


def test_tells_the_stages_and_leaves_no_file(
    unprepared: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan(unprepared, tmp_path / "run", host=default_host())
    assert not list(tmp_path.iterdir())
    assert [stage.name for stage in planned.stages] == ["prepare", "search", "recover", "exam", "generate"]
    assert all(stage.seconds > 0 for stage in planned.stages)
    assert planned.disk_mb > 1
    assert planned.memory_mb > 1
    work = {stage.name: stage.what for stage in planned.stages}
    assert "80 pictures" in work["prepare"]
    assert str(planned.cache).startswith("80 pictures and ")
    assert planned.cache.size > 80 * 4 * 4 * 8**2
    assert "20 steps for 3 experts" in work["search"]
    assert "24 steps, 12 for each pruned model" in work["recover"]
    assert "20 noised pictures" in work["exam"]


def test_a_run_takes_no_more_disk_than_was_said(finished, small_config: RunConfig, tmp_path: Path) -> None:
    """Which is not much more than it takes; its reports and the router are of no size that a model has."""
    planned = plan(small_config, tmp_path / "run", host=default_host())
    kinds = (".safetensors", ".png")
    files = [f for f in finished.out.rglob("*") if f.suffix in kinds and not {"router", "gallery"} & set(f.parts)]
    taken = sum(f.stat().st_size for f in files if f.name != "search.safetensors") / 1e6
    assert taken < planned.disk_mb < 4 * taken


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 0.5 * 5 + 6 * (1 + 0.5 * 5)),
        ({"compare": []}, 0.5 * 4 + 6 * (1 + 0.5 * 4)),
        ({"recover.joint": 1}, 0.5 + 1 + 6 * (1 + 0.5)),
        ({"recover.joint": 0}, 0.5 * 5 + 6 * 0.5 * 5),
        ({"recover.rank": 4}, 0.5 * 5 + 2 * (1 + 0.5 * 5)),
        ({"recover.steps": 0}, 0.5 * 5),
        ({"pruner": "magnitude", "compare": []}, 0.5 + 6 * 0.5),
        ({"adapt.steps": 1}, 0.5 * 5 + 6 * (1 + 0.5 * 5) + 7),
    ],
)
def test_disk_is_that_of_experts_and_checkpoints(changes: dict, wanted: float) -> None:
    config = layered(None, [{"budget": 0.5, "experts": 4}, changes])
    assert plan.__globals__["_weights_mb"](config, 10.0) == pytest.approx(10 * wanted)


def test_steps_of_every_expert_are_planned(small_config: RunConfig, tmp_path: Path) -> None:
    recover = small_config.recover.model_copy(update={"per": "expert"}).model_dump()
    planned = plan(changed(small_config, recover=recover), tmp_path / "run", host=default_host())
    (what,) = (stage.what for stage in planned.stages if stage.name == "recover")
    assert "48 steps, 12 for each expert" in what, "three experts and magnitude's one model"


def test_joint_steps_cost_the_dense_model_and_low_rank_ones_less(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plan.__globals__, "_seconds_of_call", lambda work: 0.01)

    def planned(**recover: object) -> tuple[float, float]:
        options = small_config.recover.model_copy(update=recover).model_dump()
        found = plan(changed(small_config, recover=options), tmp_path / "run", host=default_host())
        return next(stage.seconds for stage in found.stages if stage.name == "recover"), found.memory_mb

    apart, memory = planned(joint=0.0)
    assert planned(joint=1.0)[0] > planned(joint=0.5)[0] > apart
    low_rank, less = planned(joint=0.0, rank=4)
    assert low_rank < apart
    assert less < memory


@pytest.mark.parametrize("changes", [{"pruner": "magnitude"}, {"router": "random-codes"}], ids=str)
def test_a_run_that_learns_nothing_has_no_search(small_config: RunConfig, tmp_path: Path, changes: dict) -> None:
    planned = plan(changed(small_config, **changes), tmp_path / "run", host=default_host())
    assert [stage.name for stage in planned.stages if stage.name != "prepare"] == ["recover", "exam", "generate"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": "macs:0.01"}, "under the floor"),
        ({"experts": 1000}, "1000 experts are more than the"),
        ({"model": "nowhere"}, "unknown model 'nowhere'"),
    ],
)
def test_refuses_what_a_run_would(small_config: RunConfig, tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        plan(changed(small_config, **changes), tmp_path / "run", host=default_host())


def test_refuses_a_cache_that_does_not_fit(
    unprepared: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(RequestError, match="where 0 MB are free: make room"):
        plan(unprepared, tmp_path / "run", host=default_host())


def test_refuses_a_folder_that_a_run_would(small_config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("not a run")
    with pytest.raises(RequestError, match="not empty and no run directory"):
        plan(small_config, tmp_path, host=default_host())
    (tmp_path / "config.yaml").write_text(changed(small_config, seed=7).to_yaml())
    with pytest.raises(RequestError, match="belongs to another configuration"):
        plan(small_config, tmp_path, resume=True, host=default_host())


def test_what_a_gpu_has_yet_to_do_counts(
    unprepared: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def settle(device: torch.device) -> None:
        now[0] += 1

    monkeypatch.setitem(plan.__globals__, "settle", settle)
    monkeypatch.setitem(plan.__globals__, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    planned = plan(unprepared, tmp_path / "run", host=default_host())
    seconds = {stage.name: stage.seconds for stage in planned.stages}
    assert seconds["prepare"] == 80 / plan.__globals__["PROBE"], "a second for as many pictures as a call takes"
    assert seconds["exam"] > 20 / plan.__globals__["PROBE"]


def test_a_learned_code_is_searched_for_and_dense_rows_are_drawn(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plan.__globals__, "_seconds_of_call", lambda work: 0.01)
    alone = plan(changed(small_config, compare=[]), tmp_path / "run", host=default_host())
    beside = plan(
        changed(small_config, compare=["learned"], evaluate={"dense_steps": [9, 8]}),
        tmp_path / "run",
        host=default_host(),
    )
    seconds, both = ({stage.name: stage.seconds for stage in planned.stages} for planned in (alone, beside))
    assert both["search"] == pytest.approx(2 * seconds["search"])
    assert "(5)" in next(stage.what for stage in beside.stages if stage.name == "generate")
