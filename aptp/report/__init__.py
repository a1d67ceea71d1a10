"""The report of a run and of several: HTML pages, and the table that the command line prints.

Public names load on first use: `summary_table` brings in no matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aptp.report.page import write_report
    from aptp.report.summary import summary_table

_HOMES = {"summary_table": "aptp.report.summary", "write_report": "aptp.report.page"}

__all__ = ["summary_table", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aptp.report' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
