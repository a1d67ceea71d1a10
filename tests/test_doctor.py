from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import aptp.doctor
from aptp.cli import app
from aptp.core.errors import RequestError
from aptp.core.hookspecs import PluginSpec, hookimpl
from aptp.doctor import Finding, assets, hardware, libraries, plugins
from aptp.host import Host


def broken(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.found for finding in findings if finding.broken}


@pytest.mark.parametrize(("is_broken", "status"), [(False, 0), (True, 1)])
def test_the_exit_status_tells_whether_something_is_broken(
    is_broken: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aptp.doctor, "examine", lambda: [Finding("heart", "beats"), Finding("leg", "?", is_broken)])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == status
    assert ("broken" in result.stdout) is is_broken
    assert "heart" in result.stdout


def test_libraries_are_compared_with_what_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in {finding.subject for finding in libraries()}
    wanted = ["pluggy>=1", "rich>=999", "no-such-library-here>=2", "no-such-extra; extra == 'ray'"]
    monkeypatch.setattr(aptp.doctor.metadata, "requires", lambda name: wanted)
    found = broken(libraries())
    assert set(found) == {"rich", "no-such-library-here"}
    assert "missing" in found["no-such-library-here"]
    assert ">=999" in found["rich"]


def test_hardware_is_described() -> None:
    found = {finding.subject: finding.found for finding in hardware()}
    assert int(found["cores"]) > 0
    assert set(found) == {"device", "cores", "memory"}


class BadTarget:
    @hookimpl
    def aptp_datasets(self) -> list[PluginSpec]:
        return [PluginSpec("lost", "aptp.nowhere:Nothing", "is not there")]


def test_a_strategy_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aptp.doctor, "KINDS", {"dataset": "aptp_datasets"})
    monkeypatch.setattr(aptp.doctor, "Host", lambda: Host([BadTarget()], entry_points=False))
    findings = plugins()
    assert "aptp.nowhere" in broken(findings)["dataset lost"]
    assert "scenes" in next(finding.found for finding in findings if finding.subject == "dataset plugins")


def test_plugins_that_clash_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def clash() -> Host:
        raise RequestError("two plugins register the same name.")

    monkeypatch.setattr(aptp.doctor, "Host", clash)
    assert broken(plugins()) == {"plugins": "two plugins register the same name."}


def test_embedded_assets_are_whole() -> None:
    assert broken(assets(Path(aptp.doctor.__file__).parent / "assets")) == {}


def test_missing_and_damaged_assets_are_found(tmp_path: Path) -> None:
    assert set(broken(assets(tmp_path))) == {"embedded tiny", "embedded evaluator", "presets"}
    tiny, evaluator = tmp_path / "tiny", tmp_path / "evaluator"
    (tiny / "unet").mkdir(parents=True)
    evaluator.mkdir()
    index = {
        "_class_name": "Pipeline",
        "unet": ["diffusers", "UNet"],
        "vae": ["diffusers", "VAE"],
        "checker": [None, None],
    }
    (tiny / "model_index.json").write_text(json.dumps(index))
    (evaluator / "config.json").touch()
    (evaluator / "model.safetensors").write_bytes(b"half")
    found = broken(assets(tmp_path))
    assert found["embedded tiny"] == "missing: vae"
    assert found["embedded evaluator"] == "damaged: evaluator/model.safetensors"
