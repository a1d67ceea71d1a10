"""`aptp report` of one run; several are in tests/report/comparison."""

from __future__ import annotations

from pathlib import Path


def test_report_of_one_run_writes_its_page_anew(invoke, refusal, stand_in) -> None:
    written: list[Path] = []

    def write_report(run: Path) -> Path:
        written.append(run)
        return run / "report.html"

    stand_in("report", write_report=write_report)
    Path("a").mkdir()
    Path("a/record.json").touch()
    assert invoke("report", "a").stdout.split() == ["a/report.html"]
    assert written == [Path("a")]
    assert "run" in refusal(invoke("report")).lower()
