"""Training of an autoencoder: from every kind of pictures, stopped and resumed, to a file that can be used."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from letstalk_core.data import images
from letstalk_core.data.images import (
    DrawnPictures,
    PictureFiles,
    ShardPictures,
    image_folder,
    random_square,
    video_pictures,
)
from letstalk_core.errors import InputError
from letstalk_core.picture.autoencoder import build_autoencoder, load_autoencoder
from letstalk_core.training import train_autoencoder as training
from letstalk_core.training.build import find_autoencoder
from letstalk_core.training.examples import collate
from letstalk_core.training.train import train
from letstalk_core.training.train_autoencoder import ReconstructionLoss, Reconstructor, reconstruction_loss
from letstalk_core.training.training_config import load_config
from letstalk_core.video.writer import VideoWriter

from .tiny import AUTOENCODER

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
    from letstalk_core.data.footage.shards import Stretch, write_shard

    frames = [np.stack([picture(number, SIZE, SIZE)] * 30) for number in range(2)]
    about = dict(fps=25, features=np.zeros((34, 1, 1), np.float16), context=2, audio_encoder="mel")
    return write_shard(path, [Stretch(name=f"stretch {i}", frames=f, **about) for i, f in enumerate(frames)])


@pytest.fixture(autouse=True)
def few_pictures_are_measured(monkeypatch):
    monkeypatch.setattr(training, "SCALE_PICTURES", 16)
    monkeypatch.setattr(training, "HELD_OUT_PICTURES", 8)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The file of an untrained autoencoder that is as small as they go."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(AUTOENCODER)
    path = tmp_path_factory.mktemp("autoencoder") / "tiny.safetensors"
    save_file(autoencoder.model.state_dict(), path, {"config": json.dumps(autoencoder.config)})
    return path


def configured(run: Path, tiny: Path | str, data_path: Path, **more):
    values = dict(
        task="autoencoder", run=str(run), init_from=str(tiny), data="images", data_path=str(data_path), image_size=SIZE,
        steps=4, batch_size=2, workers=0, save_every=2, log_every=1, device="cpu", precision="fp32",
        learning_rate=2e-3, gradient_clip=1.0, gradient_clip_start=0, ema_decay=0.9,
    )  # fmt: skip
    given = {**values, **more}.items()
    return load_config(None, [f"{n}={value if isinstance(value, str) else json.dumps(value)}" for n, value in given])


def log_of(run: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def content(path: Path) -> tuple[dict, dict]:
    """Weights as bytes, and metadata: the order in a safetensors file is another one each time."""
    with safe_open(path, "pt") as file:
        return {name: value.numpy().tobytes() for name, value in load_file(path).items()}, file.metadata()


# The whole way --------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_file_can_be_used(tmp_path, tiny):
    data = write_pictures(tmp_path / "in", 8)
    config = configured(
        tmp_path / "run", tiny, data, steps=80, save_every=40, sample_every=80, held_out_share=0.25, workers=1
    )
    path = train(config)
    assert path == tmp_path / "run" / "autoencoder.safetensors"
    losses, quality = log_of(tmp_path / "run", "loss"), log_of(tmp_path / "run", "held_out_psnr")
    assert np.mean([losses[step] for step in range(71, 81)]) < 0.5 * losses[1]
    assert quality.keys() == {40, 80} and quality[80] > quality[40]
    autoencoder = load_autoencoder(path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["held_out_psnr"] == f"{quality[80]:.2f}" and file.metadata()["trained_steps"] == "80"
    source = image_folder(data, SIZE)
    pixels = torch.stack([source.read(i, np.random.default_rng(i))["image"] for i in range(8)])
    latents = autoencoder.encode(pixels.float() / 127.5 - 1)
    assert 0.5 < latents.std() < 2  # latents that a diffusion model can start from noise with
    assert training.psnr(autoencoder.decode(latents), pixels.float() / 127.5 - 1) > 12
    used = find_autoencoder(load_config(None, ["preset=linear-S", "data_path=x", f"autoencoder={path}"]))
    assert used.mark == autoencoder.mark and used.latent_scale == autoencoder.latent_scale != 1
    sheet = np.asarray(Image.open(tmp_path / "run" / "samples" / "step-00000080.png")).astype(float)
    assert sheet.shape == (2 * SIZE, 8 * SIZE, 3)
    assert np.abs(sheet[:SIZE] - sheet[SIZE:]).mean() < np.abs(sheet[:SIZE] - sheet[SIZE:, ::-1]).mean()
    assert [file.name for file in (tmp_path / "run" / "samples").iterdir()] == ["step-00000080.png"]


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, tiny, monkeypatch):
    data = write_pictures(tmp_path / "in")
    whole = train(configured(tmp_path / "whole", tiny, data, steps=6, held_out_share=0.3))
    usual, calls = ReconstructionLoss.__call__, []

    def stopping(self, *arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise ZeroDivisionError  # as good as any crash
        return usual(self, *arguments)

    monkeypatch.setattr(ReconstructionLoss, "__call__", stopping)
    with pytest.raises(ZeroDivisionError):
        train(configured(tmp_path / "parts", tiny, data, steps=6, held_out_share=0.3))
    monkeypatch.setattr(ReconstructionLoss, "__call__", usual)
    parts = train(configured(tmp_path / "parts", tiny, data, steps=6, held_out_share=0.3, workers=1))
    assert content(whole) == content(parts)
    for name in ("loss", "held_out_psnr"):
        assert log_of(tmp_path / "whole", name) == log_of(tmp_path / "parts", name)


def test_a_lost_file_is_written_from_the_last_checkpoint(tmp_path, tiny):
    config = configured(tmp_path / "run", tiny, write_pictures(tmp_path / "in"))
    path = train(config)
    before = content(path)
    path.unlink()
    assert content(train(config)) == before
    logged = (tmp_path / "run" / "log.jsonl").read_text()
    train(config)  # nothing is left to do
    assert (tmp_path / "run" / "log.jsonl").read_text() == logged


def test_without_a_start_it_is_the_small_dc_ae(tmp_path):
    path = train(configured(tmp_path / "run", "", write_pictures(tmp_path / "in"), steps=1, batch_size=1))
    autoencoder = load_autoencoder(path)
    assert autoencoder.latent_channels == 32 and autoencoder.downscale == 16


def test_with_a_frozen_encoder_the_latents_stay(tmp_path, tiny):
    path = train(configured(tmp_path / "run", tiny, write_pictures(tmp_path / "in"), frozen=r"^model\.encoder"))
    before, after = load_autoencoder(tiny), load_autoencoder(path)
    assert before.mark == after.mark
    changed = {k for k, v in load_file(tiny).items() if not torch.equal(v, load_file(path)[k])}
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_the_bundled_models_autoencoder_is_trained_alike(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "train_autoencoder_from", lambda config: asked.append(config))
    with pytest.raises(KeyboardInterrupt):  # None: asked to stop
        training.train_autoencoder(tmp_path, 20, 3, 2)
    config = asked[0]
    assert (config.data, config.data_path, config.avatar_people) == ("avatar", str(tmp_path), 3)
    assert (config.steps, config.batch_size, config.schedule) == (20, 2, "cosine")


# Loss -----------------------------------------------------------------------------------------------------------------


def test_an_examples_loss_is_its_own_whatever_the_batch(tiny):
    autoencoder = load_autoencoder(tiny)
    examples = [
        {"image": torch.from_numpy(picture(i, SIZE, SIZE)).permute(2, 0, 1), "seed": i, "name": str(i)}
        | {"regions": torch.from_numpy(np.random.default_rng(i).integers(0, 3, (SIZE, SIZE), np.uint8))}
        for i in range(3)
    ]
    loss, reconstructor = ReconstructionLoss(autoencoder, torch.device("cpu")), Reconstructor(autoencoder)
    together = loss(reconstructor, collate(examples))
    alone = torch.cat([loss(reconstructor, collate([example])).per_example for example in examples])
    torch.testing.assert_close(together.per_example, alone)
    assert together.names == ["0", "1", "2"]


def test_mouth_and_eyes_count_more():
    images, regions = torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    regions[:, 2:4, 2:4], regions[:, 5:7, 5:7] = 1, 2
    losses = {}
    for name, at in {"mouth": 2, "eyes": 5, "elsewhere": 0}.items():
        output = images.clone()
        output[:, :, at : at + 2, at : at + 2] = 0.5
        losses[name] = reconstruction_loss(output, images, regions).item()
    assert losses["mouth"] > 2 * losses["elsewhere"] and losses["eyes"] > 2 * losses["elsewhere"]
    same = torch.zeros_like(regions)
    torch.testing.assert_close(reconstruction_loss(output, images, same), reconstruction_loss(output, images))


# Pictures -------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["videos", "shards", "avatar"])
def test_every_kind_of_data_is_trained_on(tmp_path, tiny, kind):
    data, more = tmp_path / "in", {}
    data.mkdir()
    if kind == "videos":
        write_video(data / "a.mp4")
    elif kind == "shards":
        pytest.importorskip("webdataset")
        write_frames(data / "a.tar")
    else:
        more = dict(avatar_people=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no face in them
        path = train(configured(tmp_path / "run", tiny, data, data=kind, steps=2, **more))
    assert load_autoencoder(path).latent_scale > 0


def test_frames_of_shards(tmp_path):
    pytest.importorskip("webdataset")
    from letstalk_core.data.footage.shards import Stretch, write_shard

    path = write_frames(tmp_path / "a.tar")
    source = ShardPictures(path, SIZE)
    assert len(source) == 2 and source.name(1) == "stretch 1 (a.tar)"
    image = source.read(1, np.random.default_rng(0))["image"].float()
    truth = torch.from_numpy(picture(1, SIZE, SIZE)).permute(2, 0, 1).float()
    assert min((image - truth).abs().mean(), (image - truth.flip(2)).abs().mean()) < 4
    with pytest.warns(UserWarning, match="enlarged to 64"):
        assert ShardPictures(path, 64).read(0, np.random.default_rng(0))["image"].shape == (3, 64, 64)
    about = dict(fps=25, context=2, audio_encoder="mel", autoencoder="mark", size=(32, 32))
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


# What is wrong is said ------------------------------------------------------------------------------------------------


def one_sentence(call, *said: str) -> None:
    with pytest.raises(InputError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    assert all(part in str(caught.value) for part in said) and "\n" not in str(caught.value), caught.value


def test_folders_that_cannot_be_used(tmp_path, tiny):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("text")
    (tmp_path / "texts" / "a.mp4").write_text("text")

    def run(folder, **more):
        return lambda: train(configured(tmp_path / "run", tiny, tmp_path / folder, **more))

    one_sentence(run("missing"), "missing is not a folder", "data_path")
    one_sentence(run("empty"), "There are no pictures in", "(0 other files)", ".png")
    one_sentence(run("texts"), "None of the 1 pictures", "a.png is damaged or no picture")
    one_sentence(run("missing", data="videos"), "is not a folder")
    one_sentence(run("texts", data="videos"), "None of the 1 videos", "a.mp4")
    one_sentence(run("empty", data="shards"), "no training data")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_configurations_that_cannot_be_used(tmp_path, tiny):
    data = write_pictures(tmp_path / "in", 2)

    def run(**more):
        return lambda: train(configured(tmp_path / "run", more.pop("start", tiny), data, **more))

    one_sentence(run(image_size=40), "image_size is 40", "multiple of 16")
    one_sentence(run(start=tmp_path / "none.safetensors"), "no autoencoder at")
    one_sentence(run(autoencoder="other.safetensors"), "give one of them")
    one_sentence(run(model={"image_size": 64}), "set image_size")
    one_sentence(run(gradient_checkpointing=True), "task transformer only")
    one_sentence(run(frozen="nothing"), "no parameter has such a name")
    one_sentence(run(avatar_people=0), "avatar_people is 0")
    transformer = ["preset=linear-S", f"data_path={data}"]
    one_sentence(lambda: load_config(None, [*transformer, "data=images"]), "only task autoencoder")
    one_sentence(lambda: load_config(None, [*transformer, "image_size=64"]), "model.image_size")
    one_sentence(lambda: load_config(None, [f"data_path={data}"]), "preset is ''")


def test_nothing_held_out_is_said(tmp_path, tiny):
    data = write_pictures(tmp_path / "in", 2)
    with pytest.warns(UserWarning, match="nothing is held out"):
        train(configured(tmp_path / "run", tiny, data, steps=1, held_out_share=0.1))
    assert log_of(tmp_path / "run", "held_out_psnr") == {}


def test_a_full_disk_leaves_the_file_of_before(tmp_path, tiny, monkeypatch):
    data = write_pictures(tmp_path / "in", 2)
    path = train(configured(tmp_path / "run", tiny, data, steps=2))
    before = path.read_bytes()

    def full(part, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training, "move_into_place", full)
        one_sentence(lambda: train(configured(tmp_path / "run", tiny, data, steps=4)), "cannot be written", "No space")
    assert path.read_bytes() == before and not list((tmp_path / "run").glob(".*.part"))
    assert content(train(configured(tmp_path / "run", tiny, data, steps=4)))[1]["trained_steps"] == "4"


# Footage --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_footage(tmp_path, shared):
    """The bundled model's autoencoder, of drawn people, learns a real face."""
    clips = sorted((shared / "media" / "clips").glob("W009*.mp4"))
    if not clips:
        pytest.skip("no clips in the shared folder")
    (tmp_path / "in").mkdir()
    for clip in clips:
        shutil.copyfile(clip, tmp_path / "in" / clip.name)
    bundled = Path(__file__).resolve().parents[1] / "weights" / "letstalk-avatar-128.safetensors"
    train(
        configured(
            tmp_path / "run", bundled, tmp_path / "in", data="videos", image_size=64, steps=20, batch_size=4,
            save_every=20, held_out_share=0.4, learning_rate=2e-4,
        )  # fmt: skip
    )  # fmt: skip
    error = log_of(tmp_path / "run", "mse")
    assert error[20] < 0.6 * error[1] and log_of(tmp_path / "run", "held_out_psnr")[20] > 25
