"""What training takes: parts of performance.py."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.bench import Bench, compiled
from letstalk_core.config import LetsTalkConfig
from letstalk_core.model.transformer import GRADIENT_CHECKPOINTING
from letstalk_core.presets import PAPER, PRESETS
from letstalk_core.training.dry_run.counting import count_step
from letstalk_core.training.training_config import TransformerTraining
from letstalk_core.training.transformer_loss import Denoiser, TransformerLoss


class TrainingBench(Bench):
    """The parts of training."""

    def training(self) -> dict[str, float]:
        found = {}
        small = PRESETS["bundled"].with_changes(depth=8, width=256, heads=8, audio_width=256)
        jobs = [("batch 4", self.config, 4, self.side), ("batch 8", self.config, 8, self.side)]
        jobs += [] if self.tiny else [("small, 64 clips", small, 64, 8)]
        for name, config, batch, side in jobs:
            on_gpu = self.device.type == "cuda"
            for way in ("eager", "compiled", "selective", "compiled selective") if on_gpu else ("eager",):
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                seconds = self.timed(self.training_step(config, batch, side, way))
                found[f"{name}, {way}, clips/s"] = batch / seconds
                if on_gpu:
                    found[f"{name}, {way}, GB"] = torch.cuda.max_memory_allocated() / 1e9
        return found

    def training_step(self, config: LetsTalkConfig, batch: int, side: int, way: str) -> Callable[[], None]:
        model = self.model(config).train().requires_grad_(True)
        model.transformer.gradient_checkpointing = "selective" if "selective" in way else "none"
        if "compiled" in way:
            compiled(model.transformer)
        settings = TransformerTraining(
            run="none", preset="tiny", data="avatar", data_path="none", memory_pixel_noise=False
        )
        loss, denoiser = TransformerLoss(settings, config, None, self.device), Denoiser(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=self.device.type == "cuda")
        given, audio = self.inputs(batch, side, config), config.audio
        window = (batch, config.transformer.clip_frames, audio.window)
        example = {
            "clip": given["latents"], "portrait": given["portrait"], "memory": given["memory"],
            "features": torch.randn(*window, audio.blocks, audio.channels, device=self.device),
            "controls": torch.zeros(*window, len(config.departures.controls), device=self.device),
            "seed": list(range(batch)), "name": ["random"] * batch,
        }  # fmt: skip

        def step() -> None:
            with torch.autocast(self.device.type, self.half):
                found = loss(denoiser, example)
            optimizer.zero_grad(set_to_none=True)
            found.per_example.mean().backward()
            optimizer.step()

        return step

    def activations(self) -> dict[str, float]:
        found, clock = {}, time.process_time if self.device.type == "cpu" else time.perf_counter
        for name, batch, side in (("linear-B", 8, 16), ("softmax-B", 1, 64)):
            config = PAPER[name].with_changes(memory_frames=2)
            model = self.model(config.with_changes(depth=2, clip_frames=2)).train().requires_grad_(True)
            given, took = self.inputs(1, 16, model.config), {way: [] for way in GRADIENT_CHECKPOINTING}
            for way in list(took) * 6:  # in turn; the first of each is not counted
                model.transformer.gradient_checkpointing = way
                began = clock()
                with torch.autocast(self.device.type, self.half):
                    output = model.transformer(**given)
                output.square().mean().backward()
                self.wait()
                took[way].append(clock() - began)
            for way, seconds in took.items():
                plan = TransformerTraining(preset=name, data_path="none", batch_size=batch, gradient_checkpointing=way)
                work = count_step(plan, config, side, "cuda", self.half)
                found[f"{name}, {way}, GB"] = (work.activations + work.working) / 1e9
                found[f"{name}, {way}, TFLOP"] = work.flops / 1e12
                found[f"{name}, {way}, time"] = float(np.median(np.divide(seconds, took["none"])[1:]))
        return found

    def optimiser(self) -> dict[str, float]:
        from diffusers.training_utils import EMAModel

        model, found = self.model().requires_grad_(True), {}
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        for name in ("plain", "foreach", "fused"):
            chosen = {"foreach": name == "foreach", "fused": name == "fused"}
            found[f"AdamW {name}, ms"] = 1000 * self.timed(torch.optim.AdamW(parameters, **chosen).step)
        for name in ("plain", "foreach"):
            average = EMAModel(parameters, foreach=name == "foreach")
            found[f"average {name}, ms"] = 1000 * self.timed(lambda average=average: average.step(parameters))
        return found
