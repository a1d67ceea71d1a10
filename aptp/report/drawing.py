"""What all figures share: style, colours, and the way to a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

INK, MUTED, RULE = "#1d2430", "#5d6675", "#d5d9e0"
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
"""Three of the colours of Okabe and Ito, which the colour-blind tell apart."""
KEPT = matplotlib.colormaps["cividis"]
"""Of the share of units kept."""
LOAD = matplotlib.colors.LinearSegmentedColormap.from_list("load", ["#f3f5f8", BLUE, "#003b5c"])
"""Of the share of prompts."""
WIDTH = 11.0
"""Inches of the page's column."""
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names come from users and may hold dollar signs
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.09,
    "svg.hashsalt": "aptp",
}


@dataclass(frozen=True)
class Picture:
    """A figure for the page: its source as a data URI, and what it shows in words."""

    source: str
    alt: str


def draw(alt: str, height: float, paint: Callable[[Figure], None], width: float = WIDTH) -> Picture:
    """An SVG of `width` × `height` inches that `paint` fills; the same figures give the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        file = io.BytesIO()
        # `Figure.savefig` would lay out and draw all of it twice, to the same bytes
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    return Picture("data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode(), alt)


def on(scale: Colormap, share: float) -> str:
    """The colour of text on a cell of this share."""
    red, green, blue, _ = scale(share)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK


def expert_colours(fractions: list[float]) -> list[str]:
    """From dark for the cheapest expert to light for the costliest; never too light for a line on white."""
    scale = matplotlib.colormaps["viridis"]
    order = sorted(range(len(fractions)), key=fractions.__getitem__)
    places = {expert: place / max(1, len(order) - 1) for place, expert in enumerate(order)}
    return [matplotlib.colors.to_hex(scale(0.82 * places[i])) for i in range(len(fractions))]


def heat_map(
    axes: Axes,
    shares: Float[np.ndarray, "rows columns"],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    scale: Colormap,
    size: float = 8.5,
) -> None:
    """Cells coloured by shares in [0, 1], each with a text in it; one without a share stays empty. First row on top."""
    axes.pcolormesh(np.ma.masked_invalid(shares), cmap=scale, vmin=0, vmax=1, edgecolor="white", linewidth=1.5)
    for (row, column), share in np.ndenumerate(shares):
        colour = MUTED if np.isnan(share) else on(scale, share)
        axes.text(column + 0.5, row + 0.5, texts[row][column], ha="center", va="center", size=size, color=colour)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, color=INK)
    axes.invert_yaxis()
    plain(axes)


def plain(axes: Axes) -> None:
    """Drop every line around the axes."""
    axes.spines[:].set_visible(False)
