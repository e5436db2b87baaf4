"""The one import rule: __init__ -> nodes -> letstalk_core -> third parties, and inside the core downwards only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = [
    path.relative_to(REPOSITORY)
    for path in sorted(
        [*REPOSITORY.glob("__init__.py"), *REPOSITORY.glob("nodes/**/*.py"), *REPOSITORY.glob("letstalk_core/**/*.py")]
    )
]
COMFYUI = ("folder_paths", "server", "nodes", "execution", "node_helpers", "latent_preview")  # and comfy*
NOT_FOR_NODES = ("letstalk_core.data", "letstalk_core.training", "letstalk_core.evaluation")
HEAVY = ("torch", "torchaudio", "transformers", "diffusers", "cv2", "av", "numpy")

# What each room of the core may import of the others. `audio.recording` is all that video/ may know of audio/: the
# sound of a file, not what encoders hear in it.
GROUND = {"errors", "config", "defaults", "presets", "files", "pixels", "precision", "weights"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "defaults": set(),
    "presets": {"config"},
    "pixels": set(),
    "files": {"errors"},
    "measured": {"errors", "files"},
    "precision": {"errors", "measured"},
    "threads": {"measured"},
    "weights": {"errors", "files"},
    "model": {"errors", "config", "presets", "weights"},  # weights: how a model's file is written and filled in
    "diffusion": {"config"},
    "audio": {"errors", "config", "files", "weights"},
    "picture": {"errors", "defaults", "files", "pixels", "weights"},
    "video": GROUND | {"model", "diffusion", "audio.recording", "audio.decoding"},
    "autoencoders": {"errors", "model", "picture"},
    "pipeline": GROUND | {"model", "audio", "picture", "autoencoders", "video"},
    "render": GROUND | {"model", "diffusion", "audio", "picture", "video", "pipeline"},
    "data": GROUND | {"model", "audio", "picture", "autoencoders", "video"},
}
ROOMS["training"] = ROOMS["data"] | ROOMS["render"] | {"render", "data"}
ROOMS["evaluation"] = ROOMS["training"] | {"training"}
ROOMS["cli"] = ROOMS["evaluation"] | {"evaluation", "threads"}
ROOMS["__main__"] = {"cli"}
ROOMS["__init__"] = set(ROOMS)  # names of the package's face, imported when they are used


def imports(source: str, path: Path) -> list[tuple[int, str, bool]]:
    """(line, dotted name from the repository root, written relative?) of every import in the file at `path`, also of
    those inside functions. A relative import that leaves the repository is named "..".
    """
    package = path.parent.parts
    found = []
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = node.level - 1
            if up > len(package):
                found.append((node.lineno, "..", True))
                continue
            base = [*package[: len(package) - up]] if node.level else []
            base += node.module.split(".") if node.module else []
            found += [(node.lineno, ".".join([*base, alias.name]), node.level > 0) for alias in node.names]
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(source: str, path: Path) -> list[str]:
    """What the file at `path` (relative to the repository) imports against the rule."""
    module = path.with_suffix("").parts
    in_core = module[0] == "letstalk_core"
    found = []
    for line, name, relative in imports(source, path):
        top = name.split(".")[0]
        if relative and (name == ".." or (in_core and top != "letstalk_core")):
            problem = "leaves its package"
        elif in_core and not relative and (top.startswith("comfy") or top in COMFYUI):
            problem = "is ComfyUI's: only nodes/ and the root __init__.py import it"
        elif not relative and within(name, "letstalk_core"):
            problem = "must be a relative import inside the pack"
        elif in_core and relative and not allowed(module[1], name.removeprefix("letstalk_core.")):
            problem = f"lies above {module[1]}, or is none of its business"
        elif not in_core and any(within(name, room) for room in NOT_FOR_NODES):
            problem = "is not for ComfyUI's nodes"
        else:
            continue
        found.append(f"{path}:{line}: {name} {problem}")
    return found


def allowed(room: str, name: str) -> bool:
    """May a module of a room import the core's `name`?"""
    return name.split(".")[0] == room or any(within(name, other) for other in ROOMS[room])


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_file_keeps_the_import_rule(path):
    assert violations((REPOSITORY / path).read_text(encoding="utf-8"), path) == []


def test_every_room_has_its_rule():
    rooms = {path.parts[1].removesuffix(".py") for path in SOURCES if path.parts[0] == "letstalk_core"}
    assert rooms == set(ROOMS)


def test_there_is_no_circle_of_modules():
    """Not inside a package either."""
    files = [path for path in SOURCES if path.parts[0] == "letstalk_core" and path.parts[1] != "__init__.py"]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    uses = {}
    for module, path in names.items():
        given = (name for _, name, _ in imports((REPOSITORY / path).read_text(encoding="utf-8"), path))
        uses[module] = {n for name in given for n in (name, name.rpartition(".")[0]) if n in names} - {module}
        if path.stem == "__init__":  # what a package takes from its own modules is no circle, unless they ask it back
            uses[module] = {other for other in uses[module] if not within(other, module)}
    while done := {module for module, others in uses.items() if not others & uses.keys()}:
        for module in done:
            del uses[module]
    assert uses == {}


def test_no_file_name_occurs_twice():
    """A text search for a file's name finds one file; __init__ and __main__ have Python's own meaning."""
    files = [path.stem for path in SOURCES if path.parts[0] == "letstalk_core" and not path.stem.startswith("__")]
    assert sorted(files) == sorted(set(files))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("letstalk_core/audio/mel.py", "import comfy.utils"),
        ("letstalk_core/audio/mel.py", "from comfy_api.latest import io"),
        ("letstalk_core/audio/mel.py", "def f():\n    import folder_paths"),
        ("letstalk_core/training/train.py", "from nodes import NODE_CLASS_MAPPINGS"),
        ("letstalk_core/pipeline.py", "from ..nodes import runtime"),
        ("letstalk_core/pipeline.py", "from ... import anything"),
        ("letstalk_core/pipeline.py", "from letstalk_core.config import LetsTalkConfig"),
        ("letstalk_core/pipeline.py", "from .data import source"),
        ("letstalk_core/pipeline.py", "from . import data"),
        ("letstalk_core/pipeline.py", "from .render.render import write_video"),
        ("letstalk_core/model/transformer.py", "from ..diffusion.objective import Diffusion"),
        ("letstalk_core/diffusion/samplers.py", "from ..model import checkpoint"),
        ("letstalk_core/picture/portrait.py", "from ..audio.recording import Recording"),
        ("letstalk_core/audio/recording.py", "from ..video.reader import probe"),
        ("letstalk_core/video/clips.py", "from ..audio.encoder import FeatureStream"),
        ("letstalk_core/video/clips.py", "def f():\n    from ..audio import mel"),
        ("letstalk_core/data/source.py", "from ..training.loop import Loss"),
        ("letstalk_core/training/loop.py", "from ..evaluation.meter import FaceMeter"),
        ("letstalk_core/config.py", "from .errors import InputError"),
        ("nodes/sample.py", "from ..letstalk_core.training import train"),
        ("nodes/sample.py", "from ..letstalk_core.data import source"),
        ("nodes/sample.py", "from letstalk_core import load_checkpoint"),
        ("__init__.py", "import letstalk_core"),
    ],
)
def test_a_broken_rule_is_noticed(path, source):
    assert violations(source, Path(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("letstalk_core/audio/mel.py", "import torch\nfrom .encoder import AudioEncoder\nfrom . import recording"),
        ("letstalk_core/training/train.py", "from ..data.source import Source\nfrom ..config import LetsTalkConfig"),
        ("letstalk_core/evaluation/report.py", "from ..data.drawn import motion\nfrom ..training import loop"),
        ("letstalk_core/video/writer.py", "from ..audio.recording import Recording\nfrom ..model.latents import x"),
        ("nodes/sample.py", "import folder_paths\nfrom ..letstalk_core import write_video\nfrom .types import Model"),
        ("__init__.py", "def entry():\n    from .nodes import extension"),
    ],
)
def test_a_kept_rule_passes(path, source):
    assert violations(source, Path(path)) == []


def test_importing_the_package_is_light():
    """Help texts and errors of the command line, and ComfyUI's start, do not wait for torch."""
    code = f"import sys, letstalk_core.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
