"""The figures of published models: what the script counts is what the page says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SD 2.1", "PixArt-α 512", "SD 3.5 medium"])  # each takes seconds
def test_the_page_has_the_rows_that_the_script_prints(name: str) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks/published_models.py"))
    page = (ROOT / "docs/benchmarks.md").read_text().splitlines()
    assert [row for row in (*script["TITLES"], *script["rows"](name)) if row not in page] == []
