"""The report of a preparation: the paper's table, what each filter rejected, histograms and contact sheets."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...files import write_durably
from .clip_filters import FILTERS
from .preparation_settings import PreparationSettings, Thresholds

REPORT = "report"  # .html and .png
EXAMPLES = 12  # clips of a contact sheet
COLUMNS = 5  # of histograms
# The paper's Figure 4: identities and hours.
PAPER = {
    "HDTF, raw": (411, 15.75),
    "HDTF, filtered": (356, 13.95),
    "CelebV-HQ, raw": (35666, 68.0),
    "CelebV-HQ, filtered": (22423, 41.27),
    "both, train": (20501, 49.69),
    "both, eval": (2278, 5.522),
}
Table = list[tuple[str, int, int, float]]  # what, identities, clips, hours


def write_report(output: Path, rows: Sequence[dict], settings: PreparationSettings) -> str:
    """Write report.html and report.png; returns the tables as text."""
    table, filters = totals(rows), filter_table(rows, settings.thresholds)
    draw(output, rows, settings.thresholds, table)
    write_durably(output / f"{REPORT}.html", _page(rows, table, filters).encode())
    lines = [f"{'':24}{'identities':>12}{'clips':>8}{'hours':>9}"]
    lines += [f"{what:24}{identities:12}{clips:8}{hours:9.3f}" for what, identities, clips, hours in table]
    lines += ["", f"{'rejected by':24}{'clips':>8}  threshold"]
    lines += [f"{name:24}{count:8}  {limit}" for name, count, limit in filters if count]
    return "\n".join([*lines, "", f"{output / REPORT}.html"])


def totals(rows: Sequence[dict]) -> Table:
    """The paper's table, for what was prepared. Videos of which nothing can be read have no identity and no length."""
    kept = [row for row in rows if row["kept"]]
    trained = [row for row in kept if row["sound"]]
    parts = {
        "raw": [row for row in rows if row["seconds"]],
        "filtered": kept,
        "train": [row for row in trained if row["split"] == "train"],
        "eval": [row for row in trained if row["split"] == "eval"],
        "silent, not in shards": [row for row in kept if not row["sound"]],
    }
    return [
        (what, len({row["identity"] for row in part}), len(part), sum(row["seconds"] for row in part) / 3600)
        for what, part in parts.items()
    ]


def filter_table(rows: Sequence[dict], thresholds: Thresholds) -> list[tuple[str, int, str]]:
    """(filter, clips that it speaks against, threshold); a clip counts for every filter that rejects it."""
    counts = Counter(name for row in rows for name in row["filters"])
    known = []
    for each in FILTERS:
        limits = [f"least {getattr(thresholds, each.least):g}"] if each.least else []
        limits += [f"most {getattr(thresholds, each.most):g}"] if each.most else []
        known.append((each.name, counts.pop(each.name, 0), ", ".join(limits)))
    return known + [(name, count, "") for name, count in sorted(counts.items())]


def draw(output: Path, rows: Sequence[dict], thresholds: Thresholds, table: Table) -> None:
    """Write report.png: a histogram for each filter with its threshold; contact sheets of kept and rejected clips."""
    from matplotlib.figure import Figure

    figure = Figure((14, 15), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(5, 3, 3))
    shown = [each for each in FILTERS if any(row[each.measure] is not None for row in rows)]
    panels = top.subplots(-(-len(FILTERS) // COLUMNS), COLUMNS).ravel()
    for axes, each in zip(panels, shown, strict=False):
        _histogram(axes, each, rows, thresholds)
    for axes in panels[len(shown) :]:
        axes.axis("off")
    kept = [row for row in rows if row["kept"]]
    rejections = [row for row in rows if not row["kept"]]
    _sheet(middle, output, _examples(kept), f"{len(kept)} clips kept")
    _sheet(bottom, output, _one_of_each(rejections), f"{len(rejections)} rejected")
    told = "; ".join(f"{what}: {people} identities, {hours:.3f} h" for what, people, _, hours in table[:4])
    paper = "; ".join(f"{what}: {people}, {hours:g} h" for what, (people, hours) in PAPER.items())
    figure.suptitle(f"{told}\nthe paper: {paper}", fontsize=10)
    part = output / f".{REPORT}.png"
    figure.savefig(part, dpi=90)
    write_durably(output / f"{REPORT}.png", part.read_bytes())
    part.unlink()


def _histogram(axes, each, rows: Sequence[dict], thresholds: Thresholds) -> None:
    measured = [row for row in rows if row["seconds"] and row[each.measure] is not None]  # not what is unreadable
    values = {
        kind: [each.value(row[each.measure]) for row in measured if row["kept"] == kept]
        for kind, kept in (("kept", True), ("rejected", False))
    }
    axes.hist(list(values.values()), bins=24, stacked=True, color=("tab:blue", "tab:orange"), label=list(values))
    for limit in filter(None, (each.least, each.most)):
        axes.axvline(getattr(thresholds, limit), color="black", lw=0.9, ls="--")
    axes.set_title(f"{each.name} ({each.measure})", fontsize=9)
    axes.tick_params(labelsize=7)
    if each is FILTERS[0]:
        axes.legend(fontsize=7)


def _sheet(figure, output: Path, rows: Sequence[dict], title: str) -> None:
    """A contact sheet of at most EXAMPLES clips."""
    from matplotlib.image import imread

    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(2, EXAMPLES // 2).ravel()
    for axes, row in zip(panels, rows, strict=False):
        if row["thumbnail"] and (output / row["thumbnail"]).exists():
            axes.imshow(imread(output / row["thumbnail"]))
        said = ", ".join(row["filters"]) or ("" if row["lips_r"] is None else f"lips r {row['lips_r']:.2f}")
        axes.set_title(f"{_short(row['video'])}\n{said[:38]}", fontsize=6)
    for axes in panels:
        axes.axis("off")


def _short(name: str) -> str:
    return name if len(name) < 30 else f"...{name[-27:]}"


def _examples(rows: Sequence[dict]) -> list[dict]:
    if len(rows) <= EXAMPLES:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (EXAMPLES - 1))] for i in range(EXAMPLES)]


def _one_of_each(rows: Sequence[dict]) -> list[dict]:
    """Rejected clips with a picture, at most as many as a sheet shows, by turns one of each filter."""
    by_filter: dict[str, list[dict]] = {}
    for row in filter(lambda row: row["thumbnail"], rows):
        by_filter.setdefault(row["filters"][0], []).append(row)
    chosen: list[dict] = []
    while any(by_filter.values()) and len(chosen) < EXAMPLES:
        for group in by_filter.values():
            if group and len(chosen) < EXAMPLES:
                chosen.append(group.pop(0))
    return chosen


# HTML -----------------------------------------------------------------------------------------------------------------


def _page(rows: Sequence[dict], table: Table, filters: list[tuple[str, int, str]]) -> str:
    ours = [(what, identities, clips, f"{hours:.3f}") for what, identities, clips, hours in table]
    paper = [(what, identities, "", f"{hours:g}") for what, (identities, hours) in PAPER.items()]
    rejections = [row for row in rows if not row["kept"]]
    examples = {
        name: [(row["video"], f"{row['start']:.1f}", reason) for row in rejections
               for other, reason in zip(row["filters"], row["reasons"]) if other == name][:EXAMPLES]
        for name, count, _ in filters if count
    }  # fmt: skip
    parts = [
        "<!doctype html><meta charset=utf-8><title>Preparation</title>",
        "<style>body{font:14px sans-serif;margin:2em;max-width:70em}table{border-collapse:collapse}"
        "td,th{padding:2px 10px;text-align:left;border-bottom:1px solid #ccc}img{max-width:100%}</style>",
        "<h1>Preparation</h1>",
        _html(("prepared here", "identities", "clips", "hours"), ours),
        _html(("the paper, Figure 4", "identities", "", "hours"), paper),
        "<h2>Filters</h2><p>A clip counts for every filter that speaks against it. What is costly to measure is not "
        "measured of clips that are rejected before.</p>",
        _html(("filter", "clips rejected", "threshold"), filters),
        f"<p><img src={REPORT}.png alt='histograms and contact sheets'></p>",
    ]
    for name, cases in examples.items():
        parts += [f"<h3>{html.escape(name)}</h3>", _html(("video", "at second", "reason"), cases)]
    parts += ["<h2>Kept</h2>", _thumbnails(_examples([row for row in rows if row["kept"]]))]
    parts += ["<h2>Rejected</h2>", _thumbnails(_one_of_each(rejections))]
    return "\n".join(parts)


def _html(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    cells = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "".join(cells) + "</table>"


def _thumbnails(rows: Sequence[dict]) -> str:
    titles = [html.escape(f"{row['video']}: {' '.join(row['reasons'])}", quote=True) for row in rows]
    shown = zip(rows, titles, strict=True)
    return "".join(f"<img src='{row['thumbnail']}' title='{title}'>" for row, title in shown if row["thumbnail"])
