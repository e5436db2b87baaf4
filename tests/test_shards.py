"""Shards of training data: what is written is what is read, exactly the right frames, and clear errors."""

import io
import pickle
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from letstalk_core.audio.recording import exact_fps
from letstalk_core.data.footage.shard_writer import Stretch, write_shard
from letstalk_core.data.footage.shards import ShardSource
from letstalk_core.data.source import Window
from letstalk_core.errors import InputError
from letstalk_core.training.examples import BatchOrder, load_batches

pytest.importorskip("webdataset")
ROOT = Path(__file__).resolve().parents[1]
WINDOW = Window(clip_frames=4, memory_frames=2, audio_window=5)
SHAPE = (2, 3)  # L, E
FIRST, LATER = 1.0, 0.0  # share of first clips


def grey(count, height=32, width=32):
    """Frames [T,H,W,3] whose grey level says their number."""
    levels = 20 + 3 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(pixels):
    """The numbers of such frames [n,3,H,W]."""
    return ((pixels.float().mean(dim=(1, 2, 3)) - 20) / 3).round().int().tolist()


def stretch(count=70, context=3, with_latents=False, **changes):
    """Frames, features and latents that carry their number; features of the context are negative or count on."""
    values = np.arange(-context, count + context, dtype=np.float32)
    features = np.broadcast_to(values[:, None, None], (count + 2 * context, *SHAPE))
    fields = dict(name="talk.mp4, 0.0 s", fps=25.0, features=features, context=context, audio_encoder="mel")
    fields["frames"] = grey(count)
    if with_latents:
        fields["latents"] = torch.arange(count).float()[:, None, None, None].expand(count, 4, 2, 2)
        fields["autoencoder"] = "digest1"
    return Stretch(**{**fields, **changes})


def source(path, window=WINDOW, digest=None, shape=SHAPE):
    return ShardSource(path, window, latents_digest=digest, features_shape=shape)


def window(share, **changes):
    return Window(**{**vars(WINDOW), "first_clip_share": share, **changes})


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "a.tar", [stretch(), stretch(30, with_latents=True)])


# Round trip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(64, 64), (33, 47)])
def test_pixels_come_back(tmp_path, height, width):
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 3, 8, 8))).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width + 60), mode="bicubic")[0].clamp(0, 1) * 255
    frames = torch.stack([smooth[:, :, shift : shift + width] for shift in range(60)]).to(torch.uint8)
    frames = frames.permute(0, 2, 3, 1).contiguous()
    path = write_shard(tmp_path / "a.tar", [stretch(60, frames=frames)])
    for seed in range(5):
        clip = source(path, window(LATER, clip_frames=58)).read(0, np.random.default_rng(seed))
        assert clip["clip"].dtype == torch.uint8 and clip["clip"].shape == (58, 3, height, width)
        error = (clip["clip"].float() - frames[2:].permute(0, 3, 1, 2).float()).square().mean()
        assert 10 * torch.log10(255**2 / error) > 40
        assert abs(clip["clip"].float().mean(dim=(0, 2, 3)) - frames[2:].float().mean(dim=(0, 1, 2))).max() < 1


def test_controls_are_told_as_they_differ_from_the_portrait(tmp_path):
    """Eyelids as they are; what nobody measured is not a number; beyond the stretch its first and last frame count."""
    turned, lids = np.arange(70) * 0.5 - 30, np.arange(70) / 100
    path = write_shard(tmp_path / "a.tar", [stretch(controls={"yaw": turned, "eyelids": lids}), stretch()])
    data = source(path, window(LATER, controls=("eyelids", "yaw", "smile")))
    for seed in range(20):
        example = data.read(0, np.random.default_rng(seed))
        frames, (portrait,) = numbers(example["clip"]), numbers(example["portrait"][None])
        around = np.clip(np.array(frames)[:, None] + np.arange(-2, 3), 0, 69)
        differing = np.clip(turned[around] - turned[portrait], -25, 25)
        assert example["controls"].shape == (4, 5, 3) and example["controls"][..., 2].isnan().all()
        assert np.abs(example["controls"][..., 0].numpy() - lids[around]).max() < 1e-3
        assert np.abs(example["controls"][..., 1].numpy() - differing).max() < 0.03  # float16
    assert data.read(1, np.random.default_rng(0))["controls"].isnan().all()
    assert "controls" not in source(path).read(0, np.random.default_rng(0))
    own = dict(portrait=grey(1)[0], controls={"yaw": turned, "eyelids": lids})  # it is at an angle that nobody measured
    path = write_shard(tmp_path / "b.tar", [stretch(**own)])
    told = source(path, window(LATER, controls=("eyelids", "yaw"))).read(0, np.random.default_rng(0))["controls"]
    assert told[..., 0].isfinite().all() and told[..., 1].isnan().all()


def test_webdataset_reads_it(shard):
    import webdataset

    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    assert [sample["json"]["frames"] for sample in samples] == [70, 30]
    assert samples[1]["features.npy"].shape == (36, *SHAPE) and samples[1]["features.npy"].dtype == np.float16
    assert samples[1]["latents.npy"].shape == (30, 4, 2, 2)
    about = dict(name="talk.mp4, 0.0 s", frames=30, fps=25.0, size=[32, 32], context=3, audio_encoder="mel")
    assert samples[1]["json"] == {**about, "autoencoder": "digest1"}  # the keys of shards that are already there
    assert samples[0]["__key__"] != samples[1]["__key__"]


def test_the_same_stretches_give_the_same_bytes(tmp_path):
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        written.append(write_shard(folder / "a.tar", [stretch()]).read_bytes())
        assert [path.name for path in folder.iterdir()] == ["a.tar"]
    assert written[0] == written[1]


# Which frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [FIRST, LATER])
@pytest.mark.parametrize("digest", [None, "digest1"])
@pytest.mark.parametrize("pixel_conditions", [False, True])
def test_the_right_frames_and_windows(tmp_path, share, digest, pixel_conditions):
    path = write_shard(tmp_path / "a.tar", [stretch(with_latents=True)])
    data = source(path, window(share, pixel_conditions=pixel_conditions), digest)
    starts = set()
    for seed in range(60):
        example = data.read(0, np.random.default_rng(seed))
        in_latents = {"clip": digest is not None, "memory": digest is not None and not pixel_conditions}
        in_latents["portrait"] = in_latents["memory"]
        example["portrait"] = example["portrait"][None]
        found = {}
        for name, latents in in_latents.items():
            tensor = example[name]
            assert tensor.dtype == (torch.float32 if latents else torch.uint8)
            assert tensor.shape[1:] == ((4, 2, 2) if latents else (3, 32, 32))
            found[name] = tensor[:, 0, 0, 0].int().tolist() if latents else numbers(tensor)
        start = found["clip"][0]
        starts.add(start)
        assert found["clip"] == list(range(start, start + 4))
        assert found["memory"] == (found["portrait"] * 2 if share == FIRST else [start - 2, start - 1])
        features = example["features"]
        assert features.dtype == torch.float32 and features.shape == (4, 5, *SHAPE)
        expected = start + torch.arange(4)[:, None] + torch.arange(-2, 3)
        assert torch.equal(features[:, :, 1, 2].long(), expected)
    assert min(starts) <= 6 and max(starts) >= 62 and len(starts) > 25


@pytest.mark.parametrize("context, low, high", [(0, 0, 3), (1, -1, 4), (5, -2, 5)])
def test_windows_end_with_the_features(tmp_path, context, low, high):
    path = write_shard(tmp_path / "a.tar", [stretch(4, context)])
    features = source(path, window(FIRST, memory_frames=0)).read(0, np.random.default_rng(0))["features"][..., 0, 0]
    expected = torch.arange(4)[:, None] + torch.arange(-2, 3)
    assert torch.equal(features.long(), expected.clamp(low, high))


@pytest.mark.parametrize("share", [FIRST, LATER])
def test_every_start_is_drawn_and_none_else(tmp_path, share):
    path = write_shard(tmp_path / "a.tar", [stretch(8, with_latents=True)])
    data = source(path, window(share), "digest1")
    drawn = {int(data.read(0, np.random.default_rng(seed))["clip"][0, 0, 0, 0]) for seed in range(80)}
    assert drawn == set(range(0 if share == FIRST else 2, 5))


def test_the_generator_decides(shard):
    data = source(shard)
    first, again, other = (data.read(0, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["clip"], other["clip"])
    shares = [data.read(1, np.random.default_rng(seed)) for seed in range(80)]
    repeated = sum(torch.equal(example["memory"][0], example["portrait"]) for example in shares)
    assert 25 < repeated < 60


def test_no_memory(shard):
    for digest, share in ((None, LATER), ("digest1", LATER), (None, FIRST)):
        example = source(shard, window(share, memory_frames=0), digest).read(1, np.random.default_rng(0))
        assert example["memory"].shape == (0, 3, 32, 32)


@pytest.mark.parametrize("digest", [None, "digest1"])
def test_a_portrait_of_its_own(tmp_path, digest):
    own = stretch(
        with_latents=True, portrait=np.full((32, 32, 3), 250, np.uint8), portrait_latents=torch.full((4, 2, 2), 9.5)
    )
    path = write_shard(tmp_path / "a.tar", [own])
    for share in (FIRST, LATER):
        example = source(path, window(share), digest).read(0, np.random.default_rng(1))
        assert example["portrait"].shape == ((4, 2, 2) if digest else (3, 32, 32))
        assert (example["portrait"] == (9.5 if digest else 250)).all()
        assert (example["memory"] == example["portrait"]).all() == (share == FIRST)


def test_latents_only_where_all_stretches_have_them(tmp_path, shard):
    assert not source(shard, digest="digest1").uses_latents  # one of its two stretches has none
    path = write_shard(tmp_path / "b.tar", [stretch(with_latents=True)])
    assert source(path, digest="digest1").uses_latents
    assert not source(path, digest="other").uses_latents
    assert not source(path, digest=None).uses_latents


@pytest.mark.parametrize("fps", [25.0, 29.97])
@pytest.mark.parametrize("key_every", [10, 30, 250])
def test_frames_of_other_encoders(tmp_path, fps, key_every):
    """Videos with B-frames, open groups of pictures and 4:2:0, as other programs write them."""
    form = "b-adapt=0:b-pyramid=normal:scenecut=0:open-gop=1"
    options = {"g": str(key_every), "bf": "4", "x264-params": form}
    with av.open(str(tmp_path / "own.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=exact_fps(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number, picture in enumerate(grey(70)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / exact_fps(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path = write_shard(tmp_path / "a.tar", [stretch(fps=fps)])
    replace_member(path, "mp4", (tmp_path / "own.mp4").read_bytes())
    data = source(path, window(LATER, memory_frames=1))
    for seed in range(60):
        example = data.read(0, np.random.default_rng(seed))
        start = int(example["features"][0, 2, 0, 0])
        assert numbers(example["clip"]) == list(range(start, start + 4))
        assert numbers(example["memory"]) == [start - 1]


def replace_member(path, suffix, content, key=0):
    """Rewrite a shard with another content of one file; None leaves it out."""
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    name = [name for name in members if name.endswith(f".{suffix}")][key]
    members[name] = content
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if content is not None:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


# Workers -------------------------------------------------------------------------------------------------------------


class Examples(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data.read(index, np.random.default_rng(index))


def test_in_workers(shard):
    data = source(shard)
    copied = pickle.loads(pickle.dumps(data))
    here = [data.read(index, np.random.default_rng(index)) for index in range(2)]
    there = list(DataLoader(Examples(copied), batch_size=None, num_workers=1))
    assert len(there) == len(data) == 2
    for mine, other in zip(here, there):
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_in_memory(tmp_path):
    """Held latents and features give the same examples, without the file."""
    own = stretch(with_latents=True, portrait=grey(1)[0], portrait_latents=torch.full((4, 2, 2), 9.5))
    path = write_shard(tmp_path / "a.tar", [stretch(with_latents=True), own, stretch(33, with_latents=True)])
    read, held = source(path, digest="digest1"), source(path, digest="digest1")
    size = sum((count * 16 + (count + 6) * 6) * 2 for count in (70, 70, 33)) + 32  # float16
    assert not held.hold(torch.device("cpu"), size - 1)
    assert held.hold(torch.device("cpu"), size)
    expected = [read.read(i % 3, np.random.default_rng(i)) for i in range(30)]
    path.unlink()
    for i, example in enumerate(expected):
        found = held.read(i % 3, np.random.default_rng(i))
        assert found.keys() == example.keys()
        assert all(torch.equal(found[name], example[name]) for name in example)
    with pytest.raises(InputError, match="cannot be read any more"):
        read.read(0, np.random.default_rng(0))


def test_held_examples_are_read_by_one_process(tmp_path):
    path = write_shard(tmp_path / "a.tar", [stretch(with_latents=True)] * 3)
    held, order = source(path, digest="digest1"), BatchOrder(np.arange(3), seed=0, batch_size=2)
    expected = next(load_batches(source(path, digest="digest1"), order, workers=1))
    assert held.hold(torch.device("cpu"), 1e9)
    path.unlink()
    found = next(load_batches(held, order, workers=1, pin_memory=True))  # what is held must not be pinned
    assert found["seed"] == expected["seed"]
    assert torch.equal(found["clip"], expected["clip"])


def test_pixels_are_not_held(shard):
    for digest, pixels in ((None, False), ("digest1", True)):
        data = source(shard, window(LATER, pixel_conditions=pixels), digest)
        assert not data.hold(torch.device("cpu"), 1e9)
        assert not data.held


def test_a_folder_or_a_list_of_files(tmp_path):
    paths = [write_shard(tmp_path / f"{name}.tar", [stretch(name=f"talk {name}")]) for name in "ba"]
    (tmp_path / ".a.tar.1234.part").write_bytes(b"half")
    assert [source(tmp_path).name(index) for index in range(2)] == ["talk a (a.tar)", "talk b (b.tar)"]
    assert source(paths).name(0) == "talk b (b.tar)"
    data = source(paths[0])
    assert (len(data), data.fps, data.size, data.audio_encoder) == (1, 25.0, (32, 32), "mel")
