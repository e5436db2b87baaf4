"""Everything that decides a video."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import torch
from torch import Tensor

from ..audio.encoder import FeatureStream
from ..audio.recording import Recording
from ..diffusion.samplers import Callback
from ..picture.paste_back import PasteBack
from ..picture.portrait import Portrait
from ..pipeline import LetsTalkPipeline
from ..pixels import images_to_pixels
from ..video.clips import ClipSampler, SamplingSettings
from ..video.label import Label
from ..video.marks import COMPOSITE, GENERATED

JOB_FORMAT = 3  # raised when the same inputs begin to give other frames, so that old segments are not gone on with
SEGMENT_SECONDS = 8.0  # about so much is lost by a crash at most; each begins with a key frame, which can be seen


@dataclass(frozen=True)
class VideoJob:
    """Everything that decides a video: who speaks what, and how it is sampled.

    portrait: the crop that speaks. paste_back: puts each frame into the picture that the crop is from; None leaves the
    square as it is. encoder: one of video.h264.ENCODERS. side: of the square frames in pixels; None is as fine as the
    picture where they are pasted back, else the model's own. label: a text that is drawn into every frame.
    """

    pipeline: LetsTalkPipeline
    portrait: Portrait
    recording: Recording
    settings: SamplingSettings
    paste_back: PasteBack | None = None
    encoder: str = "x264"
    side: int | None = None
    label: str = ""

    @property
    def frames(self) -> int:
        """How many frames the video has."""
        return self.recording.frames(self.fps)

    @property
    def fps(self) -> float:
        return self.pipeline.config.fps

    @property
    def clip_frames(self) -> int:
        """Frames of a clip, F."""
        return self.pipeline.config.transformer.clip_frames

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.paste_back.portrait.original_size if self.paste_back else (self.frame_side,) * 2

    @property
    def frame_side(self) -> int:
        """Of the square frames, in pixels."""
        if self.side is None and self.paste_back and self.portrait.detail is not None:
            return self.portrait.detail.shape[-1]
        return self.side or self.pipeline.config.image_size

    @property
    def source_type(self) -> str:
        """The digital source type that the video is marked with."""
        return COMPOSITE if self.paste_back else GENERATED

    @property
    def segment_frames(self) -> int:
        """Frames of a segment: those of a whole number of clips, so that it ends with a memory."""
        return max(1, round(SEGMENT_SECONDS * self.fps / self.clip_frames)) * self.clip_frames

    @functools.cached_property
    def features(self) -> FeatureStream:
        """The audio features of the recording, computed as they are needed."""
        return self.pipeline.stream_audio(self.recording)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The digest of everything that decides the video, whatever the files are called.

        Versions are in it, too: another encoder's packets must not be joined with these.
        """
        finest = self.portrait.at(self.frame_side)
        decides = {
            "format": [JOB_FORMAT, torch.__version__, av.__version__, str(av.library_versions)],
            "models": self.pipeline.digest,
            "portrait": hashlib.sha256(self.portrait.image.contiguous().numpy()).hexdigest(),
            "frames": [self.frame_side, hashlib.sha256(finest.contiguous().numpy()).hexdigest()],
            "audio": [self.recording.digest, self.recording.rate, self.recording.channels],
            "settings": dataclasses.asdict(self.settings),
            "picture": self.paste_back and self.paste_back.digest,
            "encoder": self.encoder,
            "label": self.drawn_label and self.drawn_label.digest,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def drawn_label(self) -> Label | None:
        """What draws the label, if there is one; InputError where it does not fit."""
        return Label(self.label, *self.size) if self.label else None

    @functools.cached_property
    def decode(self) -> Callable[[Tensor], Tensor]:
        """Latents [n,C,h,w] -> frames [n,3,H,W] in -1..1, on the pipeline's device."""
        return self.pipeline.decoder(self.portrait, self.frame_side)

    def sampler(self, portrait: Tensor, callback: Callback, settings: SamplingSettings | None = None) -> ClipSampler:
        """What makes the clips, from the portrait's latents [1,C,h,w]; settings: in place of the job's own."""
        pipeline, settings = self.pipeline, settings or self.settings
        return ClipSampler(pipeline.model, portrait, self.features, settings, callback, denoiser=pipeline.denoiser)

    def pixels(self, frames: Tensor) -> Iterator[Tensor]:
        """Frames [n,3,H,W] in -1..1 -> uint8 [n,H,W,3] on the CPU as they go into the file, some at a time."""
        if self.paste_back is None:
            made = iter((images_to_pixels(frames).cpu(),))  # a quarter of the bytes travel
        else:  # a large picture sixteen times would fill the memory
            made = (self.paste_back.pixels(frame) for frame in frames.cpu().split(1))
        for pixels in made:
            yield self.drawn_label.draw(pixels) if self.drawn_label else pixels
