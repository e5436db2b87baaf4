"""Pictures that an autoencoder learns from: of folders, videos and shards, and drawn ones."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from letstalk_core.data import images
from letstalk_core.data.drawn.stills import DrawnPictures
from letstalk_core.data.footage.shard_writer import Stretch, write_shard
from letstalk_core.data.images import (
    PictureFiles,
    ShardPictures,
    image_folder,
    random_square,
    video_pictures,
)
from letstalk_core.errors import InputError
from letstalk_core.video.writer import VideoWriter

SIZE = 32


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colours with an edge, other ones for each number: uint8 [H,W,3]."""
    rng = np.random.default_rng(number)
    ramp = np.linspace(0, 1, width)[None, :, None] * np.ones((height, 1, 1))
    values = rng.uniform(0, 255, 3) * (1 - ramp) + rng.uniform(0, 255, 3) * ramp
    values[height // 3 : height // 2] = rng.uniform(0, 255, 3)
    return values.astype(np.uint8)


def write_pictures(folder: Path, count: int = 6, **shape) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(number, **shape)).save(folder / f"{number}.png")
    return folder


def write_video(path: Path, frames: int = 50, sound: bool = False, first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = (torch.zeros(1, 16000 * frames // 25), 16000) if sound else None
    with VideoWriter(path, 64, 48, 25, audio, preset="ultrafast") as writer:
        for number in range(frames):
            writer.write(picture(first + number // 25)[None])
    return path


def write_frames(path: Path) -> Path:
    """A shard of two stretches with frames, and nothing worth hearing."""
    frames = [np.stack([picture(number, SIZE, SIZE)] * 30) for number in range(2)]
    about = dict(fps=25, features=np.zeros((34, 1, 1), np.float16), context=2, audio_encoder="mel")
    return write_shard(path, [Stretch(name=f"stretch {i}", frames=f, **about) for i, f in enumerate(frames)])


def test_squares_are_mild_crops_of_the_middle_and_never_enlarged():
    places = np.stack([*np.mgrid[0:200, 0:100], np.zeros((200, 100))], axis=-1).astype(np.uint8)  # row, column, 0
    flips = 0
    for seed in range(40):
        square = random_square(places, 80, np.random.default_rng(seed)).float()
        assert square.shape == (3, 80, 80)
        rows, columns = square[0, :, 40], square[1, 40]
        assert rows[0] >= 49 and rows[-1] <= 151 and abs(rows[-1] - rows[0]) >= 80  # within the centred square
        flips += bool(columns[0] > columns[-1])
        step = (columns[1:] - columns[:-1]).abs().mean()
        assert 1 <= step < 1.3
    assert 8 < flips < 32
    small = random_square(places[:20, :20], 40, np.random.default_rng(0))
    assert small.shape == (3, 40, 40)


def test_a_folder_of_images(tmp_path):
    write_pictures(tmp_path / "a")
    rgba = np.concatenate([picture(7), np.full((48, 64, 1), 255, np.uint8)], axis=2)
    for name, pixels in {"b/one.JPG": picture(6), "b/two.webp": picture(7), "b/three.png": rgba}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "b" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = image_folder(tmp_path, SIZE)
        examples = [source.read(i, np.random.default_rng(i)) for i in range(len(source))]
    assert len(source) == 9 and source.name(0) == str(tmp_path / "a" / "0.png")
    assert all(e["image"].shape == (3, SIZE, SIZE) and e["image"].dtype == torch.uint8 for e in examples)
    again = source.read(3, np.random.default_rng(3))["image"]
    assert torch.equal(again, examples[3]["image"])
    first = examples[0]["image"].float().mean((1, 2)).numpy()
    assert np.abs(first - picture(0)[:, 8:56].mean((0, 1))).max() < 12


def test_bad_pictures_are_left_out_with_their_names(tmp_path):
    folder = write_pictures(tmp_path / "in", 2)
    (folder / "text.png").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    Image.fromarray(picture(0, 8, 8)).save(folder / "speck.png")
    with pytest.warns(UserWarning, match="4 pictures are left out.*cut.png is damaged.*speck.png is smaller") as caught:
        source = image_folder(folder, SIZE)
    assert len(source) == 2 and len(caught) == 1 and "text.png" in str(caught[0].message)
    (folder / "0.png").unlink()  # while the training runs
    with pytest.warns(UserWarning, match="another takes its place.*0.png"):
        assert torch.equal(
            source.read(0, np.random.default_rng(0))["image"],
            PictureFiles([[folder / "1.png"]] * 2, "ab", SIZE).read(0, after_one_draw())["image"],
        )
    (folder / "1.png").unlink()
    with pytest.warns(UserWarning), pytest.raises(InputError, match="no file"):
        source.read(0, np.random.default_rng(0))


def after_one_draw() -> np.random.Generator:
    rng = np.random.default_rng(0)
    rng.integers(1)
    return rng


def test_small_pictures_are_enlarged_with_a_warning(tmp_path):
    folder = write_pictures(tmp_path / "in", 2, height=20, width=24)
    write_pictures(folder / "more", 1)
    with pytest.warns(UserWarning, match="2 of 3 pictures are smaller than 32 pixels"):
        source = image_folder(folder, SIZE)
    assert source.read(0, np.random.default_rng(0))["image"].shape == (3, SIZE, SIZE)


def test_videos_with_and_without_sound(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    write_video(folder / "sound.mp4", sound=True)
    write_video(folder / "below" / "silent.mp4", frames=300, first=20)
    (folder / "broken.mp4").write_bytes(b"x" * 1000)
    with pytest.warns(UserWarning) as caught:
        source = video_pictures(folder, tmp_path / "kept", SIZE)
    said = " ".join(str(warning.message) for warning in caught)
    assert "broken.mp4" in said and "No face was found" in said
    assert [len(group) for group in source.groups] == [20, 5, 5]
    names = [source.name(index) for index in range(3)]
    assert names == ["below/silent.mp4, 0 s", "below/silent.mp4, 10 s", "sound.mp4, 0 s"]
    rngs = map(np.random.default_rng, range(40))
    shown = {tuple(source.read(0, rng)["image"].float().mean((1, 2)).round().tolist()) for rng in rngs}
    assert len(shown) > 5  # of the twenty pictures of ten seconds
    (folder / "broken.mp4").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(images, "timed_frames", lambda path: pytest.fail("decoded again"))
        assert video_pictures(folder, tmp_path / "kept", SIZE).groups == source.groups
    write_video(folder / "sound.mp4", frames=25)
    with pytest.warns(UserWarning, match="No face"):
        changed = video_pictures(folder, tmp_path / "kept", SIZE)
    assert sum(map(len, changed.groups)) < sum(map(len, source.groups))
    kept = [path for path in (tmp_path / "kept").glob("*/*") if path.is_dir()]
    assert len(kept) == 2, "what was made of the video before it was changed is gone"


def test_frames_of_shards(tmp_path):
    pytest.importorskip("webdataset")
    path = write_frames(tmp_path / "a.tar")
    source = ShardPictures(path, SIZE)
    assert len(source) == 2 and source.name(1) == "stretch 1 (a.tar)"
    image = source.read(1, np.random.default_rng(0))["image"].float()
    truth = torch.from_numpy(picture(1, SIZE, SIZE)).permute(2, 0, 1).float()
    assert min((image - truth).abs().mean(), (image - truth.flip(2)).abs().mean()) < 4
    with pytest.warns(UserWarning, match="enlarged to 64"):
        assert ShardPictures(path, 64).read(0, np.random.default_rng(0))["image"].shape == (3, 64, 64)
    about = dict(fps=25, context=2, audio_encoder="mel", autoencoder="digest", size=(32, 32))
    arrays = dict(features=np.zeros((9, 1, 1), np.float16), latents=np.zeros((5, 4, 2, 2), np.float16))
    write_shard(tmp_path / "b.tar", [Stretch(name="blind", **arrays, **about)])
    with pytest.raises(InputError, match="b.tar has latents but no frames"):
        ShardPictures(tmp_path, SIZE)


def test_drawn_people_have_regions_that_are_mirrored_with_them(tmp_path):
    source = DrawnPictures(tmp_path, 2, SIZE)
    assert len(source) == 2 and source.name(1) == "drawn person 1"
    for seed in range(6):
        example = source.read(1, np.random.default_rng(seed))
        flipped = not torch.equal(example["regions"], torch.from_numpy(source.regions[1]))
        pose = int(np.random.default_rng(seed).integers(12))
        drawn = torch.from_numpy(np.array(source.pictures[12 + pose])).permute(2, 0, 1)
        assert torch.equal(example["image"], drawn.flip(2) if flipped else drawn)
    assert set(source.regions[1].flatten()) == {0, 1, 2}
