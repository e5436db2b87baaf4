"""Talking videos from running ComfyUI servers, without a browser. See docs/headless.md.

    python workflows/api/queue_prompt.py --workflow workflows/api/long_video.json \
        --portrait me.png --audio me.wav --output me.mp4
    python workflows/api/queue_prompt.py --workflow workflows/api/long_video.json \
        --batch pairs/ --output videos/ --server http://gpu1:8188 --server http://gpu2:8188

Needs aiohttp and tqdm, which ComfyUI brings along.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import csv
import json
import os
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from tqdm import tqdm

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".opus", ".mp4", ".mkv", ".webm")
VIDEOS = (".mp4", ".webm", ".mkv", ".mov")
SILENCE = 120  # seconds without a byte of an answer, after which a server counts as dead
GONE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, asyncio.TimeoutError, ConnectionError)


class PromptError(Exception):
    """The server refused or could not do a prompt: the message is its own, another server would say the same."""


@dataclass
class Pair:
    """One video to make; without a portrait and an audio, of what the workflow itself names."""

    portrait: Path | None
    audio: Path | None
    output: Path
    attempts: list[str] = field(default_factory=list)  # the servers that died with it
    state: str = "waiting"


# The workflow ---------------------------------------------------------------------------------------------------------


def with_inputs(workflow: dict, portrait: str, audio: str) -> dict:
    """The workflow (API format) with its Load Image, and its Load Audio or LetsTalk Audio File, set to these files.

    Where it has the pack's example instead, they take its place.
    """
    graph = copy.deepcopy(workflow)
    values = {"image": portrait, "audio": audio}
    takes = {"LoadImage": "image", "LoadAudio": "audio", "LetsTalkAudioFile": "audio"}
    found = set()
    for example in [key for key, node in graph.items() if node["class_type"] == "LetsTalkExample"]:
        del graph[example]
        for slot, (kind, name) in enumerate((("LoadImage", "image"), ("LoadAudio", "audio"))):
            key = f"{example}_{name}"
            graph[key] = {"class_type": kind, "inputs": {}}
            for node in graph.values():
                for socket, link in node["inputs"].items():
                    if link == [example, slot]:
                        node["inputs"][socket] = [key, 0]
    for node in graph.values():
        name = takes.get(node["class_type"])
        if name:
            node["inputs"][name] = values[name]
            found.add(name)
    if found != set(values):
        raise PromptError(
            "The workflow has no Load Image and Load Audio, and no LetsTalk Example, to put the files in."
        )
    return graph


def read_workflow(path: Path) -> dict:
    try:
        graph = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {path} is not a workflow that can be read: {error}") from None
    if not isinstance(graph, dict) or not all(isinstance(n, dict) and "class_type" in n for n in graph.values()):
        raise SystemExit(f"error: {path} is not in the API format; in ComfyUI choose Workflow > Export (API).")
    return graph


# One prompt on one server ---------------------------------------------------------------------------------------------


async def upload(session: aiohttp.ClientSession, path: Path) -> str:
    """The file's name in the server's input folder; no other upload has it."""
    form = aiohttp.FormData()
    with path.open("rb") as file:
        form.add_field("image", file, filename=f"{path.stem}_{uuid.uuid4().hex[:8]}{path.suffix}")
        form.add_field("type", "input")
        async with session.post("/upload/image", data=form) as answer:
            answer.raise_for_status()
            return (await answer.json())["name"]


def refusal(answer: dict) -> str:
    """What a server says about a prompt that it does not take, in one line."""
    details = [
        f"{error['message']} ({error['details']})"
        for node in answer.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    return "; ".join(details) or answer.get("error", {}).get("message", "the server refused the workflow")


async def follow(socket: aiohttp.ClientWebSocketResponse, prompt: str, bar: tqdm) -> None:
    """Until the prompt has ended. PromptError where it failed or was cancelled."""
    while True:
        message = await socket.receive()  # the heartbeat notices a server that is gone
        if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
            raise ConnectionError("the server closed the connection")
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue  # previews
        event = json.loads(message.data)
        data = event["data"]
        if data.get("prompt_id") != prompt:
            continue
        if event["type"] == "progress":
            bar.total, bar.n = data["max"], data["value"]
            bar.refresh()
        elif event["type"] == "executing" and data["node"] is None:
            return  # and the history knows of it
        elif event["type"] == "execution_interrupted":
            raise PromptError("cancelled on the server")
        elif event["type"] == "execution_error":
            raise PromptError(str(data["exception_message"]).strip())


async def download(session: aiohttp.ClientSession, prompt: str, output: Path) -> None:
    """The prompt's video, into a hidden file that is renamed when it is whole."""
    async with session.get(f"/history/{prompt}") as answer:
        outputs = (await answer.json())[prompt]["outputs"]
    files = [file for node in outputs.values() for kind in node.values() if isinstance(kind, list) for file in kind]
    saved = [file for file in files if isinstance(file, dict) and file.get("type") == "output"]
    videos = [file for file in saved if Path(file["filename"]).suffix.lower() in VIDEOS]
    if not videos:
        raise PromptError("the workflow saved no video; it needs a Save Video node")
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.name}.part")
    try:
        async with session.get("/view", params={k: videos[-1][k] for k in ("filename", "subfolder", "type")}) as answer:
            answer.raise_for_status()
            with part.open("wb") as file:
                async for block in answer.content.iter_chunked(1 << 20):
                    file.write(block)
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)


async def make_video(server: str, workflow: dict, pair: Pair, bar: tqdm) -> None:
    """One video on one server. PromptError where it can't be made; one of GONE where the server died."""
    client = uuid.uuid4().hex
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)
    async with aiohttp.ClientSession(server, timeout=timeout) as session:
        async with session.ws_connect(f"/ws?clientId={client}", heartbeat=20, max_msg_size=0) as socket:
            graph = workflow
            if pair.portrait and pair.audio:
                names = [await upload(session, path) for path in (pair.portrait, pair.audio)]
                graph = with_inputs(workflow, *names)
            request = {"prompt": graph, "client_id": client}
            async with session.post("/prompt", json=request) as answer:
                told = await answer.json()
                if answer.status != 200:
                    raise PromptError(refusal(told))
            await follow(socket, told["prompt_id"], bar)
        await download(session, told["prompt_id"], pair.output)


# Many -----------------------------------------------------------------------------------------------------------------


async def serve(server: str, workflow: dict, waiting: asyncio.Queue, place: int) -> None:
    """Take pairs from the queue until it is empty or the server dies; what it died with goes back."""
    while not waiting.empty():
        pair = waiting.get_nowait()
        with tqdm(desc=f"{pair.output.name} on {server}", position=place, leave=False, disable=None) as bar:
            try:
                await make_video(server, workflow, pair, bar)
                pair.state = "done"
            except PromptError as error:
                pair.state = str(error)
            except aiohttp.ClientResponseError as error:
                pair.state = f"{server} answered {error.status} {error.message}"
            except GONE as error:
                pair.attempts.append(server)
                pair.state = f"{server} died ({error or type(error).__name__})"
                waiting.put_nowait(pair)
                tqdm.write(f"{pair.state}; {pair.output.name} goes to another server", file=sys.stderr)
                return
            except (OSError, aiohttp.ClientError, KeyError, ValueError) as error:  # of this pair alone
                pair.state = f"{type(error).__name__}: {error}"


async def run(servers: list[str], workflow: dict, pairs: list[Pair]) -> None:
    waiting: asyncio.Queue = asyncio.Queue()
    for pair in pairs:
        waiting.put_nowait(pair)
    # A server that has nothing left to do takes over what another died with: so all of them wait for each other.
    alive = list(servers)
    while alive and not waiting.empty():
        await asyncio.gather(*(serve(server, workflow, waiting, place) for place, server in enumerate(alive)))
        died = {server for pair in pairs for server in pair.attempts}
        alive = [server for server in alive if server not in died]


def find_pairs(batch: Path, output: Path) -> list[Pair]:
    """Of a folder: pictures and recordings of the same name. Of a CSV: columns portrait, audio and perhaps output."""
    if batch.is_dir():
        pictures = {path.stem: path for path in sorted(batch.iterdir()) if path.suffix.lower() in PICTURES}
        sounds = {path.stem: path for path in sorted(batch.iterdir()) if path.suffix.lower() in SOUNDS}
        return [Pair(pictures[n], sounds[n], output / f"{n}.mp4") for n in pictures if n in sounds]
    pairs = []
    with batch.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row.get("portrait") or not row.get("audio"):
                raise SystemExit(f"error: {batch} needs the columns portrait and audio, filled in every row.")
            portrait, audio = batch.parent / row["portrait"], batch.parent / row["audio"]
            name = row.get("output") or f"{portrait.stem}_{audio.stem}.mp4"
            pairs.append(Pair(portrait, audio, output / name))
    return pairs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", action="append", help="a ComfyUI; repeat for more (default http://127.0.0.1:8188)")
    parser.add_argument("--workflow", type=Path, required=True, help="a workflow in the API format")
    parser.add_argument("--portrait", type=Path)
    parser.add_argument("--audio", type=Path)
    parser.add_argument(
        "--batch", type=Path, help="a folder of pairs of the same name, or a CSV (portrait,audio,output)"
    )
    parser.add_argument("--output", type=Path, required=True, help="the video; with --batch the folder for them")
    arguments = parser.parse_args()
    if bool(arguments.portrait) != bool(arguments.audio) or (arguments.batch and arguments.portrait):
        parser.error("give --portrait and --audio, or --batch, or none of them for the workflow as it is")
    try:
        if arguments.batch is None:
            pairs = [Pair(arguments.portrait, arguments.audio, arguments.output)]
        else:
            pairs = find_pairs(arguments.batch, arguments.output)
    except OSError as error:
        raise SystemExit(f"error: {arguments.batch} cannot be read: {error.strerror}") from None
    if not pairs:
        raise SystemExit(f"error: {arguments.batch} holds no picture and recording of the same name")
    outputs = [pair.output for pair in pairs]
    if len(set(outputs)) < len(outputs):
        twice = next(output for output in outputs if outputs.count(output) > 1)
        raise SystemExit(f"error: two pairs would be written to {twice}; give them outputs of their own")
    missing = [str(path) for pair in pairs for path in (pair.portrait, pair.audio) if path and not path.is_file()]
    if missing:
        raise SystemExit(f"error: there is no file {', '.join(missing)}")
    asyncio.run(run(arguments.server or ["http://127.0.0.1:8188"], read_workflow(arguments.workflow), pairs))
    for pair in pairs:
        print(f"{pair.output}: {pair.state}")
    done = sum(pair.state == "done" for pair in pairs)
    if len(pairs) > 1:
        print(f"{done} of {len(pairs)} made")
    return 0 if done == len(pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
