"""What one batch of a training computes and holds, counted without computing it.

The real modules run on fake tensors: shapes, types and lifetimes are those of a training, there are no numbers in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from ...config import LetsTalkConfig
from ...model import attention
from ...model.checkpoint import LetsTalkModel
from ...model.layers import grid_positions, time_positions
from ...model.lora import inject_adapters
from ...picture.autoencoder import build_autoencoder
from ..build import freeze
from ..training_config import TransformerTraining
from ..transformer_loss import Denoiser

ENCODED_AT_ONCE = 16  # frames: Autoencoder.encode's chunk
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of accelerate's precisions
aten = torch.ops.aten


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; block: of one block of the transformer."""

    transformer: int
    audio_projection: int
    adapters: int
    trained: int
    block: int

    @property
    def all(self) -> int:
        return self.transformer + self.audio_projection + self.adapters


@dataclass(frozen=True)
class Work:
    """What one batch takes on one device: FLOPs forward and backward (a multiplication and an addition are two), and
    bytes.

    activations: what the forward pass keeps for the backward pass, besides copies: the weights in 16 bits. working:
    the most that is held beside both at any moment.
    """

    flops: int
    activations: int = 0
    copies: int = 0
    working: int = 0


def count_parameters(config: TransformerTraining, model_config: LetsTalkConfig) -> Parameters:
    """The parameters of the model that a training would train, without making their values."""
    model = _build(config, model_config)
    adapters = _count(parameter for name, parameter in model.named_parameters() if ".lora_" in name)
    audio = _count(p for name, p in model.audio_projection.named_parameters() if ".lora_" not in name)
    return Parameters(
        transformer=_count(model.parameters()) - adapters - audio,
        audio_projection=audio,
        adapters=adapters,
        trained=_count(parameter for parameter in model.parameters() if parameter.requires_grad),
        block=_count(model.transformer.blocks[0].parameters()),
    )


def _count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _build(config: TransformerTraining, model_config: LetsTalkConfig) -> LetsTalkModel:
    """The model as training prepares it (build.build_model), on the meta device."""
    with torch.device("meta"):
        model = LetsTalkModel(model_config).train()
        model.transformer.gradient_checkpointing = config.gradient_checkpointing
        if config.lora_rank:
            inject_adapters(model, config.lora_rank, config.lora_rank)
        else:
            freeze(model, config.frozen)
    return model


def count_step(
    config: TransformerTraining, model_config: LetsTalkConfig, latent_side: int, kind: str, dtype: torch.dtype
) -> Work:
    """One batch through Denoiser and back, on a "cuda" or "cpu" device with autocast to dtype (float32: none).

    A deep model is counted with one and with two blocks: every further block is like the second. Where names of blocks
    decide what is trained it is counted whole.
    """
    depth = model_config.transformer.depth

    def count(blocks: int) -> Work:
        return _count_batch(config, model_config.with_changes(depth=blocks), latent_side, kind, dtype)

    if depth <= 2 or config.frozen:
        return count(depth)
    one, two = dataclasses.asdict(count(1)), dataclasses.asdict(count(2))
    whole = {name: one[name] + (depth - 1) * (two[name] - one[name]) for name in one}
    return Work(**whole | {"working": max(whole["working"], two["working"])})  # what one block alone needs, two do not


def _count_batch(config: TransformerTraining, model_config: LetsTalkConfig, side: int, kind: str, dtype) -> Work:
    denoiser = Denoiser(_build(config, model_config))
    with _pretend(kind, dtype):
        _put_fakes(denoiser)
        trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        inputs = denoiser_inputs(model_config, config.batch_size, side)
        watch = Watch(denoiser.parameters(), [*inputs, *(parameter.grad for parameter in trained)])
        with watch:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                output = denoiser(*inputs)
            held, copies = watch.held - output.untyped_storage().nbytes(), watch.copies
            torch.autograd.backward(output, torch.empty_like(output))
    return Work(watch.flops, held - copies, copies, watch.peak - held)


def denoiser_inputs(config: LetsTalkConfig, batch: int, side: int) -> list[Tensor | None]:
    """What Denoiser.forward takes: zeros and ones in the shapes of a batch, latents of `side` x `side`."""
    frames, remembered = config.transformer.clip_frames, config.transformer.memory_frames
    latents = torch.zeros(batch, frames, config.transformer.latent_channels, side, side)
    memory = latents.new_zeros(batch, remembered, *latents.shape[2:]) if remembered else None
    window = latents.new_zeros(batch, frames, config.audio.window)
    features = window[..., None, None].expand(-1, -1, -1, config.audio.blocks, config.audio.channels).contiguous()
    names, ones = config.departures.controls, latents.new_ones(batch)
    controls = window[..., None].expand(*window.shape, len(names)) if names else None
    return [latents, ones, latents[:, 0].clone(), memory, features, controls, ones.clone()]


def count_encoding(autoencoder: dict, images: int, size: int, kind: str, dtype: torch.dtype) -> Work:
    """Encoding images of size pixels, some at a time, as training does; working: the most that it holds."""
    if not images:
        return Work(0)
    with torch.device("meta"):
        encoder = build_autoencoder(autoencoder).eval()
    if kind == "cuda" and dtype == torch.bfloat16:
        encoder.to(dtype)
    with _pretend(kind, dtype), torch.no_grad():
        _put_fakes(encoder)
        some = torch.empty(min(images, ENCODED_AT_ONCE), 3, size, size)
        watch = Watch(encoder.parameters(), [some])
        with watch, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            encoder.encode(some)
        whole = images * some[0].nbytes * 3  # all images, with noise, and in the encoder's type
    return Work(watch.flops * images // len(some), working=watch.peak + whole)


class Watch(TorchDispatchMode):
    """FLOPs, and bytes of the tensors that live, each storage once, besides the weights and others that are known.

    held: bytes now; peak: the most; copies: of what is held, copies of weights in another type. (torch's own
    FlopCounterMode keeps alive what gradient checkpointing computes again, so only its formulas are used.)
    """

    def __init__(self, weights=(), others=()):
        super().__init__()
        self.flops = self.held = self.peak = self.copies = 0
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self._seen = self._weights | {x.untyped_storage()._cdata for x in others if x is not None}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        formula = FLOP_FORMULAS.get(function.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        of_weight = function is aten._to_copy.default and args[0].untyped_storage()._cdata in self._weights
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._seen:
                self._add(tensor.untyped_storage(), of_weight)
        self.peak = max(self.peak, self.held)
        return result

    def _add(self, storage: torch.UntypedStorage, of_weight: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.held += size
        self.copies += size * of_weight
        weakref.finalize(storage, self._remove, key, size, of_weight)

    def _remove(self, key: int, size: int, of_weight: bool) -> None:
        self._seen.discard(key)  # another storage may get this address
        self.held -= size
        self.copies -= size * of_weight


@contextlib.contextmanager
def _pretend(kind: str, dtype: torch.dtype):
    """Inside, tensors are fake. They say that they are on the CPU, as fake CUDA needs a card to be there for backward;
    what a card does otherwise is put in its place."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    cached = (grid_positions, time_positions)
    for function in cached:  # real and fake tensors do not mix
        function.cache_clear()
    try:
        with contextlib.ExitStack() as stack:
            if kind == "cuda":
                stack.enter_context(_replaced(attention, "PLAIN_KEYS", 0))
                if dtype != torch.float32:  # CUDA's autocast, unlike the CPU's, computes norms in float32
                    for name in ("layer_norm", "group_norm"):
                        stack.enter_context(_replaced(functional, name, _in_float32(getattr(functional, name))))
            stack.enter_context(FakeTensorMode())
            yield
    finally:
        for function in cached:
            function.cache_clear()


def _put_fakes(module: nn.Module) -> None:
    """Fake tensors in place of a module's parameters and buffers on the meta device."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            fake = torch.empty(value.shape, dtype=value.dtype)
            part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in part.named_buffers(recurse=False):
            part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def _in_float32(function):
    def call(*args, **kwargs):
        return function(*(x.float() if isinstance(x, Tensor) else x for x in args), **kwargs)

    return call


@contextlib.contextmanager
def _replaced(module, name: str, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _convolution_backward(grad, x, weight, bias, stride, padding, dilation, transposed, *others, out_shape=None) -> int:
    """torch's own formula takes a depthwise convolution for a full one."""
    wanted = others[-1]  # gradients of input, weight, bias
    outputs = math.prod(x if transposed else grad)
    return 2 * outputs * math.prod(weight[1:]) * (bool(wanted[0]) + bool(wanted[1]))


def _attention(q, k, v, *others, out_shape=None, **named) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad, q, k, v, *others, out_shape=None, **named) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


# torch's, and those that it lacks or has wrong.
FLOP_FORMULAS = {
    **flop_registry,
    aten.convolution_backward: shape_wrapper(_convolution_backward),
    aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
}
