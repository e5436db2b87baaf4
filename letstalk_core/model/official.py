"""From a checkpoint in the official layout (a .ckpt of the research code) to one self-describing file.

The layout: a dictionary with the state dicts `model`, `ema` (preferred) and `audioproj`. Most of the configuration is
read off the shapes. It is opened with weights_only: a pickle that would run code is refused, never executed.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from ..config import AudioConfig, LetsTalkConfig
from ..errors import CheckpointError
from ..presets import PAPER
from ..weights import fill_strictly, some_of
from .checkpoint import PARTS, LetsTalkModel, check_readable, save_checkpoint
from .layers import grid_positions, time_positions

# Autoencoder, scaling factor and pixels per latent, by latent channels: the official layout does not name them.
AUTOENCODERS = {32: ("dc-ae", 0.41407, 32), 4: ("sd-vae", 0.18215, 8)}

# Official key -> ours, first match in each table; applied to whole dotted parts.
OFFICIAL_TRANSFORMER = [
    (r"^x_embedder\.proj\.", "patch_embedding."),
    (r"^t_embedder\.mlp\.", "time_embedding."),
    (r"^final_layer\.adaLN_modulation\.1\.", "modulation_out."),
    (r"^final_layer\.linear\.", "linear_out."),
    (r"^(blocks\.\d+)\.adaLN_modulation\.1\.", r"\1.modulation."),
    (r"^(blocks\.\d+)\.temporal_norm1\.", r"\1.temporal.norm."),
    (r"^(blocks\.\d+)\.temporal_attn\.qkv\.", r"\1.temporal.qkv."),
    (r"^(blocks\.\d+)\.temporal_attn\.proj\.", r"\1.temporal.out."),
    (r"^(blocks\.\d+)\.temporal_fc\.", r"\1.temporal.mix."),
    (r"^(blocks\.\d+)\.cross_attn\.q_proj\.", r"\1.cross.audio.query."),
    (r"^(blocks\.\d+)\.cross_attn\.k_proj\.", r"\1.cross.audio.key."),
    (r"^(blocks\.\d+)\.cross_attn\.v_proj\.", r"\1.cross.audio.value."),
    (r"^(blocks\.\d+)\.cross_attn\.proj\.", r"\1.cross.audio.out."),
    (r"^(blocks\.\d+)\.attn\.qkv\.", r"\1.spatial.qkv."),
    (r"^(blocks\.\d+)\.attn\.proj\.", r"\1.spatial.out."),
    (r"^(blocks\.\d+)\.mlp\.(inverted_conv\.conv|fc1)\.", r"\1.feed_forward.expand."),
    (r"^(blocks\.\d+)\.mlp\.depth_conv\.conv\.", r"\1.feed_forward.depthwise."),
    (r"^(blocks\.\d+)\.mlp\.(point_conv\.conv|fc2)\.", r"\1.feed_forward.contract."),
]
OFFICIAL_AUDIO = [
    (r"^proj1\.", "window.first."),
    (r"^proj2\.", "window.second."),
    (r"^proj3\.", "third."),
    (r"^norm\.", "norm."),
]
# How torch.load names what weights_only refuses; other text after "GLOBAL" comes from bytes that are no pickle.
UNSUPPORTED_GLOBAL = re.compile(r"GLOBAL ([A-Za-z_][\w.]*) (?:was|whose)")
OFFICIAL_POSITIONS = ("pos_embed", "temp_embed", "long_temp_embed")


def convert_checkpoint(
    source: str | Path, target: str | Path, *, dtype: torch.dtype | None = torch.float32, **options: int | None
) -> LetsTalkConfig:
    """Convert an official checkpoint to one file of ours, and return its configuration.

    options: those of read_official, which says what is refused. Raises CheckpointError for the target that is the
    source, too.
    """
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise CheckpointError(f"{source} is both the file to convert and the one to write; choose another target")
    model = read_official(source, **options)
    save_checkpoint(target, model, dtype=dtype, notes={"converted_from": Path(source).name})
    return model.config


def read_official(
    source: str | Path,
    *,
    num_heads: int | None = None,
    memory_frames: int | None = None,
    clip_frames: int | None = None,
    audio_blocks: int | None = None,
    audio_channels: int | None = None,
) -> LetsTalkModel:
    """The model in an official checkpoint, on the CPU, its weights as they are stored.

    The options say what shapes do not: the heads (known for the paper's S, B, L and XL), how a row of time positions
    divides into memory and clip (memory is 2 frames in the models with memory), and how the audio features divide into
    blocks and channels (12 x 768 for wav2vec2-base). Raises CheckpointError where the file is not such a checkpoint, an
    option is needed, or an option contradicts it.
    """
    given = dict(num_heads=num_heads, clip_frames=clip_frames, audio_blocks=audio_blocks, audio_channels=audio_channels)
    for name, value in given.items():
        if value is not None and value < 1:
            raise CheckpointError(f"{name} is {value}, less than 1")
    state, audio = _official_states(source)
    positions = {key: state.pop(key) for key in OFFICIAL_POSITIONS if key in state}
    state, audio = _renamed(state, OFFICIAL_TRANSFORMER, source), _renamed(audio, OFFICIAL_AUDIO, source)
    try:
        shapes = _transformer_shapes(state, num_heads)
        frames = _frames(positions, memory_frames, clip_frames)
        tokens = _audio_shapes(audio, state, audio_blocks, audio_channels)
        pictures = _pictures(shapes, positions)
        config = LetsTalkConfig().with_changes(**shapes, **frames, **tokens, **pictures)
        _check_positions(positions, config)
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    with torch.device("meta"):
        model = LetsTalkModel(config)
    for name, tensors in zip(PARTS, (state, audio), strict=True):
        wanted = getattr(model, name).state_dict()
        tensors = {key: _as_linear(tensor, wanted.get(key)) for key, tensor in tensors.items()}
        fill_strictly(getattr(model, name), tensors, f"{source}: {name}")
    return model


def _official_states(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The transformer's state dict (`ema` if there is one) and the audio projection's."""
    check_readable(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling bytes that are no pickle can raise anything
        if refused := UNSUPPORTED_GLOBAL.search(str(error)):
            raise CheckpointError(
                f"{path}: holds more than tensors ({refused[1]}), and loading that could run code, so it is refused"
            ) from None
        raise CheckpointError(f"{path}: damaged or not a PyTorch checkpoint ({type(error).__name__})") from None
    if not isinstance(content, dict) or not ({"model", "ema"} & content.keys()):
        raise CheckpointError(f"{path}: not in the official layout, which has 'model' or 'ema' and 'audioproj'")
    if "audioproj" not in content:
        raise CheckpointError(f"{path}: 'audioproj', the audio projection, is missing")
    both = content.get("ema") or content.get("model"), content["audioproj"]
    for state in both:
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise CheckpointError(f"{path}: a state dict holds something else than tensors")
    return tuple({key.removeprefix("module."): value for key, value in state.items()} for state in both)


def _renamed(state: dict[str, Tensor], table: list[tuple[str, str]], path: str | Path) -> dict[str, Tensor]:
    renamed, unknown = {}, []
    for key, tensor in state.items():
        ours = next((re.sub(old, new, key) for old, new in table if re.match(old, key)), None)
        unknown += [key] if ours is None else []
        renamed[ours] = tensor
    if unknown:
        raise CheckpointError(f"{path}: keys that the official layout does not have: {some_of(unknown)}")
    return renamed


def _as_linear(tensor: Tensor, wanted: Tensor | None) -> Tensor:
    """A 1x1 convolution's weight [out,in,1,1] as that of the Linear which we use."""
    if wanted is not None and tensor.ndim == 4 and wanted.ndim == 2 and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)
    return tensor


def _transformer_shapes(state: dict[str, Tensor], num_heads: int | None) -> dict:
    """Everything about the transformer that its shapes say, and the heads, by the configuration's flat names."""
    width, channels, patch, _ = state["patch_embedding.weight"].shape
    depth = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=-1)
    linear = "blocks.0.feed_forward.depthwise.weight" in state
    hidden = state["blocks.0.feed_forward.expand.weight"].shape[0]
    if num_heads is None:
        variants = [preset.transformer for preset in PAPER.values()]
        known = {(variant.depth, variant.width): variant.heads for variant in variants}
        if (depth, width) not in known:
            raise ValueError(f"depth {depth} and width {width} are no variant of the paper: num_heads must be given")
        num_heads = known[depth, width]
    outputs = state["linear_out.weight"].shape[0]
    if outputs not in (patch * patch * channels, 2 * patch * patch * channels):
        raise ValueError(f"{outputs} outputs do not fit {channels} latent channels in patches of {patch}")
    return dict(
        depth=depth,
        width=width,
        heads=num_heads,
        attention="linear" if linear else "softmax",
        mlp_ratio=hidden / width / (2 if linear else 1),
        latent_channels=channels,
        patch_size=patch,
        learn_variance=outputs == 2 * patch * patch * channels,
    )


def _frames(positions: dict[str, Tensor], memory_frames: int | None, clip_frames: int | None) -> dict:
    """Memory and clip frames: `temp_embed` has the clip alone, `long_temp_embed` both."""
    if "long_temp_embed" in positions:
        total = positions["long_temp_embed"].shape[1]
        if memory_frames is None:
            memory_frames = 2 if clip_frames is None else total - clip_frames
    else:
        total = positions["temp_embed"].shape[1]
        memory_frames = memory_frames or 0
    clip_frames = total - memory_frames if clip_frames is None else clip_frames
    if memory_frames + clip_frames != total or clip_frames < 1 or ("temp_embed" in positions and memory_frames > 0):
        raise ValueError(f"{memory_frames} memory and {clip_frames} clip frames contradict its {total} time positions")
    return dict(memory_frames=memory_frames, clip_frames=clip_frames)


def _audio_shapes(
    audio: dict[str, Tensor], state: dict[str, Tensor], audio_blocks: int | None, audio_channels: int | None
) -> dict:
    """The audio projection's sizes; a window of 5 frames is the layout's own."""
    hidden, inputs = audio["window.first.weight"].shape
    width = audio["norm.weight"].shape[0]
    if state["blocks.0.cross.audio.key.weight"].shape[1] != width:
        keys = state["blocks.0.cross.audio.key.weight"].shape[1]
        raise ValueError(f"the audio projection makes tokens of {width}, the transformer takes {keys}")
    window = AudioConfig.window
    features = inputs // window
    if audio_blocks is None and audio_channels is None:
        audio_blocks, audio_channels = AudioConfig.blocks, AudioConfig.channels
        if audio_blocks * audio_channels * window != inputs:
            raise ValueError(
                f"{inputs} audio inputs are not {window} x 12 x 768: audio_blocks or audio_channels is needed"
            )
    audio_blocks = features // audio_channels if audio_blocks is None else audio_blocks
    audio_channels = features // audio_blocks if audio_channels is None else audio_channels
    if window * audio_blocks * audio_channels != inputs:
        raise ValueError(
            f"{window} frames x {audio_blocks} blocks x {audio_channels} channels contradict its {inputs} audio inputs"
        )
    return dict(
        audio_window=window,
        audio_blocks=audio_blocks,
        audio_channels=audio_channels,
        audio_hidden=hidden,
        audio_tokens=audio["third.weight"].shape[0] // width,
        audio_width=width,
        audio_encoder="wav2vec2",
    )


def _pictures(shapes: dict, positions: dict[str, Tensor]) -> dict:
    """The autoencoder, known by its latent channels, and the side of the square pictures in pixels."""
    channels = shapes["latent_channels"]
    if channels not in AUTOENCODERS:
        raise ValueError(f"no autoencoder is known for latents of {channels} channels (known: {sorted(AUTOENCODERS)})")
    name, scale, pixels = AUTOENCODERS[channels]
    side = math.isqrt(positions["pos_embed"].shape[1])
    return dict(
        autoencoder=name,
        latent_scale=scale,
        image_size=side * shapes["patch_size"] * pixels,
        default_steps=250,
        default_sampler="ddpm",
    )


def _check_positions(positions: dict[str, Tensor], config: LetsTalkConfig) -> None:
    """The stored positions must be the fixed ones that we compute: others would be silently lost."""
    place = dict(device=torch.device("cpu"), dtype=torch.float32)
    side, transformer = math.isqrt(positions["pos_embed"].shape[1]), config.transformer
    width, clip, memory = transformer.width, transformer.clip_frames, transformer.memory_frames
    computed = {
        "pos_embed": grid_positions(side, side, width, **place),
        "temp_embed": time_positions(clip, width, **place)[:, 0],
        "long_temp_embed": time_positions(memory + clip, width, **place)[:, 0],
    }
    for key, stored in positions.items():
        if stored[0].shape != computed[key].shape or not torch.allclose(stored[0].float(), computed[key], atol=0.01):
            raise ValueError(f"{key} is not the fixed sin-cos positions of {tuple(computed[key].shape)}")
