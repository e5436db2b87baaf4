"""Other backgrounds: a colour or none, behind a person whose matte moves with the head."""

import wave

import av
import cv2
import numpy as np
import pytest
import torch

from letstalk_core import cli
from letstalk_core.audio.recording import Recording
from letstalk_core.errors import InputError
from letstalk_core.files import ASSETS
from letstalk_core.picture.cutout import Background, opaque, person_of
from letstalk_core.picture.matte import cut_out, find_matte
from letstalk_core.picture.paste_back import PasteBack
from letstalk_core.picture.picture_file import read_image, read_with_alpha
from letstalk_core.picture.portrait import crop_portrait
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.pixels import images_to_pictures
from letstalk_core.render.job import Speaker, VideoJob
from letstalk_core.render.many import find_pairs
from letstalk_core.render.render import paste_into, render_video, write_video
from letstalk_core.video.clips import SamplingSettings
from letstalk_core.video.file_format import encoder_of
from letstalk_core.video.label import Label
from letstalk_core.video.reader import probe, read_video_frames
from letstalk_core.video.verify import verify_marks

from .media_files import tone, write_media
from .rendering import stopped
from .tiny import GUIDED_AUTOENCODER, write_tiny_checkpoint

SIDE = 96
COLOUR = (32, 64, 128)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> LetsTalkPipeline:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    kind = {"autoencoder_config": GUIDED_AUTOENCODER, "autoencoder": "portrait"}
    return LetsTalkPipeline.load(write_tiny_checkpoint(path, **kind), "cpu", "fp32")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> LetsTalkPipeline:
    return LetsTalkPipeline.load(write_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "p.safetensors"), "cpu")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return read_image(ASSETS / "portrait.jpg")


def disc(side: int = SIDE) -> np.ndarray:
    """A red disc that nothing is behind, [side,side,4]; what its transparent pixels hold is green."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    inside = (np.hypot(x, y) < 0.35 * side)[..., None]
    red, green = np.array([0.8, 0.2, 0.1, 1.0]), np.array([0.0, 1.0, 0.0, 0.0])
    return np.where(inside, red, green).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    cv2.imwrite(str(tmp_path / "me.png"), (disc()[..., [2, 1, 0, 3]] * 255).round().astype(np.uint8))
    write_media(tmp_path / "me.wav", tone(16000, 16000, 1), 16000)
    return tmp_path / "me.png", tmp_path / "me.wav"


def make(pipeline, files, output, background, **options) -> int:
    return write_video(pipeline, *files, output, face="none", background=background, **options)


def read_alpha(path) -> np.ndarray:
    """All frames of a .webm as uint8 [n,H,W,4]: ffmpeg's own decoder of VP9 passes over alpha, libvpx does not."""
    with av.open(str(path)) as container:
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        packets = list(container.demux(video=0))
        return np.stack([frame.to_ndarray(format="rgba") for each in packets for frame in decoder.decode(each)])


def _frames_of(path) -> np.ndarray:
    if path.is_file():
        return read_alpha(path)
    return np.stack([cv2.imread(str(picture), cv2.IMREAD_UNCHANGED) for picture in sorted(path.glob("*.png"))])


# The matte ------------------------------------------------------------------------------------------------------------


def test_the_person_of_a_photograph_is_found(photograph):
    matte = find_matte(photograph)
    height, width = matte.shape
    assert matte.dtype == np.float32 and matte.shape == photograph.shape[:2]
    assert not matte[: height // 8, : width // 8].any() and not matte[: height // 8, -width // 8 :].any()
    assert (matte[height // 2 : height // 2 + 40, width // 2 - 20 : width // 2 + 20] == 1).all()


def test_what_is_no_person_is_said_and_not_cut_to_pieces():
    for picture in (read_image(ASSETS / "drawing.png"), np.full((90, 90, 3), 0.5, np.float32)):
        with pytest.raises(InputError, match="cannot be told from the background"):
            person_of(picture)


def test_nothing_of_the_background_is_left_in_the_colours():
    """A grey person, half transparent at the edge, before a wall of pure green."""
    matte = cv2.blur(disc(384)[..., 3], (9, 9))
    picture = 0.5 * matte[..., None] + np.array([0.0, 1.0, 0.0], np.float32) * (1 - matte[..., None])
    person = cut_out(picture, matte)
    assert np.array_equal(person[..., 3], matte)
    assert np.abs(person[matte > 0.3][:, :3] - 0.5).max() < 0.12
    assert np.abs(person[matte == 0][:, :3] - 0.5).max() < 0.12


def test_a_picture_brings_its_own_matte(files):
    picture = read_with_alpha(files[0])
    person = person_of(picture)
    assert np.array_equal(person[..., 3], picture[..., 3])
    inside = picture[..., 3] > 0
    assert np.array_equal(person[inside][:, :3], picture[inside][:, :3])
    assert person[..., 1].max() < 0.25  # of the green, nothing


def test_a_matte_that_is_given_comes_first():
    given = np.zeros((SIDE, SIDE), np.float32)
    given[:, 40:] = 1
    assert np.array_equal(person_of(disc(), given)[..., 3], given)


def test_the_matte_moves_as_the_picture_does(tiny):
    """The tiny model's flow is nothing at first: a matte then stays as it is."""
    person = disc()
    portrait = crop_portrait(person[..., :3], tiny.config.image_size, "none").cut_out_of(person)
    frames = tiny.decoder(portrait, SIDE)(tiny.encode_portrait(portrait))
    assert frames.shape == (1, 4, SIDE, SIDE)
    moved = images_to_pictures(frames)[0, ..., 3]
    assert (moved - torch.from_numpy(person[..., 3])).abs().mean() < 0.02
    level = tiny.autoencoder.model.decoder.flow[-1]
    with torch.no_grad():
        level.bias[0] = -0.2
        aside = images_to_pictures(tiny.decoder(portrait, SIDE)(tiny.encode_portrait(portrait)))[0, ..., 3]
        level.bias[0] = 0
    middle = (torch.arange(SIDE) * aside.mean(0)).sum() / aside.mean(0).sum()
    assert middle > SIDE / 2 + 1  # read from the left, so moved to the right


def test_an_autoencoder_that_moves_nothing_is_said(plain, files, tmp_path):
    with pytest.raises(InputError, match="looks at the portrait"):
        make(plain, files, tmp_path / "a.webm", "transparent")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me.png", "me.wav"]


# What is behind -------------------------------------------------------------------------------------------------------


def test_backgrounds_are_named_as_in_css():
    assert Background.parse("keep") is None
    assert Background.parse("transparent").transparent
    assert Background.parse("#204080").colour == Background.parse("RGB(32, 64, 128)").colour == COLOUR
    assert Background.parse("white").colour == (255, 255, 255)
    with pytest.raises(InputError, match="'beach.*choose keep, transparent, or a colour"):
        Background.parse("beach")


def test_a_colour_lies_exactly_where_nobody_is():
    pixels = torch.zeros(1, 2, 2, 4, dtype=torch.uint8)
    pixels[0, 0, 0] = torch.tensor([200, 100, 50, 255], dtype=torch.uint8)
    pixels[0, 0, 1] = torch.tensor([200, 100, 50, 128], dtype=torch.uint8)
    over = Background(COLOUR).behind(pixels)[0]
    assert over[0, 0].tolist() == [200, 100, 50] and over[1, 1].tolist() == list(COLOUR)
    assert over[0, 1].tolist() == [116, 82, 89]
    assert Background(None).behind(pixels) is pixels
    assert opaque(pixels)[0, 1, 1].tolist() == [128, 128, 128]


def _job(pipeline, background, whole=False, **options) -> VideoJob:
    person, sound = disc(), torch.from_numpy(tone(11025, 16537, 2))
    portrait = crop_portrait(person[..., :3], pipeline.config.image_size, "none").cut_out_of(person)
    paste = paste_into(pipeline, person, portrait) if whole else None
    speaker = Speaker(portrait, Recording((sound, 11025)), SamplingSettings(), paste)
    return VideoJob(pipeline, (speaker,), background=background, **options)


@pytest.mark.parametrize("whole", [False, True])
def test_frames_have_the_colour_to_the_bit(tiny, whole):
    job = _job(tiny, Background(COLOUR), whole, side=None if whole else 80)
    frames = job.decoders[0](job.encode())
    pixels = torch.cat(list(job.pixels([frames])))
    assert pixels.shape == (1, job.size[1], job.size[0], 3)
    assert (pixels[0, :4] == torch.tensor(COLOUR, dtype=torch.uint8)).all()
    assert pixels[0, job.size[1] // 2, job.size[0] // 2, 0] > 100


def test_a_whole_picture_keeps_its_matte_where_nothing_moves(tiny):
    person = disc()
    portrait = crop_portrait(person[..., :3], tiny.config.image_size, "none").cut_out_of(person)
    paste = PasteBack(torch.from_numpy(person), portrait)
    assert torch.equal(paste(portrait.at(64)[None])[0], torch.from_numpy(person))


def test_the_background_decides_the_video(tiny):
    jobs = [_job(tiny, background) for background in (Background(COLOUR), Background((0, 0, 0)), Background(None))]
    assert len({job.fingerprint for job in jobs}) == 3


def test_a_label_covers_what_is_transparent():
    label, clear = Label("AI", 96, 64), torch.zeros(1, 64, 96, 4, dtype=torch.uint8)
    drawn = label.draw(clear.clone())
    white = label.draw(torch.full((1, 64, 96, 3), 255, dtype=torch.uint8))
    over_white = Background((255, 255, 255)).behind(drawn)
    assert drawn[0, 0, 0, 3] == 0 and drawn[..., 3].max() == 255
    assert (over_white.int() - white.int()).abs().max() <= 2


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_colour_in_an_mp4(tiny, files, tmp_path):
    make(tiny, files, tmp_path / "a.mp4", "#204080", size=128)
    corner = read_video_frames(tmp_path / "a.mp4")[:, :6, :6].astype(int)
    assert np.abs(corner - COLOUR).max() <= 3


@pytest.mark.parametrize("options", [{"size": 128}, {"full_picture": True}])
def test_a_transparent_webm(tiny, files, tmp_path, options):
    frames = make(tiny, files, tmp_path / "a.webm", "transparent", **options)
    info, pictures = probe(tmp_path / "a.webm"), read_alpha(tmp_path / "a.webm")
    assert info.frames == frames == len(pictures) and info.audio_rate == 48000
    middle = pictures.shape[1] // 2
    assert (pictures[:, :5, :5, 3] == 0).all() and (pictures[:, middle, middle, 3] > 250).all()
    lines, marked = verify_marks(tmp_path / "a.webm")
    assert marked and lines[0].startswith("tag: digital source type")


def test_an_opaque_webm(tiny, files, tmp_path):
    assert make(tiny, files, tmp_path / "a.webm", "keep") == probe(tmp_path / "a.webm").frames


def test_a_folder_of_pictures(tiny, files, tmp_path):
    frames = make(tiny, files, tmp_path / "talk", "transparent", label="AI")
    names = sorted(path.name for path in (tmp_path / "talk").iterdir())
    assert names == [*(f"{number:05d}.png" for number in range(frames)), "sound.wav"]
    picture = cv2.imread(str(tmp_path / "talk" / "00003.png"), cv2.IMREAD_UNCHANGED)
    assert picture.shape[2] == 4 and picture[0, 0, 3] == 0 and picture[32, 32, 3] == 255
    with wave.open(str(tmp_path / "talk" / "sound.wav")) as sound:
        assert sound.getnframes() == 16000 and sound.getframerate() == 16000
    for path in (tmp_path / "talk", tmp_path / "talk" / "00003.png"):
        lines, marked = verify_marks(path)
        assert marked and lines == ["XMP: digital source type trainedAlgorithmicMedia"]
    with pytest.raises(InputError, match="talk is not empty; give the name of a new one"):
        make(tiny, files, tmp_path / "talk", "transparent")


@pytest.mark.parametrize("name", ["a.webm", "a"])
def test_one_that_was_stopped_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setattr("letstalk_core.render.job.SEGMENT_SECONDS", 0.3)
    (tmp_path / "whole").mkdir()
    encoder = encoder_of(tmp_path / name, transparent=True)
    job = _job(tiny, Background(None), encoder=encoder)
    render_video(job, tmp_path / "whole" / name)
    stopped(job, tmp_path / name)
    render_video(_job(tiny, Background(None), encoder=encoder), tmp_path / name)
    made, whole = (_frames_of(path) for path in (tmp_path / name, tmp_path / "whole" / name))
    assert len(made) == job.frames and np.array_equal(made, whole)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "a.mp4",
            {"background": "transparent"},
            "cannot be transparent: H.264 .* name it .webm, or give",
        ),
        ("a.mkv", {"background": "transparent"}, "cannot be transparent"),
        ("a.png", {"background": "transparent"}, "does not end in .*all pictures go into a folder"),
        ("a.webm", {"background": "keep", "encoder": "nvenc"}, "nvenc makes H.264, and .webm holds VP9"),
        ("a", {"background": "keep", "encoder": "nvenc"}, "holds PNG pictures"),
        ("a.mp4", {"background": "#12"}, "choose keep, transparent, or a colour"),
        ("a.webm", {"background": "keep", "sign": ("k", "c")}, "cannot be signed: .* name it .mp4, or leave the sign"),
        ("no/where", {"background": "transparent"}, "no does not exist"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(tiny, files, tmp_path, name, options, sentence):
    pytest.importorskip("c2pa") if "sign" in options else None
    with pytest.raises(InputError, match=sentence):
        make(tiny, files, tmp_path / name, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me.png", "me.wav"]


def test_many_transparent_videos_are_webm(tiny, files, tmp_path):
    (pair,) = find_pairs(tmp_path, tmp_path / "made", ".webm")
    assert pair.output == tmp_path / "made" / "me.webm"


def test_on_the_command_line(capsys, files, tmp_path):
    out = tmp_path / "a.mp4"
    arguments = ["--portrait", str(files[0]), "--audio", str(files[1]), "--output", str(out)]
    assert cli.main(["generate", *arguments, "--face", "none", "--background", "transparent"]) == 1
    assert "cannot be transparent" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "link to nothing", "no name"])
def test_a_folder_that_cannot_be_one_is_said_before_the_first_frame(tiny, files, tmp_path, kind, monkeypatch):
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("mine")
    elif kind == "no name":
        monkeypatch.chdir(tmp_path)
        output = type(output)(".")
    else:
        output.symlink_to(tmp_path / "nowhere" / "out")
    with pytest.raises(InputError, match="is a file|does not exist|folder of their own"):
        make(tiny, files, output, "transparent")
    assert kind != "file" or output.read_text() == "mine"


def test_pictures_go_into_an_empty_folder_and_through_a_link(tiny, files, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    inode = (tmp_path / "there").stat().st_ino
    assert make(tiny, files, tmp_path / "link", "transparent") == 25
    assert (tmp_path / "there").stat().st_ino == inode and len(list((tmp_path / "there").glob("*.png"))) == 25
    assert (tmp_path / "link").is_symlink()


def test_pictures_of_an_odd_size_keep_it(tiny, files, tmp_path):
    make(tiny, files, tmp_path / "odd", "transparent", size=65)
    assert cv2.imread(str(tmp_path / "odd" / "00000.png"), cv2.IMREAD_UNCHANGED).shape == (65, 65, 4)
