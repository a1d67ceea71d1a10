"""The picture of what every expert keeps of every site."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from aptp.core.architecture import Architecture, SearchSpace
from aptp.report.drawing import INK, KEPT, MUTED, RULE, WIDTH, Picture, draw, on, plain
from aptp.report.wording import percent

STAGE_GAP = 0.45
NUMBERED = 32
"""With more modules than this in a row, the cells are too small for figures."""
LABELLED = 48
STRIPES = {"attn1": "heads of self-attention", "attn2": "heads of cross-attention", "ff": "feed-forward units"}
JOINT_STRIPES = {
    "attn": "heads of joint attention",
    "attn2": "heads of the image's own attention",
    "ff": "feed-forward units of the image",
    "ff_context": "feed-forward units of the text",
}
"""What the sites of a module are, by the names of diffusers' layers; a block of two streams has others."""


@dataclass(frozen=True)
class Slot:
    """A module of the denoiser that the picture gives one column: its sites, by index, and the gates that drop it."""

    path: str
    sites: tuple[int, ...]
    gates: tuple[int, ...]

    @property
    def stage(self) -> str:
        match = re.match(r"(down|mid|up)_blocks?(?:\.(\d+))?", self.path)
        return f"{match[1]} {match[2] or ''}".strip() if match else self.path.split(".")[0].replace("_", " ")

    @property
    def label(self) -> str:
        """`R1` for a ResNet, `A0` for an attention module (`A0.1` where it holds several), else the number."""
        numbers = re.findall(r"(resnets|attentions|transformer_blocks)\.(\d+)", self.path)
        letters = {"resnets": "R", "attentions": "A", "transformer_blocks": "."}
        text = "".join(letters[name] + number for name, number in numbers)
        text = text.removesuffix(".0") if text.startswith("A") else text
        return text.lstrip(".") or self.path.rpartition(".")[2]

    @property
    def module(self) -> str:
        """How the legend explains the label."""
        known = {"R": "R is a ResNet block, whose units are groups of channels", "A": "A is an attention module"}
        return known.get(self.label[0], "A number is a transformer block")


def slots_of(space: SearchSpace) -> list[Slot]:
    """The columns, in running order: every module that has width sites, and every gated block that has none within."""
    groups: dict[str, list[int]] = {}
    for index, site in enumerate(space.sites):
        if not site.is_block:
            path = site.path if site.kind == "resnet_channels" else site.path.rpartition(".")[0]
            groups.setdefault(path, []).append(index)
        elif not any(site.path in other.inside for other in space.sites if not other.is_block):
            groups[site.path] = []
    own = {site.path: gates for site, gates in zip(space.sites, space.blocks_of_site, strict=True) if site.is_block}
    return [
        Slot(path, tuple(sites), space.blocks_of_site[sites[0]] if sites else own[path])
        for path, sites in groups.items()
    ]


def legend(space: SearchSpace) -> str:
    """What the picture's labels and stripes mean."""
    fullest: dict[str, tuple[int, ...]] = {}
    for slot in slots_of(space):
        fullest[slot.module] = max(fullest.get(slot.module, ()), slot.sites, key=len)
    return " ".join(f"{module}{_stripes(space, sites)}." for module, sites in fullest.items())


def _stripes(space: SearchSpace, indices: Sequence[int]) -> str:
    sites = [space.sites[index] for index in indices]
    if not sites or sites[0].kind == "resnet_channels":
        return ""
    names = JOINT_STRIPES if any(site.kind == "joint_attention_heads" for site in sites) else STRIPES
    told = [names.get(site.path.rpartition(".")[2], site.kind.replace("_", " ")) for site in sites]
    return " with a stripe for each of its sites: " + ", ".join(told)


def architecture_picture(
    architectures: Sequence[Architecture], names: Sequence[str], fractions: Sequence[float | None]
) -> Picture:
    """Modules along x, experts along y; in a module one stripe a site, its colour the share of units kept."""
    space = architectures[0].space
    slots = slots_of(space)
    places, edges = _places(slots)
    stripes = max(1, max(len(slot.sites) for slot in slots))
    band = max(0.42, 0.24 * stripes)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, architecture in enumerate(architectures):
            for slot, x in zip(slots, places, strict=True):
                _cell(axes, architecture, slot, x, row, numbers=len(slots) <= NUMBERED)
        axes.set_xlim(-0.1, places[-1] + 1.1)
        axes.set_ylim(len(architectures) - 0.06, -0.06)
        axes.set_yticks(
            [row + 0.46 for row in range(len(architectures))],
            [f"{name}\n{percent(f, 0)}" if f is not None else name for name, f in zip(names, fractions, strict=True)],
            color=INK,
        )
        _label(axes, slots, places, edges, len(architectures))
        bar = figure.colorbar(ScalarMappable(cmap=KEPT), ax=axes, fraction=0.012, pad=0.01, aspect=18)
        bar.set_ticks([0, 0.5, 1], labels=["0%", "50%", "100%"])
        bar.outline.set_visible(False)
        bar.set_label("units kept")

    return draw(_alt(architectures, names, slots), 0.9 + band * len(architectures), paint, WIDTH)


def _places(slots: Sequence[Slot]) -> tuple[list[float], list[tuple[str, float, float]]]:
    """The left edge of every column, and name, start and end of every stage."""
    places, edges, x = [], [], 0.0
    for stage, members in groupby(slots, key=lambda slot: slot.stage):
        start = x
        for _ in members:
            places.append(x)
            x += 1
        edges.append((stage, start, x))
        x += STAGE_GAP
    return places, edges


def dropped(architecture: Architecture, slot: Slot) -> bool:
    """Whether the module, or a block around it, is gone."""
    return any(architecture.gates[gate] == 0 for gate in slot.gates)


def _cell(axes: Axes, architecture: Architecture, slot: Slot, x: float, row: int, numbers: bool) -> None:
    width, height = 0.94, 0.9
    if dropped(architecture, slot):
        axes.add_patch(Rectangle((x, row), width, height, fc="white", ec="#9aa1ad", hatch="////", lw=0.8))
        return
    if not slot.sites:
        axes.add_patch(Rectangle((x, row), width, height, fc=KEPT(1.0), ec="white", lw=0.4))
    for stripe, site in enumerate(slot.sites):
        share = len(architecture.kept[site]) / architecture.space.sites[site].units
        top, tall = row + height * stripe / len(slot.sites), height / len(slot.sites)
        axes.add_patch(Rectangle((x, top), width, tall, fc=KEPT(share), ec="white", lw=0.5))
        if numbers:
            middle, text = (x + width / 2, top + tall / 2), f"{100 * share:.0f}"
            axes.text(*middle, text, ha="center", va="center", size=6.5, color=on(KEPT, share), in_layout=False)


def _label(axes: Axes, slots: Sequence[Slot], places: Sequence[float], edges: Sequence[tuple], rows: int) -> None:
    plain(axes)
    axes.xaxis.tick_top()
    shown = slots if len(slots) <= LABELLED else []
    marks = [slot.label + ("\n◆" if slot.gates else "\n") for slot in shown]
    axes.set_xticks([x + 0.47 for x in places[: len(shown)]], marks, size=7.5, linespacing=1.1)
    if not shown:
        axes.set_xticks([])
    for stage, start, end in edges:
        axes.plot([start, end - 0.06], [rows + 0.02, rows + 0.02], color=RULE, lw=1.5, clip_on=False)
        axes.text((start + end) / 2, rows + 0.1, stage, ha="center", va="top", color=MUTED)


def _alt(architectures: Sequence[Architecture], names: Sequence[str], slots: Sequence[Slot]) -> str:
    told = []
    for name, architecture in zip(names, architectures, strict=True):
        gone = sum(dropped(architecture, slot) for slot in slots)
        told.append(f"{name} drops {gone} of {len(slots)} modules")
    return "Share of units that every expert keeps of every module of the denoiser: " + ", ".join(told) + "."
