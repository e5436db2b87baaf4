"""What the engine takes, part by part: the model of the paper on random weights, and the bundled one.

    python benchmarks/performance.py [PART ...] [--device auto|cpu|cuda] [--tiny] [--json FILE]

Parts (default: those that fit the device):
    forward    linear-B at 512 px (latents 16x16x32, 16 + 2 frames), batch 1 and 4: eager, compiled, as a CUDA graph;
               share of the rate at which this device multiplies matrices, and error of bf16 against fp32
    profile    what a forward of it spends its time on (linear-S at 256 px on a CPU), in shares by kind of operation
    sampling   8 steps of the same model, frames a second with guidance 1 and 2
    guidance   time of a forward with guidance that leaves out cross-attention where there is no audio, over one that
               attends to zeros there; on linear-S at 256 px
    training   clips a second and peak memory, batch 4 and 8, and 64 clips of a small model
    activations  memory and work of linear-B and softmax-B at 512 px (batch 8 and 1, bf16 on a GPU; counted) by gradient
               checkpointing, and the time of two blocks on two frames over that without
    optimiser  a step of AdamW and of the average: plain, foreach, fused
    tokens     a forward of linear-B at 256 to 1024 px (linear-S on a CPU), and the exponent of time over tokens
    cpu        one forward of linear-S and linear-B on one thread, in CPU seconds
    int8       how many times as fast the linear layers in int8 make a forward, on this number of threads
    bundled    a second of video of the bundled model, by what it is spent on
    length     frames of the bundled model, sampled and decoded, by the video's length, and the exponent of time
    streams    frames a second of 1 to 8 videos at once, one batch
Nothing else should run beside it. --tiny: a small model, to try the script. Prints a table; --json writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench import captured, compiled
from benchmarks.stages import lengths, stages, streams
from benchmarks.training_parts import TrainingBench
from letstalk_core.model.acceleration import quantise
from letstalk_core.precision import choose_device
from letstalk_core.presets import PAPER, PRESETS
from letstalk_core.video.clips import ClipSampler, SamplingSettings

KINDS = {  # of operations, by what PyTorch's names of them hold
    "mm": "matrix products", "conv": "convolutions", "attention": "attention kernels", "softmax": "attention kernels",
    "layer_norm": "norms", "copy_": "copies", "::cat": "copies", "": "element by element",
}  # fmt: skip


class Parts(TrainingBench):
    """All parts."""

    @torch.inference_mode()
    def matmul_rate(self) -> float:
        """Operations a second of a large bf16 product."""
        size = 512 if self.device.type == "cpu" else 8192
        a = torch.randn(size, size, device=self.device, dtype=self.half)
        return 2 * size**3 / self.timed(lambda: a @ a)

    @torch.inference_mode()
    def forward(self) -> dict[str, float]:
        from torch.utils.flop_counter import FlopCounterMode

        exact, rate, found = self.model().transformer, self.matmul_rate(), {}
        for batch in (1, 4):
            given = self.inputs(batch)
            with FlopCounterMode(display=False) as counter:
                expected = exact(**given)
            half = self.model().transformer.to(self.half)
            ways = {"eager": half}
            if self.device.type == "cuda":
                ways["graph"] = captured(half, given)
                ways["compiled"] = compiled(self.model().transformer.to(self.half))
            for name, run in ways.items():
                seconds = self.timed(lambda run=run, given=given: run(**given))
                found[f"batch {batch}, {name}, ms"] = 1000 * seconds
                found[f"batch {batch}, {name}, share of the matmul rate"] = counter.get_total_flops() / seconds / rate
            error = (half(**given).float() - expected).norm() / expected.norm()
            found[f"batch {batch}, error of bf16"] = float(error)
        return found

    @torch.inference_mode()
    def profile(self) -> dict[str, float]:
        from torch.profiler import DeviceType, profile

        on_gpu = self.device.type == "cuda"
        config, side = (self.config, self.side) if on_gpu or self.tiny else (PAPER["linear-S"], 8)
        model, given = self.model(config).transformer, self.inputs(1, side, config)
        model.to(self.half if on_gpu else torch.float32)
        self.timed(lambda: model(**given))
        with profile() as profiler:
            model(**given)
            self.wait()
        took = dict.fromkeys(KINDS.values(), 0.0)
        for event in profiler.key_averages():
            if event.device_type == DeviceType.CPU:  # what its kernels took on a GPU is counted with the operation
                kind = next(kind for name, kind in KINDS.items() if name in event.key)
                took[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        return {f"{kind}, share of a forward": time / sum(took.values()) for kind, time in took.items()}

    @torch.inference_mode()
    def guidance(self) -> dict[str, float]:
        config = self.config if self.tiny else PAPER["linear-S"]
        model, given, ratios = self.model(config).transformer, self.inputs(2, self.side // 2, config), []
        portrait, audio = given.pop("portrait"), given.pop("audio_tokens")[:1]
        zeros = torch.cat([audio, torch.zeros_like(audio)])
        attending, leaving = (model.prepare(portrait, tokens) for tokens in (zeros, audio))
        for _ in range(5):  # in turn: machines are noisy
            with_zeros, without = (
                self.timed(lambda c=conditions: model(**given, conditions=c)) for conditions in (attending, leaving)
            )
            ratios.append(without / with_zeros)
        return {"time without over with zeros": float(np.median(ratios))}

    @torch.inference_mode()
    def sampling(self) -> dict[str, float]:
        model, config, found = self.model().to(self.half), self.config, {}
        audio, channels = config.audio, config.transformer.latent_channels
        features = torch.randn(config.transformer.clip_frames, audio.blocks, audio.channels)
        portrait = torch.randn(1, channels, self.side, self.side, device=self.device)
        for scale in (1.0, 2.0):
            settings = SamplingSettings(steps=8, sampler="dpm++", guidance_scale=scale)
            sampler = ClipSampler(model, portrait, features, settings)
            seconds = self.timed(lambda sampler=sampler: list(sampler.clips()))
            found[f"guidance {scale:g}, frames/s"] = config.transformer.clip_frames / seconds
        return found

    @torch.inference_mode()
    def tokens(self) -> dict[str, float]:
        on_gpu = self.device.type == "cuda"
        config = self.config if on_gpu or self.tiny else PAPER["linear-S"]
        model = self.model(config).transformer.to(self.half if on_gpu else torch.float32)
        sides = (4, 8, 16) if self.tiny else (8, 16, 24, 32)
        given = [self.inputs(1, side, config) for side in sides]
        took = [self.timed(lambda one=one: model(**one)) for one in given]
        found = {f"{32 * side} px, ms": 1000 * seconds for side, seconds in zip(sides, took, strict=True)}
        return found | {"exponent": exponent([side**2 for side in sides], took)}

    @torch.inference_mode()
    def cpu(self) -> dict[str, float]:
        threads, found = torch.get_num_threads(), {}
        torch.set_num_threads(1)
        jobs = [("S", 4), ("S", 8), ("B", 8), ("B", 16)]
        for name, side in jobs[: 1 if self.tiny else None]:
            config = PAPER[f"linear-{name}"]
            model, given = self.model(config).transformer, self.inputs(1, side, config)
            model(**given)
            began = time.process_time()
            model(**given)
            found[f"{name} {32 * side}, CPU s"] = time.process_time() - began
        torch.set_num_threads(threads)
        return found

    def bundled(self) -> dict[str, float]:
        return stages(self.device, self.timed)

    def length(self) -> dict[str, float]:
        took = lengths(self.device, (1, 2) if self.tiny else (4, 8, 16, 32, 64))
        found = {f"{seconds} s, ms a second": 1000 * time / seconds for seconds, time in took.items()}
        return found | {"exponent": exponent(list(took), list(took.values()))}

    def streams(self) -> dict[str, float]:
        return streams(self.device)

    @torch.inference_mode()
    def int8(self) -> dict[str, float]:
        found = {}
        for name, config, side in (("bundled", PRESETS["bundled"], 8), ("S 256", PAPER["linear-S"], 8)):
            model, given = self.model(config).transformer, self.inputs(1, side, config)
            if not config.transformer.memory_frames:
                del given["memory"]
            plain = self.timed(lambda model=model, given=given: model(**given))
            quantise(model)
            found[f"{name}, times as fast"] = plain / self.timed(lambda model=model, given=given: model(**given))
        return found


def exponent(amounts: list[float], took: list[float]) -> float:
    """By which power of the amount time grows."""
    return float(np.polyfit(np.log(amounts), np.log(took), 1)[0])


def main() -> None:
    of_gpus = ("forward", "profile", "sampling", "guidance", "training", "optimiser", "tokens", "bundled", "length")
    of_gpus += ("streams",)
    of_cpus = ("cpu", "profile", "guidance", "tokens", "int8", "bundled", "length", "streams")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=sorted({*of_gpus, *of_cpus, "activations"}) + [[]])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    parts = arguments.parts or (of_cpus if device.type == "cpu" else of_gpus)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    report = {"machine": machine, "torch": torch.__version__}
    print(f"{machine}, torch {torch.__version__}\n\n| part | | |\n|---|---|---|")
    for part in parts:
        report[part] = getattr(Parts(device, arguments.tiny), part)()
        for name, value in report[part].items():
            print(f"| {part} | {name} | {value:.4g} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
