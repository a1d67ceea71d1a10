"""Which runs a sweep is, and what is refused before the first one starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from aptp.config import load_config
from aptp.core.errors import RequestError
from aptp.host import default_host
from aptp.sweep.grid import Cell, Sweep, cells, check_folders


def expand(**sweep: Any) -> list[Cell]:
    return cells(Sweep.model_validate(sweep), default_host())


def names(**sweep: Any) -> list[str]:
    return [cell.name for cell in expand(**sweep)]


def test_a_grid_is_every_combination_over_the_base() -> None:
    found = expand(
        preset="smoke",
        base={"search": {"steps": 9}, "router.weight": 2},
        grid={"balancer": ["sinkhorn", "none"], "seed": [0, 1]},
    )
    assert [cell.name for cell in found] == [
        *("balancer=sinkhorn,seed=0", "balancer=sinkhorn,seed=1", "balancer=none,seed=0", "balancer=none,seed=1")
    ]
    assert found[1].differences == {"balancer": "sinkhorn", "seed": 1}
    for cell in found:
        assert (cell.config.search.steps, cell.config.search.batch) == (9, 4)
        assert cell.config.router.options["weight"] == 2
        assert (cell.config.balancer.name, cell.config.seed) == (cell.differences["balancer"], cell.differences["seed"])


def test_one_cell_leaves_nothing_in_the_next() -> None:
    found = expand(
        base={"search": {"steps": 9}},
        grid={"seed": [0]},
        runs=[{"name": "a", "set": {"search.rate": 0.5, "search.weights": {"blocks": 3}}}, {"name": "b"}],
    )
    assert [cell.config.search.rate for cell in found] == [0.5, 0.05]
    assert [cell.config.search.weights.blocks for cell in found] == [3, 0.2]
    assert [cell.config.search.steps for cell in found] == [9, 9]


def test_named_runs_share_the_grid_and_may_have_their_own() -> None:
    found = expand(
        grid={"seed": [0, 1]},
        runs=[
            {"name": "aptp"},
            {"name": "magnitude", "set": {"pruner": "magnitude"}, "grid": {"seed": [0]}},
            {"name": "few", "grid": {"seed": [2], "experts": [2, 3]}},
        ],
    )
    assert [cell.name for cell in found] == [
        *("aptp,seed=0", "aptp,seed=1", "magnitude,seed=0", "few,seed=2,experts=2", "few,seed=2,experts=3")
    ]
    assert found[2].differences == {"pruner": "magnitude", "seed": 0}
    assert found[2].config.router.name == "constant"  # as the run itself settles it
    assert names(runs=[{"name": "alone"}]) == ["alone"]


def test_a_run_reads_back_what_its_cell_asks(tmp_path: Path) -> None:
    options = {"name": "sinkhorn", "epsilon": 0.1}
    runs = [{"name": "static", "set": {"pruner": "magnitude"}}, {"name": "routed", "set": {"balancer": options}}]
    for cell in expand(runs=runs):
        file = tmp_path / f"{cell.name}.yaml"
        file.write_text(cell.config.to_yaml())
        assert load_config(file=file).resolved(default_host()).settled() == cell.config


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("budget", "macs:0.8", "budget=macs-0.8"),
        ("search.rate", 0.001, "search.rate=0.001"),
        ("balancer", {"name": "sinkhorn", "epsilon": 0.1}, "balancer=sinkhorn-epsilon-0.1"),
        ("compare", [], "compare=empty"),
        ("pruner", None, "pruner=null"),
        ("evaluate.dense_steps", [10, 5], "evaluate.dense_steps=10-5"),
    ],
)
def test_names_are_fit_for_files(key: str, value: Any, name: str) -> None:
    assert names(grid={key: [value]}) == [name]


def test_long_values_are_cut_and_stay_apart() -> None:
    paths = [f"owner-of-quite-some-length/{'x' * 40}-{end}" for end in "ab"]
    found = names(grid={"model": paths})
    assert len(set(found)) == 2
    assert all(re.fullmatch(r"model=[\w.-]{40}", name) for name in found)
    assert found == names(grid={"model": paths})


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ({}, "neither a grid nor runs"),
        ({"preset": "smok", "grid": {"seed": [0]}}, "did you mean 'smoke'"),
        ({"base": {"serch.steps": 1}, "grid": {"seed": [0]}}, "did you mean 'search'"),
        ({"grid": {"router": ["kmean"]}}, "did you mean 'kmeans'"),
        ({"grid": {"router.tempature": [1]}}, "did you mean 'temperature'"),
        ({"grid": {"sed": [1]}}, "did you mean 'seed'"),
        ({"grid": {"experts": [2, 0]}}, "experts' of the run is 0"),
        ({"grid": {"model": ["tyni"]}}, "unknown model 'tyni'"),
        ({"grid": {"seed": []}}, "no value for 'seed'"),
        ({"grid": {"seed": [0, 1, 0]}}, "0 more than once for 'seed'"),
        ({"grid": {"budget": [0.5, "0.5"]}}, "'budget=0.5'"),
        ({"grid": {"budget": [0.5, "macs:0.5"]}}, "'budget=0.5' and 'budget=macs-0.5' have the same configuration"),
        ({"runs": [{"name": "a", "set": {"seed": 1}}, {"name": "A", "set": {"seed": 2}}]}, "would be named 'A'"),
        ({"runs": [{"name": "a"}, {"name": "b"}]}, "'a' and 'b' have the same configuration"),
        ({"grid": {"seed": [0]}, "runs": [{"name": "a", "set": {"seed": 1}}]}, "sets 'seed', which the grid varies"),
        ({"grid": {f"search.weights.{'x' * 200}": [1], "seed": [0]}}, "unknown option"),
        ({"base": {"compare": ["taylor", "taylor"]}, "grid": {"seed": [0]}}, "more than once"),
    ],
)
def test_what_can_be_checked_is_checked(sweep: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=re.escape(sentence)) as caught:
        expand(**sweep)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grid: {seed: 0}", "option 'grid.seed' of the sweep"),
        ("grid: {seed: [0]}\nrun: []", "did you mean 'runs'"),
        ("runs: [{name: a/b}]", "'a/b'"),
        ("runs: [{set: {seed: 1}}]", "needs the option 'runs.0.name'"),
        ("runs: [{name: a, seed: 1}]", "unknown option"),
        ("grid: {seed: [0], seed: [1]}", "the key 'seed' stands twice in line 1"),
        ("base: none.yaml", "none.yaml' cannot be read"),
        ("[1, 2]", "holds no key: value pairs"),
        ("grid: [", "is not YAML"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(RequestError, match=re.escape(sentence)) as caught:
        Sweep.load(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value)


def test_folders_of_other_runs_are_refused_before_the_first_run(tmp_path: Path) -> None:
    found = expand(grid={"seed": [0, 1]})
    check_folders(found, tmp_path / "sweep")
    other = tmp_path / "sweep/seed=1"
    other.mkdir(parents=True)
    (other / ".config.yaml.x1").touch()  # half written by a run that was killed
    check_folders(found, tmp_path / "sweep")
    (other / "config.yaml").write_text(found[1].config.to_yaml())
    check_folders(found, tmp_path / "sweep")
    (other / "config.yaml").write_text(found[0].config.to_yaml())
    with pytest.raises(RequestError, match="seed=1' belongs to another configuration"):
        check_folders(found, tmp_path / "sweep")
    with pytest.raises(RequestError, match="is a file"):
        check_folders(found, other / "config.yaml")


def test_the_experiment_on_collapse_differs_from_search_only() -> None:
    folder = Path(__file__).parents[2] / "benchmarks/experiments"
    found = cells(Sweep.load(folder / "collapse.yaml"), default_host())
    assert [cell.name for cell in found] == [
        f"router=contrastive,balancer={balancer},seed={seed}" for balancer in ("sinkhorn", "none") for seed in range(3)
    ]
    base = load_config(file=folder / "search-only.yaml").resolved(default_host())
    assert found[0].config == base.settled()
