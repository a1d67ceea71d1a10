from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aptp.config import RunConfig, layered, load_config, presets
from aptp.core.errors import RequestError
from aptp.host import Host


@pytest.fixture(scope="module")
def host() -> Host:
    return Host(entry_points=False)


def refusal(host: Host, **layers: object) -> str:
    with pytest.raises(RequestError) as refused:
        load_config(**layers).resolved(host)
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_later_layers_override_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("experts: 3\nseed: 5\nsearch: {steps: 7}\n")
    assert load_config("smoke").experts == 2
    assert load_config("smoke").search.batch == 4

    from_file = load_config("smoke", file)
    assert (from_file.experts, from_file.search.steps, from_file.search.batch) == (3, 7, 4)

    from_flags = load_config("smoke", file, {"experts": 4, "search.steps": 9})
    assert (from_flags.experts, from_flags.search.steps, from_flags.seed) == (4, 9, 5)

    assigned = load_config("smoke", file, {"experts": 4}, ["experts=6", "search.weights.blocks=0.5"])
    assert (assigned.experts, assigned.search.weights.blocks, assigned.search.steps) == (6, 0.5, 7)


def test_keys_of_a_file_may_be_dotted_and_stand_once(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("search.steps: 7\nsearch: {batch: 3}\nbalancer: entropy\nbalancer.weight: 2\n")
    config = load_config(file=file)
    assert (config.search.steps, config.search.batch) == (7, 3)
    assert (config.balancer.name, config.balancer.options) == ("entropy", {"weight": 2})
    file.write_text("seed: 1\nsearch: {rate: 1, rate: 2}\n")
    with pytest.raises(RequestError, match="the key 'rate' stands twice in line 2"):
        load_config(file=file)


def test_nothing_said_is_the_default() -> None:
    assert load_config() == RunConfig()


OF_YOURS = {"paper-coco": ["data.path=coco"], "paper-cc3m": ["data.path=cc3m"]}
"""What presets leave to their users."""


@pytest.mark.parametrize("name", presets())
def test_every_preset_resolves(name: str, host: Host) -> None:
    assert load_config(name, assignments=OF_YOURS.get(name, [])).resolved(host) != RunConfig().resolved(host)


@pytest.mark.parametrize(("name", "experts"), [("paper-coco", 8), ("paper-cc3m", 16)])
def test_the_paper_s_presets_hold_its_published_settings(name: str, experts: int, host: Host) -> None:
    config = load_config(name, assignments=OF_YOURS[name]).resolved(host)
    assert (config.experts, config.recover.joint) == (experts, 0)
    assert (config.recover.steps, config.recover.per, config.recover.schedule) == (30_000, "expert", "constant")
    assert config.search.rate == pytest.approx(2e-4 * config.search.batch**0.5)
    assert config.recover.rate == pytest.approx(1e-5 * config.recover.batch**0.5)
    assert (config.search.steps, config.search.warmup, config.search.schedule) == (5000, 100, "constant")
    assert config.router.options["warmup"] * config.search.steps == 500
    assert config.data.name == name.removeprefix("paper-")
    assert (config.prepare.train, config.prepare.validation, config.prepare.flips) == (None, None, True)


@pytest.mark.parametrize("kind", ["coco", "cc3m"])
def test_the_paper_s_presets_take_the_path_of_their_data(kind: str, host: Host) -> None:
    assert f"dataset '{kind}' needs the option 'path'" in refusal(host, preset=f"paper-{kind}")
    by_flag = load_config(f"paper-{kind}", flags={"data": f"{kind}:folder"}).resolved(host)
    assert by_flag == load_config(f"paper-{kind}", assignments=["data.path=folder"]).resolved(host)


def test_options_join_the_default_strategy_and_a_new_one_drops_them(host: Host) -> None:
    assert load_config(assignments=["router.weight=3"]).resolved(host).router.options["weight"] == 3
    assert load_config(assignments=["router.weight=3", "router.name=constant"]).resolved(host).router.options == {}
    assert load_config(flags={"pruner": "magnitude"}, assignments=["pruner.norm=l2"]).resolved(host).pruner.options == {
        "norm": "l2"
    }


def test_a_name_again_keeps_the_options_given_before(host: Host) -> None:
    def epsilon(*layers: dict[str, object]) -> object:
        return layered(None, layers).resolved(host).balancer.options.get("epsilon")

    assert epsilon({"balancer.epsilon": 0.5}, {"balancer": "sinkhorn"}) == 0.5
    assert epsilon({"balancer.epsilon": 0.5, "balancer": "sinkhorn"}) == 0.5
    assert epsilon({"balancer": "sinkhorn:0.5"}, {"balancer": "sinkhorn:0.25"}) == 0.25
    assert epsilon({"balancer.epsilon": 0.5}, {"balancer": "none"}) is None


def test_an_argument_is_the_first_option(host: Host) -> None:
    encoder = load_config(flags={"encoder": "clip:owner/name"}).resolved(host).encoder
    assert encoder.options["model"] == "owner/name"
    assert "argument" not in encoder.options
    assert load_config(flags={"data": "scenes:7"}).resolved(host).data.options["seed"] == 7


@pytest.mark.parametrize(
    ("text", "name", "target"),
    [
        ("0.5", "macs", 0.5),
        ("params:0.25", "params", 0.25),
        ("macs", "macs", 0.66),
        (0.9, "macs", 0.9),
        ("1", "macs", 1.0),
    ],
)
def test_budgets_are_an_estimator_and_a_target(text: object, name: str, target: float, host: Host) -> None:
    budget = load_config(flags={"budget": text}).resolved(host).budget
    assert (budget.name, budget.target) == (name, target)


@pytest.mark.parametrize(
    "budget", ["0", "macs:0", "1.0001", "macs:1.5", "-0.5", "macs:nan", "macs:inf", "macs:", "params:x"]
)
def test_a_target_outside_zero_to_one_is_refused(budget: str, host: Host) -> None:
    text = refusal(host, flags={"budget": budget})
    assert "budget.target" in text
    assert repr(budget.rpartition(":")[2]) in text


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("experts", "'experts'"),
        ("=3", "'=3'"),
        ("experts=0", "'experts' of the run is 0"),
        ("experts=many", "'many'"),
        ("expertz=3", "did you mean 'experts'"),
        ("search.stps=3", "did you mean 'search.steps'"),
        ("search.weights.block=3", "did you mean 'search.weights.blocks'"),
        ("search=5", "'search' of the run is 5"),
        ("router.tempature=1", "did you mean 'temperature'"),
        ("router.temperature=-1", "'temperature' of router 'contrastive' is -1"),
        ("router=contrastiv", "did you mean 'contrastive'"),
        ("data=scene", "did you mean 'scenes'"),
        ("metrics=[cmd]", "did you mean 'cmmd'"),
        ("compare=[magnitud]", "did you mean 'magnitude'"),
        ("encoder=clip", "needs the option 'model'"),
        ("balancer=none:3", "takes no argument"),
        ("pruner.norm=l2", "'pruner.name'"),
        ("device=gpu", "'gpu'"),
        ("recover.joint=1.1", "'recover.joint' of the run is 1.1"),
    ],
)
def test_bad_settings_are_refused_by_name(assignment: str, named: str, host: Host) -> None:
    assert named in refusal(host, assignments=[assignment])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"experts: 3\na: [", "in line 2"),
        (b"\x00", "not YAML"),
        (b"[1, 2]", "no key: value pairs"),
        (b"text", "no key: value pairs"),
        (b"{1: 2}", "'1'"),
        (b"router: null", "'router'"),
    ],
)
def test_unreadable_files_are_refused(content: bytes, named: str, host: Host, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    assert named in refusal(host, file=file)


def test_missing_files_and_presets_are_refused(host: Host, tmp_path: Path) -> None:
    assert "No such file" in refusal(host, file=tmp_path / "none.yaml")
    assert "directory" in refusal(host, file=tmp_path)
    assert "did you mean 'smoke'" in refusal(host, preset="smok")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("")
    assert load_config(file=file) == RunConfig()


@given(
    target=st.floats(1e-9, 1),
    rate=st.floats(1e-12, 1e3),
    epsilon=st.floats(1e-12, 1e3),
    experts=st.integers(1, 64),
    model=st.text(min_size=1, max_size=20),
    pruner=st.sampled_from([None, "magnitude", "random"]),
    compare=st.lists(st.sampled_from(["magnitude", "random"]), max_size=2),
)
def test_yaml_and_back_is_the_same_run(
    tmp_path_factory: pytest.TempPathFactory,
    target: float,
    rate: float,
    epsilon: float,
    experts: int,
    model: str,
    pruner: str | None,
    compare: list[str],
) -> None:
    flags = {"budget": target, "search.rate": rate, "balancer": {"name": "sinkhorn", "epsilon": epsilon}}
    flags |= {"experts": experts, "model": model, "compare": compare, "pruner": pruner}
    config = load_config(flags=flags).resolved(Host(entry_points=False))
    file = tmp_path_factory.mktemp("config") / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(file=file)
    assert again == config
    assert again.resolved(Host(entry_points=False)) == config
    assert (again.budget.target, again.balancer.options["epsilon"]) == (target, epsilon)


def test_yaml_holds_every_option(host: Host) -> None:
    held = yaml.safe_load(load_config().resolved(host).to_yaml())
    assert set(held) == set(RunConfig.model_fields)
    assert held["balancer"]["epsilon"] == 0.05


def test_a_static_run_has_one_expert_and_compares_with_none(host: Host) -> None:
    config = load_config(flags={"experts": 8})
    static = config.static(config.compare[0]).resolved(host)
    assert (static.pruner.name, static.experts, static.router.name, static.compare) == ("magnitude", 1, "constant", [])
    assert static.budget == config.resolved(host).budget


def test_a_group_of_options_that_do_not_fit_is_told_in_a_sentence() -> None:
    with pytest.raises(RequestError) as caught:
        load_config(assignments=["recover.guidance=3", "recover.batch=3"])
    assert str(caught.value) == (
        "option 'recover' of the run: with guidance, batch 3 is made of pairs; choose a multiple of 2."
    )


def test_dense_steps_are_numbers_of_steps() -> None:
    assert load_config(assignments=["evaluate.dense_steps=[10, 5]"]).evaluate.dense_steps == [10, 5]
    with pytest.raises(RequestError, match=r"'evaluate\.dense_steps' of the run is \[10, 0\]"):
        load_config(assignments=["evaluate.dense_steps=[10, 0]"])
    with pytest.raises(RequestError, match="dense_steps names 15"):
        load_config(assignments=["evaluate.dense_steps=[15]"])


def test_a_weight_that_is_set_leaves_the_others_of_its_stage() -> None:
    for stage in ("search", "recover"):
        usual = getattr(RunConfig(), stage).weights.model_dump()
        asked = load_config(assignments=[f"{stage}.weights.distillation=0"])
        assert getattr(asked, stage).weights.model_dump() == usual | {"distillation": 0.0}
