"""The one import rule: __init__ -> nodes -> letstalk_core -> third parties, never back."""

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
PACK = ("letstalk_core", "nodes")
USERS_OF_DATA = ("letstalk_core.data", "letstalk_core.training", "letstalk_core.evaluation")
HEAVY = ("torch", "torchaudio", "transformers", "diffusers", "cv2", "av", "numpy")


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
    module = ".".join(path.with_suffix("").parts)
    in_core = within(module, "letstalk_core")
    found = []
    for line, name, relative in imports(source, path):
        top = name.split(".")[0]
        if relative and (name == ".." or (in_core and top != "letstalk_core")):
            problem = "leaves its package"
        elif in_core and not relative and (top.startswith("comfy") or top in COMFYUI):
            problem = "is ComfyUI's: only nodes/ and the root __init__.py import it"
        elif not relative and within(name, "letstalk_core"):
            problem = "must be a relative import inside the pack"
        elif within(name, "letstalk_core.data") and not any(within(module, user) for user in USERS_OF_DATA):
            problem = "is imported by training/ and evaluation/ only"
        else:
            continue
        found.append(f"{path}:{line}: {name} {problem}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_file_keeps_the_import_rule(path):
    assert violations((REPOSITORY / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("letstalk_core/audio.py", "import comfy.utils"),
        ("letstalk_core/audio.py", "from comfy_api.latest import io"),
        ("letstalk_core/audio.py", "def f():\n    import folder_paths"),
        ("letstalk_core/training/train.py", "from nodes import NODE_CLASS_MAPPINGS"),
        ("letstalk_core/audio.py", "from ..nodes import runtime"),
        ("letstalk_core/audio.py", "from ... import anything"),
        ("letstalk_core/audio.py", "from letstalk_core.config import LetsTalkConfig"),
        ("letstalk_core/pipeline.py", "from .data import clips"),
        ("letstalk_core/pipeline.py", "from . import data"),
        ("letstalk_core/pipeline.py", "from .data.clips import Clip"),
        ("nodes/sample.py", "from ..letstalk_core.data import clips"),
        ("nodes/sample.py", "from letstalk_core import load_checkpoint"),
        ("__init__.py", "import letstalk_core"),
    ],
)
def test_a_broken_rule_is_noticed(path, source):
    assert violations(source, Path(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("letstalk_core/audio.py", "import torch\nfrom .config import LetsTalkConfig\nfrom . import portrait"),
        ("letstalk_core/training/train.py", "from ..data.clips import Clip\nfrom ..config import LetsTalkConfig"),
        ("letstalk_core/evaluation/report.py", "from ..data import clips"),
        ("letstalk_core/data/clips.py", "from . import avatars\nfrom ..data.avatars import Avatar"),
        (
            "nodes/sample.py",
            "import folder_paths\nfrom ..letstalk_core import load_checkpoint\nfrom .types import Model",
        ),
        ("__init__.py", "def entry():\n    from .nodes import extension"),
    ],
)
def test_a_kept_rule_passes(path, source):
    assert violations(source, Path(path)) == []


def test_importing_the_package_is_light():
    """Help texts and errors of the command line, and ComfyUI's start, do not wait for torch."""
    code = f"import sys, letstalk_core; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
