"""The commands `evaluate --generated --real` and `evaluate --model --data`: JSON, Markdown, a plot, a contact sheet."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

from ..errors import InputError
from ..files import create_part, write_durably
from ..pipeline import LetsTalkPipeline
from .clip_sets import ClipSet, of_model, paired_folders
from .comparison import compare
from .feature_networks import load_networks
from .measure_table import MEASURES
from .paper_tables import COLUMNS, QUANTITATIVE
from .report import contact_sheet

SECONDS = 4.0  # of each stretch that a model is asked to make
CLIP_FRAMES = 16  # of the models that videos of unknown origin are taken to be from


def evaluate_folders(
    generated: Path,
    real: Path,
    output: Path,
    *,
    seconds: float | None = None,
    size: int | None = None,
    rungs: bool = False,
    clip_frames: int = CLIP_FRAMES,
    files: dict[str, Path],
) -> str:
    """Measure the videos of a folder against the real ones of another; see clip_sets and write_report."""
    _check(output, seconds, size, clip_frames)
    clips = paired_folders(generated, real, seconds, size, rungs, clip_frames)
    return write_report(clips, files, output, {"generated": generated.name, "real": real.name})


def evaluate_on_shards(
    model: Path,
    shards: Path,
    output: Path,
    *,
    seconds: float | None = None,
    size: int | None = None,
    rungs: bool = False,
    files: dict[str, Path],
) -> str:
    """Measure what a model makes of prepared footage; see clip_sets and write_report."""
    _check(output, seconds, size, CLIP_FRAMES)
    clips = of_model(LetsTalkPipeline.load(model, "cpu"), shards, seconds or SECONDS, size, rungs)
    return write_report(clips, files, output, {"model": Path(model).name, "data": shards.name})


def _check(output: Path, seconds: float | None, size: int | None, clip_frames: int) -> None:
    """InputError for what can be refused before anything is read."""
    for name in ("torchmetrics", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"evaluate needs {name}; run pip install -r requirements-dev.txt.")
    if seconds is not None and not 1 <= seconds <= 600:
        raise InputError(f"The length of a clip is {seconds} seconds; choose 1 to 600.")
    if size is not None and not 32 <= size <= 2048:
        raise InputError(f"The size is {size} pixels; choose 32 to 2048.")
    if clip_frames < 2:
        raise InputError(f"The length of a clip is {clip_frames} frames; it is at least 2.")
    output.mkdir(parents=True, exist_ok=True)
    create_part(output / "report.json").unlink()  # before the work: can it be written?


def write_report(clips: ClipSet, files: dict[str, Path], output: Path, about: dict[str, str]) -> str:
    """Compare, and write report.json, report.md, report.png and clips.png into a folder; returns the Markdown.

    files: of the networks, by the names of feature_networks.Networks.
    """
    networks = load_networks(files)
    named = {name: {"file": path.name, "sha256": _sha256(path)} for name, path in files.items()}
    numbers, sheet = compare(clips, networks)
    report = {**about, "networks": named, **numbers}
    table = markdown(report)
    write_durably(output / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_durably(output / "report.md", table.encode())
    draw(report, output / "report.png")
    contact_sheet(output / "clips.png", sheet)
    return table


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def markdown(report: dict) -> str:
    """The report as Markdown: protocol, all measures with their intervals, and the paper's tables beside ours."""
    height, width = report["size"]
    rows, missing = report["rows"], report["not_computed"]
    given = [f"{name} {file['file']} ({file['sha256'][:8]})" for name, file in report["networks"].items()]
    lines = [
        f"{report['clips']} clips, {report['frames']} frames at {report['fps']:g} a second, {width}x{height} pixels "
        f"({report['resized']}); model's clips of {report['clip_frames']} frames; networks: "
        f"{', '.join(given) or 'ours'}. In brackets: 95 %, by drawing clips with replacement.",
        "",
        f"| | {' | '.join(rows)} | wanted |",
        "|---" * (len(rows) + 2) + "|",
    ]
    better = {"+": "more", "-": "less", "": ""}
    for name, measure in MEASURES.items():
        cells = [
            missing.get(name) and f"not computed: {missing[name]}" or _cell(row.get(name), report["clips"])
            for row in rows.values()
        ]
        lines.append(f"| {measure.title} | {' | '.join(cells)} | {better[measure.better]} |")
    lines += ["", "How each is measured:", ""]
    lines += [f"- {measure.title}: {measure.protocol}" for measure in MEASURES.values()]
    for data, methods in QUANTITATIVE.items():
        lines += ["", *_beside_the_paper(data, methods, rows)]
    return "\n".join(lines) + "\n"


def _beside_the_paper(data: str, methods: dict[str, tuple[float, ...]], rows: dict[str, dict]) -> list[str]:
    heads = [MEASURES[name].title for name in COLUMNS]
    lines = [f"| {data}, by the paper | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |" for name, values in methods.items()]
    for name, row in rows.items():
        cells = [f"{row[column]['value']:.3f}" if column in row else "not computed" for column in COLUMNS]
        lines.append(f"| *ours, these clips: {name}* | {' | '.join(cells)} |")
    return lines


def _cell(number: dict | None, clips: int) -> str:
    """A number as the table shows it; one that has no meaning for some of the clips says of how many it is."""
    if number is None:
        return "-"
    low, high = number["interval"]
    some = "" if number["clips"] == clips else f", {number['clips']} of {clips} clips"
    return f"{number['value']:.3g} ({low:.3g} to {high:.3g}){some}"


def draw(report: dict, path: Path) -> None:
    """Plot every measure that was computed into a file: a panel each, a bar with its interval for each row."""
    from matplotlib.figure import Figure

    rows = report["rows"]
    names = [name for name in MEASURES if name not in report["not_computed"]]
    figure = Figure((12, 2.2 * -(-len(names) // 4)), layout="constrained")
    panels = figure.subplots(-(-len(names) // 4), 4, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        for place, row in enumerate(rows.values()):
            if name in row:
                value, (low, high) = row[name]["value"], row[name]["interval"]
                axes.barh(place, value, color=f"C{place}")
                axes.plot((low, high), (place, place), color="black", lw=1)
        axes.set_yticks(range(len(rows)), rows, fontsize=6)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=6)
        axes.set_title(f"{MEASURES[name].title} ({MEASURES[name].better or 'neither'})", fontsize=7)
    for axes in panels[len(names) :]:
        axes.axis("off")
    figure.savefig(path, dpi=100)
