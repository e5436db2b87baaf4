"""Videos as large and as sharp as the picture allows: square ones of any size, and whole pictures that speak."""

import json

import cv2
import numpy as np
import pytest
import torch

from letstalk_core import cli
from letstalk_core.audio.recording import read_audio
from letstalk_core.errors import InputError
from letstalk_core.picture.paste_back import PasteBack, portrait_mask
from letstalk_core.picture.picture_file import read_image
from letstalk_core.picture.portrait import MOST_DETAIL, crop_portrait
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.pixels import images_to_pixels, pictures_to_images, pictures_to_pixels
from letstalk_core.render.render import write_video
from letstalk_core.video.clips import ClipSampler, SamplingSettings
from letstalk_core.video.controls import AskedFor
from letstalk_core.video.reader import probe, read_video_frames

from .media_files import tone, write_media
from .tiny import GUIDED_AUTOENCODER, write_tiny_checkpoint

NOISE = np.random.default_rng(0).random((700, 900, 3), np.float32)


@pytest.fixture(scope="module", params=["guided", "plain"])
def tiny(request, tmp_path_factory) -> LetsTalkPipeline:
    kind = {"autoencoder_config": GUIDED_AUTOENCODER, "autoencoder": "portrait"} if request.param == "guided" else {}
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return LetsTalkPipeline.load(write_tiny_checkpoint(path, **kind), "cpu", "fp32")


@pytest.fixture
def files(tmp_path):
    cv2.imwrite(str(tmp_path / "me.png"), (cv2.resize(NOISE[:6, :8], (401, 300)) * 255).astype(np.uint8))
    write_media(tmp_path / "me.wav", tone(16000, 16000, 1), 16000)
    return tmp_path / "me.png", tmp_path / "me.wav"


# Portraits ------------------------------------------------------------------------------------------------------------


def test_a_portrait_keeps_the_pixels_of_its_picture():
    portrait = crop_portrait(NOISE, 64, "none")
    assert portrait.detail.shape == (3, 700, 700)
    middle = pictures_to_images(NOISE[:, 100:800])
    assert torch.equal(portrait.detail, middle) and torch.equal(portrait.at(700), middle)
    assert torch.equal(portrait.at(64), portrait.image)
    assert portrait.at(2000).shape == (3, 2000, 2000) and portrait.at(2000).abs().max() <= 1


def test_detail_is_kept_where_there_is_any_and_not_without_end():
    small = crop_portrait(NOISE[:64, :64], 64, "none")
    assert small.detail is None and small.at(128).shape == (3, 128, 128)
    large = crop_portrait(np.repeat(np.repeat(NOISE, 2, 0), 2, 1), 64, "none")
    assert large.detail.shape == (3, MOST_DETAIL, MOST_DETAIL)


# Decoding -------------------------------------------------------------------------------------------------------------


def test_frames_of_any_size_show_the_same(tiny):
    portrait = crop_portrait(cv2.GaussianBlur(NOISE, (0, 0), 12), tiny.config.image_size, "none")
    latents = tiny.encode_portrait(portrait) + 0.1
    own = tiny.decoder(portrait)(latents)
    assert torch.equal(tiny.decoder(portrait, tiny.config.image_size)(latents), own)
    for side in (96, 200):
        frames = tiny.decoder(portrait, side)(latents)
        assert frames.shape == (1, 3, side, side)
        if tiny.autoencoder.guided:  # an untrained plain one paints noise, which does not survive resizing
            again = torch.nn.functional.interpolate(frames, own.shape[2:], mode="bicubic", antialias=True)
            assert (again - own).abs().mean() < 0.02


@pytest.fixture(scope="module")
def spoken(repository):
    """The bundled model's portrait, a photograph of 768 pixels, and latents of a second of it."""
    pipeline = LetsTalkPipeline.load(device="cpu")
    picture = read_image(repository / "assets" / "portrait.jpg")
    portrait = pipeline.crop(picture)
    waveform, rate = read_audio(repository / "assets" / "speech.wav", duration=1.2)
    settings = SamplingSettings(asked=AskedFor(head_motion=1.5))
    features = pipeline.encode_audio(waveform, rate)
    sampler = ClipSampler(pipeline.model, pipeline.encode_portrait(portrait), features, settings)
    return pipeline, picture, portrait, torch.cat([clip.latents for clip in sampler.clips()])[4::8]


def fineness(images: torch.Tensor) -> float:
    """How much of images differs from neighbours; twice the size halves it for one that is only enlarged."""
    return float((images[..., 1:] - images[..., :-1]).abs().mean())


def test_what_moves_is_as_sharp_as_the_photograph(spoken):
    pipeline, _, portrait, latents = spoken
    side = portrait.detail.shape[-1]
    assert side > 1.3 * pipeline.config.image_size
    own, fine = pipeline.decoder(portrait)(latents), pipeline.decoder(portrait, side)(latents)
    enlarged = torch.nn.functional.interpolate(own, (side, side), mode="bicubic")
    again = torch.nn.functional.interpolate(fine, own.shape[2:], mode="bicubic", antialias=True)
    assert (again - own).abs().mean() < 3 / 127.5  # the same faces
    assert fineness(fine) > 0.75 * fineness(portrait.detail[None])  # what is read between pixels is a little softer
    assert fineness(fine) > 1.2 * fineness(enlarged)


# Whole pictures -------------------------------------------------------------------------------------------------------


def test_nothing_of_the_picture_changes_outside_the_face(spoken):
    pipeline, picture, portrait, latents = spoken
    reconstruction = pipeline.decoder(portrait)(pipeline.encode_portrait(portrait))[0]
    paste = PasteBack(torch.from_numpy(picture), portrait, reconstruction)
    frames = pipeline.decoder(portrait, portrait.detail.shape[-1])(latents)
    pixels, original = paste.pixels(frames), pictures_to_pixels(torch.from_numpy(picture))
    outside = portrait_mask(portrait) == 0
    assert torch.equal(pixels[:, outside], original[outside].expand(len(pixels), -1, -1))
    border = (portrait_mask(portrait) > 0) & (portrait_mask(portrait) < 0.1)
    assert (pixels[:, border].float() - original[border].float()).abs().mean() < 1.0
    assert (pixels.float() - original.float()).abs().max() > 60  # and a mouth has opened


def test_pixels_are_those_of_the_picture_pasted_into(spoken):
    _, picture, portrait, _ = spoken
    paste = PasteBack(torch.from_numpy(picture), portrait)
    frames = portrait.image.roll(5, 1).expand(2, -1, -1, -1)
    assert torch.equal(paste.pixels(frames), pictures_to_pixels(paste(frames)))


@pytest.mark.parametrize("size", [64, 500])
def test_a_square_video_of_a_size(tiny, files, tmp_path, size):
    write_video(tiny, *files, tmp_path / "a.mp4", face="none", size=size, max_seconds=0.5)
    found = probe(tmp_path / "a.mp4")
    assert (found.width, found.height, found.frames) == (size, size, 13)


def test_a_whole_picture(tiny, files, tmp_path):
    write_video(tiny, *files, tmp_path / "a.mp4", face="none", full_picture=True, max_seconds=0.5)
    found = probe(tmp_path / "a.mp4")
    assert (found.width, found.height, found.frames) == (402, 300, 13)
    frames, picture = read_video_frames(tmp_path / "a.mp4"), cv2.imread(str(files[0]))[..., ::-1]
    side = np.abs(frames[:, :, :40].astype(int) - picture[:, :40].astype(int)).mean()  # beside the square
    assert side < 0.2 * np.abs(frames[:, :, :40].astype(int) - picture[:, 40:80].astype(int)).mean()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 63}, "63 pixels; choose one between 64 and 1024"),
        ({"size": 1025}, "1025 pixels; choose one between"),
        ({"size": 256, "full_picture": True}, "the whole picture has its own"),
    ],
)
def test_sizes_that_cannot_be_had(tiny, files, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        write_video(tiny, *files, tmp_path / "a.mp4", face="none", **options)
    assert not (tmp_path / "a.mp4").exists()


def test_on_the_command_line(files, tmp_path, capsys):
    model = write_tiny_checkpoint(
        tmp_path / "tiny.safetensors", autoencoder_config=GUIDED_AUTOENCODER, autoencoder="portrait"
    )
    command = [
        "generate",
        "--portrait",
        str(files[0]),
        "--audio",
        str(files[1]),
        "--model",
        str(model),
        "--face",
        "none",
    ]
    command += ["--max-seconds", "0.3", "--output", str(tmp_path / "a.mp4")]
    assert cli.main([*command, "--size", "200"]) == 0 and probe(tmp_path / "a.mp4").width == 200
    assert cli.main([*command, "--full-picture"]) == 0 and probe(tmp_path / "a.mp4").width == 402
    assert cli.main([*command, "--full-picture", "--size", "200"]) == 1
    assert "the whole picture has its own" in capsys.readouterr().err


def test_a_video_of_another_size_is_another_video(tiny, files):
    from letstalk_core.audio.recording import Recording
    from letstalk_core.render.job import Speaker, VideoJob

    portrait, recording = tiny.crop(read_image(files[0]), "none"), Recording(files[1])
    speakers = (Speaker(portrait, recording, SamplingSettings()),)
    jobs = [VideoJob(tiny, speakers, side=side) for side in (None, 64, 100, 200)]
    assert tiny.config.image_size == 64
    assert jobs[0].fingerprint == jobs[1].fingerprint
    assert len({job.fingerprint for job in jobs}) == 3
    assert json.dumps([job.size for job in jobs]) == "[[64, 64], [64, 64], [100, 100], [200, 200]]"
    assert images_to_pixels(jobs[3].decoders[0](tiny.encode_portrait(portrait))).shape == (1, 200, 200, 3)
