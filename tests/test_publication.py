"""What ComfyUI's registry gets: the files that .comfyignore leaves, and pyproject.toml's words about them."""

import re
import shutil
import subprocess

import pytest
import yaml
from PIL import Image

from . import comfyui


@pytest.fixture(scope="module")
def published(repository, tmp_path_factory):
    """A ComfyUI base folder whose custom_nodes has the pack as it is published; skips outside a git checkout."""
    if not (repository / ".git").exists():
        pytest.skip("no git checkout: what is tracked isn't known")
    tracked, ignored = (
        set(subprocess.check_output(["git", "-C", repository, "ls-files", *more], text=True).splitlines())
        for more in ([], ["-ci", "--exclude-from=.comfyignore"])
    )
    base = tmp_path_factory.mktemp("published")
    for name in tracked - ignored:
        target = base / "custom_nodes" / "ComfyUI-LetsTalk" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, target)
    return base


def test_what_is_published_has_all_that_runs_and_no_more(published, repository):
    pack = published / "custom_nodes" / "ComfyUI-LetsTalk"
    for folder in ("nodes", "letstalk_core", "weights", "workflows", "web", "locales", "subgraphs", "assets"):
        tracked = subprocess.check_output(["git", "-C", repository, "ls-files", folder], text=True).splitlines()
        assert tracked and all((pack / name).is_file() for name in tracked), folder
    assert (pack / "__init__.py").is_file() and (pack / "requirements.txt").is_file()
    assert not [name for name in ("tests", "benchmarks", ".ci", ".github") if (pack / name).exists()]
    assert not list((pack / "docs").glob("*.py"))
    assert sum(path.stat().st_size for path in pack.rglob("*") if path.is_file()) < 60e6


@pytest.mark.comfyui
def test_the_published_pack_loads_as_this_one_does(published, node_info):
    assert comfyui.node_info(published) == node_info


def test_a_wheel_has_the_weights_that_the_library_reads_beside_its_code(repository):
    (patterns,) = re.findall(r'^"\*" = \[(.+)\]$', (repository / "pyproject.toml").read_text(), re.M)
    patterns = re.findall(r'"(.+?)"', patterns)
    files = [path for path in (repository / "letstalk_core").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    data = [path for path in files if path.suffix != ".py"]
    assert len(data) >= 6 and all(any(path.match(pattern) for pattern in patterns) for path in data), data
    assert all((path.parent / "__init__.py").exists() for path in data)  # of packages: others are not looked into


def test_icon_and_banner_are_as_the_registry_asks(repository):
    text = (repository / "pyproject.toml").read_text()
    for name, width, height, most in (("Icon", 1, 1, 400), ("Banner", 21, 9, 2000)):
        path = repository / re.search(rf'^{name} = "https://.*/main/(.*)"$', text, re.M)[1]
        with Image.open(path) as picture:
            assert picture.width * height == picture.height * width and picture.width <= most, name
        assert path.stat().st_size < 110_000, name


def test_nothing_is_published_while_names_are_missing(repository, tmp_path):
    """The refusal in publish.yml, run as it is there."""
    steps = yaml.safe_load((repository / ".github/workflows/publish.yml").read_text())["jobs"]["publish"]["steps"]
    (script,) = (step["run"] for step in steps if "run" in step)
    text = (repository / "pyproject.toml").read_text()
    whole = re.sub('PublisherId = ".*"', 'PublisherId = "someone"', text).replace("/OWNER/", "/someone/")
    gaps = (re.sub('PublisherId = ".*"', 'PublisherId = ""', whole), whole.replace("/someone/", "/OWNER/"))
    for content, refused in ((whole, False), (gaps[0], True), (gaps[1], True)):
        (tmp_path / "pyproject.toml").write_text(content)
        done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) is refused, done.stdout
        assert ("before publishing" in done.stdout) is refused
