"""What every test shares: no downloads, and the way to media that is not part of the repository."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported, hence before any test module

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recordings, portraits and clips kept beside the checkout; skips the test where there is none."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder beside this checkout")
    return folder


# Nodes that give what no loader would: a picture and a sound of any shape, a model that runs out of memory, and a video
# that can't be read whole.
SOURCES = """
import copy, dataclasses
import torch
from comfy_api.latest import InputImpl
class TestSource:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("IMAGE", "AUDIO")
    INPUT_TYPES = classmethod(lambda cls: {"required": {
        "image": ("STRING", {"default": "1,64,64,3"}), "audio": ("STRING", {"default": "1,16000,16000"}),
        "sounds": ("INT", {"default": 1}),
        "value": ("FLOAT", {"default": 0.5, "min": -9.0, "max": 9.0}), "nan": ("BOOLEAN", {"default": False})}})
    def make(self, image, audio, sounds, value, nan):
        channels, samples, rate = map(int, audio.split(","))
        waveform = value * torch.sin(torch.arange(samples) / 9).expand(sounds, channels, -1).clone()
        if nan:
            waveform[..., samples // 2] = float("nan")
        picture = torch.full([int(side) for side in image.split(",")], value)
        return picture, {"waveform": waveform, "sample_rate": rate} if sounds else None
class TestShortOfMemory:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("LETSTALK_MODEL",)
    INPUT_TYPES = classmethod(lambda cls: {"required": {"letstalk_model": ("LETSTALK_MODEL",), "card": ("BOOLEAN",)}})
    def make(self, letstalk_model, card):
        def fail(*_):
            if card:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")
        pipeline = copy.copy(letstalk_model.pipeline)
        pipeline.decoder = pipeline.stream_audio = fail
        return (dataclasses.replace(letstalk_model, pipeline=pipeline),)
class LongVideo(InputImpl.VideoFromFile):
    def get_components(self):
        raise MemoryError("the whole video was asked for")
class TestLongVideo:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("VIDEO",)
    INPUT_TYPES = classmethod(lambda cls: {"required": {"file": ("STRING", {}), "start": ("FLOAT", {"default": 0.0})}})
    def make(self, file, start):
        return (LongVideo(file, start_time=start),)
NODE_CLASS_MAPPINGS = {"TestSource": TestSource, "TestShortOfMemory": TestShortOfMemory, "TestLongVideo": TestLongVideo}
"""


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory):
    """A running ComfyUI with the pack and with files that no model can be; skips where it can't be fetched."""
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    from .comfyui import NotAvailable, Server
    from .tiny import write_tiny_checkpoint

    base = tmp_path_factory.mktemp("comfyui")
    try:
        server = Server(base)
    except NotAvailable as error:
        pytest.skip(f"ComfyUI cannot be fetched: {error}")
    (base / "custom_nodes" / "test_sources.py").write_text(SOURCES)
    models = base / "models" / "letstalk"
    whole = write_tiny_checkpoint(models / "tiny.safetensors").read_bytes()
    write_tiny_checkpoint(models / "without_autoencoder.safetensors", bundle=False)
    (models / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": torch.zeros(3)}, models / "pickle.ckpt")
    save_file({"conv.weight": torch.zeros(3, 3)}, models / "other.safetensors")
    other = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=3)
    other.save_pretrained(base / "models" / "vae" / "kl")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def node_info(tmp_path_factory):
    """What /object_info says of the pack's nodes; skips where ComfyUI can't be fetched."""
    from . import comfyui

    try:
        return comfyui.node_info(tmp_path_factory.mktemp("schemas"))
    except comfyui.NotAvailable as error:
        pytest.skip(f"ComfyUI cannot be fetched: {error}")


@pytest.fixture(scope="session")
def workflow(repository):
    """workflow(name): a new copy of one of the pack's graphs in the API format."""
    return lambda name: json.loads((repository / "workflows" / "api" / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A tiny model with its autoencoder and audio encoder, on the CPU."""
    from letstalk_core.pipeline import LetsTalkPipeline

    from .tiny import write_tiny_checkpoint

    return LetsTalkPipeline.load(write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors"), "cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, repository):
    """What `generate` needs, as files: a tiny model, half a second of sound, and the example portrait."""
    from .command_line import write_wav
    from .tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("inputs")
    return {
        "model": write_tiny_checkpoint(folder / "tiny.safetensors"),
        "audio": write_wav(folder / "speech.wav"),
        "portrait": repository / "assets" / "portrait.jpg",
    }


@pytest.fixture
def stand_in(monkeypatch):
    """Software in the place of nvenc: takes the same pictures, and no B-frames."""
    from letstalk_core.video.h264 import HARDWARE

    monkeypatch.setitem(HARDWARE, "nvenc", ("libx264", {**HARDWARE["nvenc"][1], "crf": "16", "threads": "1"}))


@pytest.fixture
def no_hardware(monkeypatch):
    """In the place of nvenc an encoder that is nowhere."""
    from letstalk_core.video.h264 import HARDWARE

    monkeypatch.setitem(HARDWARE, "nvenc", ("h264_nowhere", {}))


@pytest.fixture
def job(pipeline):
    """A rendering of 38 frames."""
    from .rendering import make_job

    return make_job(pipeline)


@pytest.fixture(scope="module")
def short_segments():
    """Segments of eight frames."""
    from letstalk_core.render import job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "SEGMENT_SECONDS", 8 / 25)
        yield


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    """The frames of that rendering, uninterrupted."""
    from letstalk_core.render.render import render_video
    from letstalk_core.video.reader import read_video_frames

    from .rendering import make_job

    path = tmp_path_factory.mktemp("whole") / "a.mp4"
    render_video(make_job(pipeline), path)
    return read_video_frames(path)
