from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from aptp.core.files import write_text
from aptp.core.record import Record
from aptp.report.comparison.album import album
from aptp.report.comparison.charts import (
    OFF_SCALE,
    _dense,
    _dense_points,
    _edge,
    _far_apart,
    _limits,
    quality_picture,
    shown,
)
from aptp.report.comparison.gathering import gather
from aptp.report.comparison.intervals import Interval
from aptp.report.comparison.sources import Failure, Source
from aptp.report.comparison.tables import ablation_table, core_table, training_table
from aptp.report.comparison.trials import Comparison
from aptp.report.comparison.writing import write_comparison

VOID = {"meta", "img", "br", "hr", "link", "input"}
SECTIONS = [
    "verdict", "methods", "differences", "quality", "ablations", "experts", "kinds", "cross", "claims", "pictures",
    "training", "failures", "conditions",
]  # fmt: skip
HOSTILE = "<script>alert('a & b')</script> on $red$"


class Page(HTMLParser):
    """The elements of a page and the texts of its captions; fails for one that is closed out of order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.captions: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "figcaption":
            self.captions.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "figcaption" in self.open:
            self.captions[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for attributes in self.all("section")]


def runs_with_folders(make: SimpleNamespace, home: Path, records: list[Record]) -> list[Source]:
    return [make.folder(record, home / f"run {place}") for place, record in enumerate(records)]


@pytest.fixture(scope="session")
def written(make: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """The folder of a report of everything, and its page."""
    home = tmp_path_factory.mktemp("runs")
    found = gather(runs_with_folders(make, home, make.study(3)), [Failure("runs/x", "ValueError: it is <b>broken</b>")])
    page = write_comparison(found, home / "out", "aptp report runs/* --out out")
    assert page == home / "out/report.html"
    return page.parent, Page(page.read_text(encoding="utf-8"))


def page_of(comparison: Comparison, folder: Path) -> Page:
    return Page(write_comparison(comparison, folder, "aptp report a b").read_text(encoding="utf-8"))


def test_all_sections_are_there_in_order(written: tuple[Path, Page]) -> None:
    folder, page = written
    assert sorted(path.name for path in folder.iterdir()) == [f"report.{end}" for end in ("csv", "html", "json", "md")]
    assert page.sections == SECTIONS
    linked = [a["href"] for a in page.all("a")]
    assert set(linked) == {f"#{name}" for name in SECTIONS}


def test_the_page_needs_nothing_from_outside_and_escapes_what_it_is_given(written: tuple[Path, Page]) -> None:
    folder, page = written
    source = (folder / "report.html").read_text(encoding="utf-8")
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, name)
    assert "<script" not in source
    assert "<b>" not in source
    assert HOSTILE in page.text


def test_every_picture_has_a_text_and_every_figure_a_caption(written: tuple[Path, Page]) -> None:
    page = written[1]
    images = page.all("img")
    drawn = [image for image in images if image["src"].startswith("data:image/svg")]
    assert len(drawn) == len(page.all("figure")) == len(page.captions) == 7
    assert all(len(" ".join(caption.split())) > 40 for caption in page.captions)
    assert all(len(image["alt"]) > 5 for image in images)
    assert all(len(figure["alt"]) > 60 for figure in drawn)
    assert len({image["alt"] for image in images}) == len(images)


def test_pictures_are_those_of_one_seed_real_and_dense_first(written: tuple[Path, Page]) -> None:
    page = written[1]
    pictures = [i["alt"] for i in page.all("img") if i["src"].startswith("data:image/png")]
    assert len(pictures) == 5 * (1 + 4 + 6)
    assert pictures[:2] == ["real: blue fading to yellow", "dense: blue fading to yellow"]
    assert "Seed 0. A routed method draws" in page.text


def test_without_run_folders_the_page_says_what_is_missing(make: SimpleNamespace, tmp_path: Path) -> None:
    page = page_of(gather(make.sources(*make.pair())), tmp_path)
    assert "No run directory with pictures is at hand" in page.text
    assert page.text.count("no run folder") == 2
    assert not [i for i in page.all("img") if i["src"].startswith("data:image/png")]


def test_pictures_come_from_any_run_that_holds_them(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = runs_with_folders(make, tmp_path, make.pair(1))
    found = gather(runs)
    shutil.rmtree(runs[0].folder / "samples")
    gallery, said = album(found, found.main)
    assert [name for name, _ in gallery.columns][:3] == ["real", "dense", "dense, 10 steps"]
    assert said.endswith("Without pictures at hand: contrastive.")
    shutil.rmtree(runs[1].folder / "samples")
    assert album(found, found.main) == (None, "The run directories hold no pictures of the evaluation prompts.")


def test_what_leads_out_of_a_run_is_not_shown(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = runs_with_folders(make, tmp_path, make.pair(1))
    outside = tmp_path / "outside"
    (outside / "experts").mkdir(parents=True)
    (outside / "experts/weights").write_bytes(bytes(10**6))
    runs[0].folder.joinpath("samples/dense/000.png").rename(outside / "000.png")
    for run in runs:
        for name in ("samples/dense/000.png", "samples/dense/002.png"):
            (run.folder / name).unlink(missing_ok=True)
            (run.folder / name).symlink_to(outside / "000.png")
    (runs[0].folder / "experts/01").symlink_to(outside / "experts/weights")
    found = gather(runs)
    gallery, _ = album(found, found.main)
    place = [name for name, _ in gallery.columns].index("dense")
    assert [row[place] is None for _, row in gallery.rows] == [True, True, False, False, False]
    assert {row[-1].text for row in training_table(found, found.main).rows} == {"2.5 MB"}


def test_what_cannot_be_read_of_a_gallery_is_missing(make: SimpleNamespace, tmp_path: Path) -> None:
    runs = runs_with_folders(make, tmp_path, make.pair(1))
    for path in tmp_path.rglob("samples/real/000.png"):
        path.write_bytes(path.read_bytes()[:40])
    (runs[0].folder / "gallery/gallery.json").write_bytes(b"\xff")
    (runs[1].folder / "gallery/gallery.json").write_text('{"prompts": [3, {"prompt": "x", "seed": 0}], "columns": 1}')
    found = gather(runs)
    gallery, _ = album(found, found.main)
    assert [prompt["prompt"] for prompt, _ in gallery.rows] == ["x"]
    assert "real" not in [name for name, _ in gallery.columns]


def test_without_a_known_direction_there_is_no_figure_of_quality(make: SimpleNamespace, tmp_path: Path) -> None:
    records = make.pair(1)
    for record in records:
        for result in record.results:
            result.teacher_error, result.metrics = None, {"beauty": 1.0}
    found = gather(make.sources(*records))
    assert quality_picture(found, "cost") is None
    assert "No figure was measured whose direction is known." in page_of(found, tmp_path).text


def test_dense_curve_ends_with_all_steps_and_its_labels_stand_apart(make: SimpleNamespace) -> None:
    found = gather(make.sources(make.record(evaluate__dense_steps=[30, 14, 10, 5], evaluate__steps=15)))
    axes = Figure().subplots()
    points = _dense_points(found, found.main, "cost", found.primary)
    assert [round(15 * cost.mean) for cost, _ in points.values()] == [15, 14, 10, 5]
    _dense(axes, points, 1.0)
    assert [text.get_text() for text in axes.texts] == ["dense", "10 steps", "5 steps"]


def test_parts_that_the_records_lack_leave_out_their_sections(make: SimpleNamespace, tmp_path: Path) -> None:
    records = [make.record(s, without=("kinds", "mean_cost_of_kind", "cross")) for s in range(2)]
    page = page_of(gather(make.sources(*records)), tmp_path)
    assert page.sections == [
        "verdict",
        "methods",
        "differences",
        "quality",
        *SECTIONS[5:6],
        *SECTIONS[8:11],
        "conditions",
    ]


def test_one_seed_is_said_to_have_no_interval(make: SimpleNamespace, tmp_path: Path) -> None:
    found = gather(make.sources(*make.pair(1)))
    page = page_of(found, tmp_path)
    assert "with the only seed in common: a direction, not a result" in page.text
    assert "one seed" in page.text
    assert not [cell for row in core_table(found, found.main).rows for cell in row if "±" in cell.text + cell.note]


def test_mixed_protocols_are_marked_and_explained(make: SimpleNamespace, tmp_path: Path) -> None:
    longer = [
        make.record(s, recover__steps=n, **row)
        for s in range(2)
        for n in (200, 400)
        for row in ({}, {"pruner": "taylor"})
    ]
    found = gather(make.sources(*make.pair(3), *longer), mixed=True)
    page = page_of(found, tmp_path)
    assert page.sections[1] == "protocols"
    assert "taylor, recover.steps=400 [C]" in page.text
    assert "How far training goes" in page.text
    (curve,) = [i["alt"] for i in page.all("img") if "against training steps" in i["alt"]]
    assert "contrastive from" in curve
    assert "at 480" in curve


def test_many_methods_leave_variants_out_of_figures(make: SimpleNamespace, tmp_path: Path) -> None:
    variants = [make.record(s, experts=n) for s in range(2) for n in range(5, 16)]
    page = page_of(gather(make.sources(*make.pair(2), *variants)), tmp_path)
    assert "Methods named after a setting are left out" in page.text
    assert not any("experts=9" in i["alt"] for i in page.all("img") if "against the cost" in i["alt"])
    assert "experts=9" in page.text


def test_figures_keep_a_method_that_is_run_with_one_granularity_only(make: SimpleNamespace) -> None:
    variants = [make.record(0, experts=n) for n in range(5, 16)]
    lone = make.record(0, pruner="bk-sdm", granularity="depth")
    several = [make.record(0, pruner="random", granularity=name) for name in ("depth", "width-depth")]
    found = gather(make.sources(*make.pair(2), *variants, lone, *several))
    assert [m.name for m in shown(found)] == ["contrastive", "taylor", "bk-sdm, granularity=depth", "random"]


def test_one_bad_method_does_not_hide_what_the_others_differ_in() -> None:
    assert _far_apart([0.013, 0.014, 1.07])
    assert not _far_apart([0.013, 0.014, 0.02])
    assert not _far_apart([-0.001, 0.013, 1.07])
    assert not _far_apart([])


def test_csv_has_a_row_a_run_and_method(written: tuple[Path, Page]) -> None:
    rows = list(csv.DictReader(io.StringIO((written[0] / "report.csv").read_text())))
    assert len(rows) == 18 * 5
    assert sum(int(row["counted"]) for row in rows) == 3 * (6 + 4)
    own = [row for row in rows if row["method"] == "kmeans"]
    assert [(row["seed"], row["budget"], row["protocol"], row["experts"]) for row in own] == [
        (seed, "0.66", "A", "4") for seed in ("0", "1", "2")
    ]
    assert all(float(row["cmmd_evaluator"]) > 0 for row in rows)


def test_json_holds_the_figures_and_the_inputs(written: tuple[Path, Page]) -> None:
    told = json.loads((written[0] / "report.json").read_text(), parse_constant=pytest.fail)
    (setting,) = told["settings"]
    kmeans = next(m for m in setting["methods"] if m["method"] == "kmeans")
    by_hand = [row["figures"]["cmmd_evaluator"] for row in told["rows"] if row["method"] == "kmeans"]
    assert kmeans["figures"]["cmmd_evaluator"]["mean"] == pytest.approx(sum(by_hand) / 3)
    assert kmeans["differences"]["cmmd_evaluator"]["n"] == 3
    assert [claim["answer"] for claim in told["claims"]]
    assert len(told["runs"]) == 18
    assert told["failures"] == [{"name": "runs/x", "error": "ValueError: it is <b>broken</b>"}]
    assert told["command"] == "aptp report runs/* --out out"


def test_differences_have_the_sign_that_the_page_explains(written: tuple[Path, Page]) -> None:
    folder, page = written
    told = json.loads((folder / "report.json").read_text())
    assert "Differences are method − contrastive + sinkhorn, seed by seed" in (folder / "report.md").read_text()
    assert "Method − contrastive + sinkhorn, seed by seed" in page.text

    def figures(name: str) -> list[float]:
        return [row["figures"]["cmmd_evaluator"] for row in told["rows"] if row["method"] == name]

    (setting,) = told["settings"]
    for name in ("kmeans", "taylor"):
        found = next(m for m in setting["methods"] if m["method"] == name)["differences"]["cmmd_evaluator"]
        pairs = zip(figures(name), figures("contrastive + sinkhorn"), strict=True)
        assert found["mean"] == pytest.approx(sum(mine - its for mine, its in pairs) / 3)
        assert found["low"] < found["mean"] < found["high"]


def test_markdown_has_the_same_tables(written: tuple[Path, Page]) -> None:
    text = (written[0] / "report.md").read_text()
    assert text.startswith("# Which method to use: pruning tiny to 66% of its MACs")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.splitlines()
        assert len({re.sub(r"\\\|", "", line).count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")
    assert "| kmeans" in text
    assert "ValueError: it is &lt;b&gt;broken&lt;/b&gt;" in text
    assert "\n    aptp report runs/* --out out\n" in text
    assert "within 1.5% of the budget" in text


def test_markdown_makes_nothing_of_what_records_say(make: SimpleNamespace, tmp_path: Path) -> None:
    failure = Failure("runs/x", "a <b> & `c` [d](e) | f\\\n# g")
    write_comparison(gather(make.sources(*make.pair(1)), [failure]), tmp_path, "aptp report")
    text = (tmp_path / "report.md").read_text()
    assert "- runs/x: a &lt;b&gt; &amp; \\`c\\` \\[d](e) \\| f\\\\ # g\n" in text


def test_the_same_runs_give_the_same_files(make: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_comparison(gather(make.sources(*make.pair())), tmp_path / name, "aptp report")
    for end in ("html", "md", "csv", "json"):
        assert (tmp_path / f"a/report.{end}").read_bytes() == (tmp_path / f"b/report.{end}").read_bytes()


def test_core_table_agrees_with_the_figures(compared: Comparison) -> None:
    (setting,) = compared.settings
    table = core_table(compared, setting)
    labels = [head.label for head in table.heads]
    best = [row[0].text for row in table.rows if row[labels.index("CMMD")].best]
    assert best == ["taylor"]
    assert [row[0].text for row in table.rows][:5] == [m.name for m in compared.methods(setting, "dense")] + best
    for row in table.rows:
        method = next(m for m in compared.methods(setting) if m.name == row[0].text)
        found = compared.interval(setting, method, "cmmd_evaluator")
        assert float(row[labels.index("CMMD")].text) == pytest.approx(found.mean, rel=5e-3)
        assert float(row[labels.index("CMMD")].note.split()[1]) == pytest.approx(found.half, rel=5e-2)
    assert "floor: 0." in " ".join(table.heads[labels.index("CMMD")].notes)
    assert "real: 9" in " ".join(table.heads[labels.index("CLIP score")].notes)


def test_ablations_change_one_setting(make: SimpleNamespace) -> None:
    records = [*make.study(2), make.record(0, experts=8), make.record(0, experts=8, balancer="none")]
    found = gather(make.sources(*records))
    rows = ablation_table(found, found.settings[0]).rows
    assert [row[0].text for row in rows] == [
        "contrastive + sinkhorn", "balancer=none", "router=kmeans", "router=random-codes", "experts=8",
    ]  # fmt: skip


def test_training_is_told_in_steps_seconds_and_megabytes(make: SimpleNamespace, tmp_path: Path) -> None:
    found = gather(runs_with_folders(make, tmp_path, [*make.pair(), make.record(0, router="random-codes")]))
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in training_table(found, found.settings[0]).rows}
    assert rows["contrastive"][:2] == ["80", "100"]
    assert rows["random-codes"][:2] == ["0", "100"]
    assert rows["taylor"][2] == "57.0 s"
    assert rows["taylor"][4] == "2.5 MB"
    assert int(rows["taylor"][3].replace(",", "")) > 0


@pytest.mark.slow
def test_a_page_of_45_runs_is_small(make: SimpleNamespace, tmp_path: Path) -> None:
    records = [r for budget in (0.5, 0.66, 0.8) for r in make.study(3, budget=budget)][:45]
    runs = [make.folder(record, tmp_path / f"{place}", side=64) for place, record in enumerate(records)]
    page = write_comparison(gather(runs), tmp_path / "out", "aptp report")
    assert page.stat().st_size < 6e6


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.slow
def test_a_browser_shows_every_picture_and_complains_of_nothing(written: tuple[Path, Page], tmp_path: Path) -> None:
    """A script beside the page counts what did not load; its answer comes back in the page's own source."""
    source = (written[0] / "report.html").read_text(encoding="utf-8")
    probe = (
        "<script>addEventListener('load', () => { const images = [...document.images];"
        "document.body.dataset.images = images.length;"
        "document.body.dataset.missing = images.filter(i => !i.complete || !i.naturalWidth).length; });</script>"
    )
    write_text(tmp_path / "probed.html", source.replace("</head>", f"{probe}</head>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/probed.html"], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    body = re.search(r"<body([^>]*)>", done.stdout).group(1)
    assert f'data-images="{len(written[1].all("img"))}"' in body
    assert 'data-missing="0"' in body


def test_no_torch_is_needed(tmp_path: Path) -> None:
    program = "import sys, aptp.report.comparison.writing as w; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_one_method_that_is_far_off_does_not_hide_the_others() -> None:
    assert _edge([Interval(mean, 0.1, 3) for mean in (0.1, -0.2, 0.3)]) == math.inf
    assert _edge([Interval(mean, 0.1, 3) for mean in (0.1, -0.2, 30.0)]) == pytest.approx(OFF_SCALE * 0.2)
    assert _edge([]) == math.inf
    low, high = _limits([Interval(1.0, 0.1, 3), Interval(2.0, 50.0, 3)])
    assert 0 < low < 1
    assert 2 < high < 3
