"""Everything that decides a video."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..audio.dialogue import Lasting, seconds_of, together
from ..audio.encoder import FeatureStream
from ..audio.recording import Sound
from ..diffusion.samplers import Callback
from ..errors import InputError
from ..picture.cutout import Background
from ..picture.paste_back import PasteBack
from ..picture.portrait import Portrait
from ..pipeline import LetsTalkPipeline
from ..pixels import images_to_pixels
from ..video.clips import ClipSampler, SamplingSettings
from ..video.label import Label
from ..video.listening import listening, speech_activity
from ..video.marks import COMPOSITE, GENERATED
from ..video.memory import MemoryBank
from ..video.writer import VideoWriter

JOB_FORMAT = 4  # raised when the same inputs begin to give other frames, so that old segments are not gone on with
SEGMENT_SECONDS = 8.0  # about so much is lost by a crash at most; each begins with a key frame, which can be seen


@dataclass(frozen=True)
class Speaker:
    """A face and what it says.

    portrait: the crop that speaks. voice: its own sound. paste_back: puts each frame into the picture that the crop is
    from; None leaves the square as it is.
    """

    portrait: Portrait
    voice: Sound
    settings: SamplingSettings
    paste_back: PasteBack | None = None


@dataclass(frozen=True)
class VideoJob:
    """Everything that decides a video: who speaks what, and how it is sampled.

    speakers: several are faces of one picture, into which they are pasted back; each listens while another speaks.
    encoder: of the pictures, from video.file_format.encoder_of. side: of the square frames in pixels; None is as fine
    as the picture where they are pasted back, else the model's own. label: a text that is drawn into every frame.
    background: in place of the picture's own, for portraits whose person is cut out. InputError where several speakers
    are not pasted into the same picture.
    """

    pipeline: LetsTalkPipeline
    speakers: tuple[Speaker, ...]
    encoder: str = "x264"
    side: int | None = None
    label: str = ""
    background: Background | None = None

    def __post_init__(self):
        pastes = [speaker.paste_back for speaker in self.speakers]
        if len(pastes) > 1 and not all(paste and paste.shows(pastes[0].picture) for paste in pastes):
            raise InputError("Several speakers must be faces of one picture, in the whole of which they speak.")

    @functools.cached_property
    def recording(self) -> Sound:
        """The sound of the video."""
        return together([speaker.voice for speaker in self.speakers])

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
        first = self.speakers[0]
        return first.paste_back.portrait.original_size if first.paste_back else (self.side_of(first),) * 2

    def side_of(self, speaker: Speaker) -> int:
        """Of a speaker's square frames, in pixels."""
        if self.side is None and speaker.paste_back and speaker.portrait.detail is not None:
            return speaker.portrait.detail.shape[-1]
        return self.side or self.pipeline.config.image_size

    @property
    def source_type(self) -> str:
        """The digital source type that the video is marked with."""
        return COMPOSITE if self.speakers[0].paste_back else GENERATED

    @property
    def transparent(self) -> bool:
        """Do frames have an alpha channel?"""
        return self.background is not None and self.background.transparent

    @property
    def segment_frames(self) -> int:
        """Frames of a segment: those of a whole number of clips, so that it ends with a memory."""
        return max(1, round(SEGMENT_SECONDS * self.fps / self.clip_frames)) * self.clip_frames

    @functools.cached_property
    def features(self) -> tuple[FeatureStream, ...]:
        """The audio features of each speaker's voice, computed as they are needed, over the whole video."""
        voices = [speaker.voice for speaker in self.speakers]
        if len(voices) > 1:
            voices = [Lasting(voice, seconds_of(self.recording)) for voice in voices]
        return tuple(self.pipeline.stream_audio(voice) for voice in voices)

    @functools.cached_property
    def settings(self) -> tuple[SamplingSettings, ...]:
        """Those of each speaker, with what it does while others speak."""
        if len(self.speakers) == 1:
            return (self.speakers[0].settings,)
        spoken = [speech_activity(speaker.voice, self.fps, self.frames) for speaker in self.speakers]
        return tuple(self._listening(number, spoken) for number in range(len(spoken)))

    def _listening(self, number: int, spoken: list[np.ndarray]) -> SamplingSettings:
        speaker = self.speakers[number]
        others = [
            (1 if other.portrait.middle[0] > speaker.portrait.middle[0] else -1, activity)
            for other, activity in zip(self.speakers, spoken, strict=True)
            if other is not speaker
        ]
        known, settings = self.pipeline.config.departures.controls, speaker.settings
        asked = listening(settings.asked, known, settings.seed, spoken[number], others, self.fps)
        return dataclasses.replace(settings, asked=asked)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The digest of everything that decides the video, whatever the files are called.

        Versions are in it, too: another encoder's packets must not be joined with these.
        """
        decides = {
            "format": [JOB_FORMAT, torch.__version__, av.__version__, str(av.library_versions)],
            "models": self.pipeline.digest,
            "audio": [self.recording.digest, self.recording.rate, self.recording.channels],
            "speakers": [self._decides(speaker) for speaker in self.speakers],
            "encoder": self.encoder,
            "label": self.drawn_label and self.drawn_label.digest,
            "background": self.background and dataclasses.asdict(self.background),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def _decides(self, speaker: Speaker) -> list:
        pictures = (speaker.portrait.image, speaker.portrait.at(self.side_of(speaker)))
        pictures = [hashlib.sha256(image.contiguous().numpy()).hexdigest() for image in pictures]
        pasted = speaker.paste_back and speaker.paste_back.digest
        return [*pictures, self.side_of(speaker), speaker.voice.digest, dataclasses.asdict(speaker.settings), pasted]

    @functools.cached_property
    def drawn_label(self) -> Label | None:
        """What draws the label, if there is one; InputError where it does not fit."""
        return Label(self.label, *self.size) if self.label else None

    @functools.cached_property
    def decoders(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """For each speaker: latents [k,C,h,w] -> frames [k,3,H,W] in -1..1, on the pipeline's device."""
        return tuple(self.pipeline.decoder(speaker.portrait, self.side_of(speaker)) for speaker in self.speakers)

    def encode(self) -> Tensor:
        """The latents of the portraits [n,C,h,w], one for each speaker."""
        return torch.cat([self.pipeline.encode_portrait(speaker.portrait) for speaker in self.speakers])

    def chunks(
        self, portraits: Tensor, first: int, last: int, memory: MemoryBank | None, callback: Callback,
        steps: int | None = None,
    ) -> Iterator[tuple[list[Tensor], MemoryBank]]:  # fmt: skip
        """Yield frames first .. last - 1, a few at a time: each speaker's [k,3,H,W] in -1..1, and the memory of all.

        portraits: from `encode`. memory: of the last border of clips; None begins at the portraits. callback: after
        each step of one speaker's clip, counted over all speakers. steps: in place of the settings' own.
        """
        count, side = len(self.speakers), max(map(self.side_of, self.speakers))  # all are decoded in the same batches
        streams = []
        for number, settings in enumerate(self.settings):

            def stepped(step: int, steps: int, x0: Tensor, before: int = number) -> None:
                callback(before * steps + step, count * steps, x0)

            sampler = ClipSampler(
                self.pipeline.model, portraits[number, None], self.features[number],
                settings if steps is None else dataclasses.replace(settings, steps=steps), stepped,
                denoiser=self.pipeline.denoiser,
            )  # fmt: skip
            bank = memory and memory.of(number)
            streams.append(sampler.chunks(self.decoders[number], first, last, bank, side))
        for chunks in zip(*streams, strict=True):
            yield [chunk.frames for chunk in chunks], MemoryBank.joined([chunk.memory for chunk in chunks])

    def writer(self, path: Path, audio: Sound | tuple[Tensor, int] | None = None) -> VideoWriter:
        """What writes the video, or a part of it with its own audio, into a file."""
        return VideoWriter(
            path, *self.size, self.fps, audio, encoder=self.encoder, source_type=self.source_type,
            transparent=self.transparent,
        )  # fmt: skip

    def pixels(self, frames: list[Tensor]) -> Iterator[Tensor]:
        """Each speaker's frames [k,3,H,W] in -1..1 -> uint8 [n,H,W,3] on the CPU as they go into the file, some at a
        time; [n,H,W,4] where they are transparent."""
        if self.speakers[0].paste_back is None:
            made = iter((images_to_pixels(frames[0]).cpu(),))  # a quarter of the bytes travel
        else:  # a large picture sixteen times would fill the memory
            made = map(self._pasted, *(each.cpu().split(1) for each in frames))
        for pixels in made:
            if self.background:
                pixels = self.background.behind(pixels)
            yield self.drawn_label.draw(pixels) if self.drawn_label else pixels

    def _pasted(self, *frames: Tensor) -> Tensor:
        """The picture uint8 [1,H,W,3] with each speaker's frame [1,3,H,W] in it."""
        pixels = None
        for speaker, frame in zip(self.speakers, frames, strict=True):
            pixels = speaker.paste_back.pixels(frame, pixels)
        return pixels
