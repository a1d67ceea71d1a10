"""The small table at the end of a run."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from aptp.core.record import Record
from aptp.report.measures import LATENCY, TEACHER_ERROR, metric_measures, pruned_of
from aptp.report.wording import amount, number, percent


def summary_table(record: Record) -> Table:
    """One row a method: cost as a share of dense, MACs, latency, teacher error and each metric without its floors.

    The best value among the pruned methods is bold.
    """
    measures = [LATENCY, TEACHER_ERROR, *metric_measures(record.results)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("method")
    for label in ("cost", "MACs", *(f"{m.label} {m.arrow}".strip() for m in measures)):
        table.add_column(Text(label), justify="right")
    best = {measure.key: measure.best(pruned_of(record)) for measure in measures}
    for result in record.results:
        figures = [
            Text(
                number(measure.of(result)) + (" ms" if measure is LATENCY and measure.of(result) is not None else ""),
                style="bold" if result in best[measure.key] else "",
            )
            for measure in measures
        ]
        table.add_row(Text(result.name), Text(percent(result.fraction)), Text(amount(result.macs)), *figures)
    return table
