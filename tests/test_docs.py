"""Documentation cannot go stale: hooks, options, terms and commands are all there, links lead somewhere, code runs."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from aptp.cli import app
from aptp.core.hookspecs import Hooks
from aptp.core.record import Budget, Expert, Record, Result
from aptp.host import KINDS, Host

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/**/README.md"), *ROOT.glob("benchmarks/**/*.md")]
)
HOOKS = sorted(name for name in vars(Hooks) if name.startswith("aptp_"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TERMS = """
    ablation, anatomy, APTP, architecture, balancer, block, block influence, budget, bundle, calibration, calibration
    batch, caption dropout, classifier-free guidance, cluster, clustered bootstrap, CMMD, code, comparison, confidence
    interval, contrastive loss, control, cost model, cross-routing, cut, damping, denoiser, dense, depth site,
    difficulty, distillation, dynamic batching, embedding, encoder, exam, executor, expert, floor, flow matching,
    fraction, Fréchet distance, gallery, gate, granularity, hardness, harness, Hessian, hook, joint attention, kind,
    leave-one-word-out, load, load-balancing loss, logit, low-rank recovery, MACs, manifest, margin, marginals, masked,
    method, metric, min-SNR, normalised mutual information, oracle, paired difference, part, pass-through, perplexity,
    plan, plugin, preset, prompt, protocol, pruner, record, recovery, reference, relaxation, resource loss, revision,
    route, router, run directory, score, search, search space, serving bias, site, sliced, spread, stage,
    straight-through, stream, sweep, tap, Taylor score, teacher, teacher error, threshold, traffic, unbalanced
    transport, unit, width site
"""


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(path.read_text()) if name == language]


def test_every_kind_of_strategy_has_a_hook() -> None:
    assert set(KINDS.values()) | {"aptp_step_end", "aptp_run_end"} == set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_page_that_the_index_names(hook: str) -> None:
    assert (DOCS / "plugins" / f"{hook}.md").is_file()
    assert f"(plugins/{hook}.md)" in (DOCS / "index.md").read_text()


def test_every_page_belongs_to_a_hook() -> None:
    assert {path.stem for path in (DOCS / "plugins").glob("*.md")} == set(HOOKS)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_a_hook_registers_and_conforms(hook: str, beside: Path) -> None:
    page = DOCS / "plugins" / f"{hook}.md"
    module = re.search(r"^## Example: `(\w+)\.py`$", page.read_text(), re.MULTILINE).group(1)
    example, check = _blocks(page, "python")
    (beside / f"{module}.py").write_text(example)
    host = Host([importlib.import_module(module)], entry_points=False)
    assert module in {plugin.__name__ for plugin in host.manager.get_plugins()}
    for kind in (kind for kind, name in KINDS.items() if name == hook):
        (name,) = host.specs(kind).keys() - Host(entry_points=False).specs(kind).keys()
        made = host.target(kind, name)() if kind == "denoiser" else host.create(kind, name)
        assert type(made).__module__ == module
    exec(compile(check, f"{page}, conformance", "exec"), {})


def test_the_plugin_of_the_readme_runs(beside: Path) -> None:
    (code,) = (code for code in _blocks(ROOT / "README.md", "python") if "@hookimpl" in code)
    (beside / "contrast.py").write_text(code)
    host = Host([importlib.import_module("contrast")], entry_points=False)
    from aptp.testing import check_metric

    check_metric(lambda: host.create("metric", "contrast"))


def test_the_quickstart_slices_what_it_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (code,) = (code for code in _blocks(DOCS / "quickstart.md", "python") if "aptp.slice" in code)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "quickstart", "exec"), {})
    assert float(capsys.readouterr().out.splitlines()[-1]) < 1e-4


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_python_in_pages_compiles(page: Path) -> None:
    for code in _blocks(page, "python"):
        compile(code, str(page), "exec")


@pytest.mark.slow
def test_the_examples_of_serving_run(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(finished.out)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in _blocks(DOCS / "pipeline.md", "python"):
        exec(code, names)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_family_has_a_section_that_names_its_model_and_layers() -> None:
    page = (DOCS / "models.md").read_text()
    sections = dict(re.findall(r"^## [^\n]*\(`(\w+)`\)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(Host(entry_points=False).specs("denoiser"))
    from aptp.api import denoiser_of
    from aptp.models import MOVED
    from aptp.testing import MODELS

    for make in MODELS.values():
        anatomy = denoiser_of(model := make()).anatomy(model)
        layers = {
            path.removeprefix(f"{part.path}.")
            for part in anatomy.width
            for path in (*part.taps, *(cut.path for cut in part.cuts))
        }
        assert [layer for layer in layers if f"`{layer}`" not in page] == []
        assert any(f"`{type(model).__name__}`" in section for section in sections.values())
    for gone, now in MOVED.items():
        assert f"| `{gone}` | `{now}` |" in page


def test_options_are_documented_as_they_are() -> None:
    script = runpy.run_path(str(DOCS / "config_page.py"))
    written = script["page"](Host(entry_points=False))
    assert script["PAGE"].read_text() == written, "docs/config.md is out of date; run make docs."


def test_the_glossary_has_every_term() -> None:
    terms = re.findall(r"^\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    wanted = {" ".join(term.split()) for term in TERMS.split(",")}
    assert wanted - set(terms) == set()
    assert terms == sorted(terms, key=str.casefold), "terms stand in alphabetical order"
    assert len(terms) == len(set(terms))


@pytest.mark.parametrize("part", [Record, Budget, Expert, Result])
def test_the_record_is_documented(part: type) -> None:
    text = (DOCS / "run-directory.md").read_text()
    assert [name for name in part.model_fields if f"`{name}`" not in text] == []


def _commands() -> Iterator[tuple[str, list[str]]]:
    """The lines of shell blocks that start with `aptp`, and commands quoted in prose."""
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in _blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
        quoted = re.findall(r"`(aptp [^`]+)`", BLOCK.sub("", text))
        for line in (*lines, *(" ".join(command.split()) for command in quoted)):
            if line.startswith("aptp "):
                yield _id(page), line.split(" #")[0].split()[1:]


def test_commands_in_pages_exist_with_their_options() -> None:
    root = typer.main.get_command(app)
    found = list(_commands())
    assert len(found) > 10
    for page, words in found:
        command = root
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert command is not root or used, f"{page}: aptp {' '.join(words)} is no command"
        assert used <= known, f"{page}: {used - known} is no option of aptp {command.name}"
