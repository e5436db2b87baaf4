"""What the parts of performance.py stand on: a clock, the model of the paper on random weights, and its inputs."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from letstalk_core.config import LetsTalkConfig
from letstalk_core.model.checkpoint import LetsTalkModel
from letstalk_core.presets import PAPER, PRESETS

SECONDS = 1.5  # that a measurement is repeated for, after WARM runs
WARM = 3


class Bench:
    """Parts on one device; each returns numbers by their names."""

    def __init__(self, device: torch.device, tiny: bool):
        self.device, self.tiny = device, tiny
        self.config = PRESETS["tiny"] if tiny else PAPER["linear-B"]
        self.side = 4 if tiny else 16  # of the latents
        self.half = torch.bfloat16

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds of one run, the median of many."""
        for _ in range(WARM):
            run()
        self.wait()
        took, end = [], time.perf_counter() + SECONDS
        while not took or time.perf_counter() < end:
            began = time.perf_counter()
            run()
            self.wait()
            took.append(time.perf_counter() - began)
        return float(np.median(took))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def model(self, config: LetsTalkConfig | None = None) -> LetsTalkModel:
        """Random weights whose gates are open."""
        torch.manual_seed(0)
        model = LetsTalkModel(config or self.config)
        for parameter in model.parameters():
            if parameter.abs().sum() == 0:
                nn.init.normal_(parameter, std=0.02)
        return model.to(self.device).eval().requires_grad_(False)

    def inputs(self, batch: int, side: int | None = None, config: LetsTalkConfig | None = None) -> dict[str, Tensor]:
        transformer, audio = (config or self.config).transformer, (config or self.config).audio
        side = side or self.side
        place = (transformer.latent_channels, side, side)
        shapes = {
            "latents": (batch, transformer.clip_frames, *place), "portrait": (batch, *place),
            "memory": (batch, transformer.memory_frames, *place),
            "audio_tokens": (batch, transformer.clip_frames, audio.tokens, audio.width),
        }  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        given = {name: torch.randn(shape, generator=generator).to(self.device) for name, shape in shapes.items()}
        return given | {"timesteps": torch.full((batch,), 500, device=self.device)}


def captured(transformer: nn.Module, given: dict[str, Tensor]) -> Callable[..., Tensor]:
    """The transformer as a CUDA graph of these very inputs."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            transformer(**given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = transformer(**given)

    def run(**_given: Tensor) -> Tensor:
        graph.replay()
        return output

    return run


def compiled(transformer: nn.Module) -> nn.Module:
    for block in transformer.blocks:
        block.compile()
    return transformer
