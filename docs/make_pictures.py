"""Remakes the pictures of README and docs from the bundled model: python docs/make_pictures.py

demo.webp is the demo, frame for frame, two thirds as large; people.jpg people and a drawing who were held out and
speak, their portraits first; puppets.jpg twelve photographs as they are and at their controls' extremes; sharp.jpg
one frame at the model's own size, enlarged, and as large as the photograph; two.jpg two people who speak in turns;
expressions.jpg a word as sad, as usual and as smiling people say it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from letstalk_core import LetsTalkPipeline, SamplingSettings, write_video  # noqa: E402
from letstalk_core.audio.recording import read_audio  # noqa: E402
from letstalk_core.data.people.portraits import load_person  # noqa: E402
from letstalk_core.data.people.puppet import COLUMN, CONTROLS, Puppet  # noqa: E402
from letstalk_core.evaluation.report import generate_frames  # noqa: E402
from letstalk_core.picture.picture_file import read_image  # noqa: E402
from letstalk_core.pixels import images_to_pixels, pictures_to_pixels  # noqa: E402
from letstalk_core.video.clips import ClipSampler  # noqa: E402
from letstalk_core.video.controls import AskedFor  # noqa: E402
from letstalk_core.video.reader import read_video_frames  # noqa: E402

ASSETS = HERE.parent / "assets"
# Smiling, bearded, with glasses, turned, old, dark, in hats and scarves; those ending in 5 are held out.
TWELVE = (101, 112, 195, 37, 77, 5, 71, 107, 14, 122, 65, 145)
SPEAKERS = (5, 35, 105, 115, 145)  # held out
SHOWN = np.r_[0, 1:41:4]  # the portrait and ten frames
EXTREMES = (
    {}, {"open": 0.35, "width": 0.6, "teeth": 0.5}, {"open": 1.0, "teeth": 0.3},
    {"open": 0.3, "width": -0.8, "round": 1.0},
    {"open": 0.12, "teeth": 0.95, "tuck": 1.0}, {"open": 0.2, "smile": 1.0, "teeth": 0.5, "width": 0.6}, {"blink": 1.0},
    {"gaze_x": 1.0, "brow": 1.0, "widen": 1.0}, {"squint": 1.0, "smile": -0.6, "cheeks": 1.0}, {"yaw": 0.43},
    {"yaw": -0.43, "open": 0.6}, {"pitch": 0.27}, {"pitch": -0.27, "jaw": 1.0, "open": 0.3}, {"roll": 0.3},
    {"size": -0.2, "shift_x": 0.8, "open": 0.5}, {"size": 0.2, "shift_x": -0.4},
)  # fmt: skip
EXPRESSIONS, FEW = (-1.0, -0.5, 0.0, 0.5, 1.0), (65, 145, 105)  # what is asked for, and of whom
SAID = 16  # the frame that is shown
TURNS = (20, 95, 190)  # frames of the dialogue


def speak(
    pipeline: LetsTalkPipeline, picture: Path, start: float, seconds: float, asked: AskedFor | None = None
) -> np.ndarray:
    """Its portrait and the frames of the example speech from `start` on, uint8 [1 + F,256,256,3]."""
    waveform, rate = read_audio(ASSETS / "speech.wav")
    waveform = waveform.mean(0).numpy()[round(start * rate) : round((start + seconds) * rate)]
    portrait = pipeline.crop(read_image(picture)).image
    frames = generate_frames(pipeline, portrait, waveform, rate, SamplingSettings(asked=asked or AskedFor()))
    return np.concatenate([images_to_pixels(portrait[None]).numpy(), frames])


def puppet_sheet() -> Image.Image:
    """A row a person: the photograph, closed lips, then EXTREMES."""
    controls = np.zeros((len(EXTREMES), len(CONTROLS)), np.float32)
    for row, values in zip(controls, EXTREMES, strict=True):
        for name, value in values.items():
            row[COLUMN[name]] = value
    rows = []
    for number in TWELVE:
        puppet = Puppet(load_person(number), np.random.default_rng(number))
        frames = torch.cat([puppet.render(controls[:1], natural=True), puppet.render(controls)])
        rows.append(torch.nn.functional.interpolate(frames, (104, 104), mode="area"))
    sheet = rearrange(pictures_to_pixels(torch.stack(rows)), "people poses c h w -> (people h) (poses w) c")
    return Image.fromarray(sheet.numpy())


def sharp(pipeline: LetsTalkPipeline) -> Image.Image:
    """A frame of the example, decoded at the model's own size and at the photograph's."""
    portrait = pipeline.crop(read_image(ASSETS / "portrait.jpg"))
    waveform, rate = read_audio(ASSETS / "speech.wav", duration=1.5)
    sampler = ClipSampler(
        pipeline.model, pipeline.encode_portrait(portrait), pipeline.encode_audio(waveform, rate), SamplingSettings()
    )
    latents, side = list(sampler.clips())[-1].latents[-1:], portrait.detail.shape[-1]
    own, fine = (images_to_pixels(pipeline.decoder(portrait, size)(latents))[0].numpy() for size in (None, side))
    enlarged = Image.fromarray(own).resize((side, side), Image.Resampling.BICUBIC)
    return Image.fromarray(np.concatenate([np.asarray(enlarged), fine], 1))


def two(pipeline: LetsTalkPipeline) -> Image.Image:
    """Who speaks, and who listens, at three moments of the example's dialogue."""
    voices = {side: (ASSETS / "dialogue.flac", side) for side in ("left", "right")}
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "two.mp4"
        write_video(pipeline, ASSETS / "two.jpg", voices, video)
        frames = read_video_frames(video)[list(TURNS)]
    return Image.fromarray(np.concatenate([np.asarray(Image.fromarray(frame).reduce(2)) for frame in frames], 1))


def expressions(pipeline: LetsTalkPipeline) -> Image.Image:
    """A row a person, a column an expression that is asked for."""
    rows = [
        np.concatenate(
            [
                speak(pipeline, ASSETS / "people" / f"{number:03d}.jpg", 2.2, 1.0, AskedFor(0, 0, expression))[SAID]
                for expression in EXPRESSIONS
            ],
            1,
        )
        for number in FEW
    ]
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    puppet_sheet().save(HERE / "puppets.jpg", quality=84)
    pipeline = LetsTalkPipeline.load(device="cpu")  # from here on the bundled model is needed
    sharp(pipeline).save(HERE / "sharp.jpg", quality=88)
    two(pipeline).save(HERE / "two.jpg", quality=85)
    expressions(pipeline).save(HERE / "expressions.jpg", quality=85)
    speakers = [ASSETS / "people" / f"{number:03d}.jpg" for number in SPEAKERS] + [ASSETS / "drawing.png"]
    rows = [speak(pipeline, picture, 2.2, 1.6)[SHOWN, ::2, ::2] for picture in speakers]
    Image.fromarray(rearrange(np.stack(rows), "people frames h w c -> (people h) (frames w) c")).save(
        HERE / "people.jpg", quality=88
    )
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo.mp4"
        write_video(pipeline, ASSETS / "portrait.jpg", ASSETS / "speech.wav", demo, full_picture=True)
        pictures = [Image.fromarray(frame).resize((512, 512)) for frame in read_video_frames(demo)]
    pictures[0].save(
        HERE / "demo.webp", save_all=True, append_images=pictures[1:], duration=40, loop=0, quality=60, method=4
    )
