"""Draws a package's rooms and the imports between them, and counts what its order can be judged by.

    python docs/draw_architecture.py                                   # this repository, into docs/architecture.png
    python docs/draw_architecture.py OTHER_CHECKOUT/letstalk_core OUT.png

A room is a module or a package directly in the package. An arrow points from a room to one that it imports, red where
the two import each other; imports inside functions and for type checking count. The lowest row is what nearly all rooms
import: it gets no arrows. Needs matplotlib.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

REPOSITORY = Path(__file__).resolve().parent.parent
GROUND = ("errors", "config", "defaults", "files", "pixels", "weights")
# Arithmetic between 0..255, 0..1 and -1..1, but for that of diffusion, of drawing and of loudness.
PIXELS = re.compile(r"127\.5|add\(1\)\.div\(2\)|\* 2 - 1|(?<!\d )/ 255|\* 255\b|mul\(255\)|\+ 1\) / 2|div\(127")
NOT_PIXELS = ("diffusion", "speech", "drawing", "canvas", "avatars", "augment")


def modules_in(package: Path) -> dict[str, Path]:
    """Dotted name from the package on, such as "model.layers": file."""
    files = {path.relative_to(package).with_suffix(""): path for path in sorted(package.rglob("*.py"))}
    return {".".join(name.parts): path for name, path in files.items() if name.name not in ("__init__", "__main__")}


def imported_by(path: Path, package: Path, modules: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports."""
    inside, found = path.relative_to(package).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) + 1 - node.level] + tuple((node.module or "").split(".") if node.module else ())
            names = [".".join(base), *(".".join((*base, alias.name)) for alias in node.names)]
            found |= {name for name in names if name in modules}
    return found


def circles(uses: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach one another."""

    def reach(name: str) -> set[str]:
        seen, ahead = set(), [name]
        while ahead:
            new = uses.get(ahead.pop(), set()) - seen
            seen |= new
            ahead += new
        return seen

    reached = {name: reach(name) for name in uses}
    groups = {frozenset(o for o in uses if o in reached[n] and n in reached[o]) for n in uses if n in reached[n]}
    return sorted(sorted(group) for group in groups)


def numbers(package: Path) -> dict:
    """What the order of a package can be judged by."""
    modules = modules_in(package)
    uses = {name: imported_by(path, package, modules) for name, path in modules.items()}
    lines = {name: len(path.read_text().splitlines()) for name, path in modules.items()}
    conversions = {
        name: sum(1 for line in path.read_text().splitlines() if PIXELS.search(line))
        for name, path in modules.items()
        if not any(word in name for word in NOT_PIXELS)
    }
    names = Counter(name.rpartition(".")[2] for name in modules)
    return {
        "modules at the top level": sum("." not in name for name in modules),
        "circles of modules": circles(uses),
        "circles of rooms": circles(rooms_of(uses)),
        "file names that occur twice": sorted(name for name, count in names.items() if count > 1),
        "longest file": max((count, name) for name, count in lines.items()),
        "lines in all": sum(lines.values()),
        "places that convert pixels": sum(conversions.values()),
        "files that convert pixels": sorted(name for name, count in conversions.items() if count),
    }


def rooms_of(uses: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same between rooms, without a room's own."""
    rooms: dict[str, set[str]] = {}
    for name, others in uses.items():
        room = name.partition(".")[0]
        rooms.setdefault(room, set()).update({other.partition(".")[0] for other in others} - {room})
    return rooms


def rows_of(rooms: dict[str, set[str]]) -> list[list[str]]:
    """Rooms in rows, the lowest first: each lies above all that it imports, but for circles; below all the GROUND."""
    height = {room: 0 for room in GROUND if room in rooms}

    def height_of(room: str, above: tuple[str, ...] = ()) -> int:
        if room not in height:
            below = [other for other in rooms[room] if other not in above and other != room]
            height[room] = 1 + max((height_of(other, (*above, room)) for other in below), default=0)
        return height[room]

    for room in rooms:
        height_of(room)
    return [[room for room in rooms if height[room] == h] for h in range(max(height.values()) + 1)]


def draw(package: Path, output: Path) -> None:
    modules = modules_in(package)
    rooms = rooms_of({name: imported_by(path, package, modules) for name, path in modules.items()})
    texts, rows = {room: _text(room, modules) for room in rooms}, rows_of(rooms)
    widths = {room: 0.15 + 0.075 * max(map(len, text.split("\n"))) for room, text in texts.items()}
    tall = {room: 0.2 + 0.17 * (text.count("\n") + 1) for room, text in texts.items()}
    steps = [max(tall[room] for room in row) + 0.45 for row in rows]  # of the rows, with the space between them
    across, up = max(10.0, *(sum(widths[room] + 0.4 for room in row) for row in rows)), sum(steps)
    figure = Figure((across, up), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(0, up))
    axes.axis("off")
    places, boxes = {}, {}
    for level, row in enumerate(rows):
        gap = (across - sum(widths[room] for room in row)) / (len(row) + 1)
        left = gap
        for room in row:
            places[room] = (left + widths[room] / 2, sum(steps[:level]) + steps[level] / 2)
            corner = (left, places[room][1] - tall[room] / 2)
            boxes[room] = FancyBboxPatch(corner, widths[room], tall[room], "round,pad=0.04", fc="#eef3f8", ec="#34506b")
            axes.add_patch(boxes[room]).set_zorder(2)
            axes.text(*places[room], texts[room], ha="center", va="center", fontsize=8, family="monospace", zorder=3)
            left += widths[room] + gap
    for room, others in rooms.items():
        for other in others - set(GROUND):
            width, colour = (1.4, "#c0392b") if room in rooms[other] else (0.7, "#7d8b99")
            arrow = FancyArrowPatch(
                places[room], places[other], patchA=boxes[room], patchB=boxes[other], arrowstyle="-|>", shrinkA=0,
                shrinkB=1, mutation_scale=9, lw=width, color=colour, connectionstyle="arc3,rad=0.06", zorder=1,
            )  # fmt: skip
            axes.add_patch(arrow)
    figure.savefig(output)


def _text(room: str, modules: dict[str, Path]) -> str:
    """A room's name over its files, a few a line."""
    inside = [name.partition(".")[2] for name in modules if name.startswith(f"{room}.")]
    folders = {name.partition(".")[0] for name in inside if "." in name}
    inside = [name for name in inside if "." not in name] + sorted(f"{folder}/" for folder in folders)
    lines = [", ".join(inside[i : i + 3]) for i in range(0, len(inside), 3)]
    return "\n".join([room.upper() if inside else room, *lines])


if __name__ == "__main__":
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "letstalk_core"
    draw(package, Path(sys.argv[2]) if len(sys.argv) > 2 else REPOSITORY / "docs" / "architecture.png")
    print(json.dumps(numbers(package), indent=1))
