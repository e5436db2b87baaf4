"""Invariants of the transformer and the audio projection, on random weights."""

import pytest
import torch

from letstalk_core.config import LetsTalkConfig
from letstalk_core.model.attention import linear_attention, softmax_attention
from letstalk_core.model.audio_projection import AudioProjection, ResidualConvolution, window_features
from letstalk_core.model.transformer import LetsTalkTransformer
from letstalk_core.presets import PAPER, PRESETS

TINY = PRESETS["tiny"]
LINEAR = TINY.with_changes(width=32, heads=2, linear_head_width=16, audio_width=16)
SOFTMAX = LINEAR.with_changes(attention="softmax", patch_size=2)
VARIANTS = [
    pytest.param(base.with_changes(portrait_each_frame=each, add_portrait=added), id=f"{name}-{each}-{added}")
    for name, base in (("linear", LINEAR), ("softmax", SOFTMAX))
    for each in (True, False)
    for added in (True, False)
]


def random_model(config: LetsTalkConfig) -> LetsTalkTransformer:
    """A model whose gates are open: every weight random."""
    generator = torch.Generator().manual_seed(0)
    model = LetsTalkTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(config: LetsTalkConfig, frames=3, memory=2, rows=4, columns=6) -> dict:
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    channels = config.transformer.latent_channels
    return dict(
        latents=random(2, frames, channels, rows, columns),
        timesteps=torch.tensor([3, 700]),
        portrait=random(2, channels, rows, columns),
        audio_tokens=random(2, frames, config.audio.tokens, config.audio.width),
        memory=random(2, memory, channels, rows, columns) if memory else None,
    )


def test_weights_in_bfloat16_round_no_more_than_they_must():
    """The tokens between the blocks stay wide: rounded there, too, the error is 0.0115 (0.0122 for the paper's B)."""
    config = PAPER["linear-S"]
    torch.manual_seed(0)
    model = LetsTalkTransformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:  # open the gates
            torch.nn.init.normal_(parameter, std=0.02)
    given = inputs(config, frames=4)
    exact = model(**given)
    error = (model.bfloat16()(**given) - exact).norm() / exact.norm()
    assert error < 0.0075


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_fed_forward_a_few_at_a_time_are_the_same(monkeypatch, frames):
    model, given, fed = random_model(LINEAR), inputs(LINEAR, frames), []
    whole = model(**given)  # with gradients, as in training
    for block in model.blocks:
        block.feed_forward.expand.register_forward_hook(lambda _layer, given, _made: fed.append(given[0].shape[1]))
    monkeypatch.setattr("letstalk_core.model.layers.NUMBERS_AT_ONCE", 1)
    with torch.inference_mode():
        parts = model(**given)
    assert fed == {1: [1], 2: [2], 5: [3, 2]}[frames] * len(model.blocks)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_linear_attention_is_the_quadratic_formula():
    q, k, v = torch.randn(3, 2, 5, 11, 8, generator=torch.Generator().manual_seed(0))
    weights = q.relu() @ k.relu().transpose(-1, -2)
    torch.testing.assert_close(linear_attention(q, k, v), weights @ v / (weights.sum(-1, keepdim=True) + 1e-8))


def test_linear_attention_accumulates_in_float32():
    q, k, v = torch.randn(3, 1, 1, 300, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = linear_attention(q.float(), k.float(), v.float())
    with torch.autocast("cpu", torch.bfloat16):
        attended = linear_attention(q, k, v)
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended, exact.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("keys", [5, 100])
@pytest.mark.parametrize("batch", [4, 65535])
def test_softmax_attention_is_the_same_on_every_path(keys, batch, monkeypatch):
    monkeypatch.setattr("letstalk_core.model.attention.FUSED_BATCH", batch)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 4, 7, 8, generator=generator)
    k, v = torch.randn(2, 2, 3, 4, keys, 8, generator=generator)
    expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(softmax_attention(q, k, v), expected)


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize(("frames", "memory", "rows", "columns"), [(3, 2, 4, 6), (1, 0, 2, 2), (5, 1, 6, 4)])
def test_any_shape(config, frames, memory, rows, columns):
    given = inputs(config, frames, memory, rows, columns)
    with torch.no_grad():
        output = random_model(config)(given.pop("latents"), given.pop("timesteps"), **given)
    assert output.shape == (2, frames, config.output_channels, rows, columns)
    assert output.isfinite().all()


@pytest.mark.parametrize("config", VARIANTS)
def test_every_parameter_learns_once_the_gates_are_open(config):
    given = inputs(config)
    model = random_model(config)
    model(given.pop("latents"), given.pop("timesteps"), **given).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("config", [LINEAR, SOFTMAX, LINEAR.with_changes(portrait_each_frame=False)])
def test_a_fresh_model_adds_nothing_where_gates_are_zero(config):
    model = LetsTalkTransformer(config.with_changes(add_portrait=True)).eval()
    given = inputs(config)
    seen = []
    for block in model.blocks:
        block.spatial.register_forward_hook(lambda module, arguments, result: (result[0] + 100, result[1]))
        block.feed_forward.register_forward_hook(lambda module, arguments, result: result + 100)
    model.norm_out.register_forward_hook(lambda module, arguments, result: seen.append(arguments[0]))
    latents, timesteps = given.pop("latents"), given.pop("timesteps")
    with torch.no_grad():
        assert model(latents, timesteps, **given).abs().max() == 0
        given["portrait"] = given["portrait"] + 1  # reaches the frames only through the zeroed branches
        model(latents, timesteps, **given)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    assert seen[0].abs().max() < 50


@pytest.mark.parametrize("base", [LINEAR, SOFTMAX])
def test_one_set_of_portrait_tokens(base):
    """Shared tokens see only themselves, so they are the same in a clip of any content; frames still see them."""
    model = random_model(base.with_changes(portrait_each_frame=False))
    given, shared = inputs(base), []
    model.blocks[-1].spatial.register_forward_hook(lambda module, arguments, result: shared.append(result[1]))
    latents, timesteps = given.pop("latents"), given.pop("timesteps")
    with torch.no_grad():
        output = model(latents, timesteps, **given)
        model(latents + 1, timesteps, **given)
        given["portrait"] = given["portrait"] + 1
        changed = model(latents, timesteps, **given)
    assert shared[0].shape[1] == 1
    torch.testing.assert_close(shared[0], shared[1])
    assert (output - changed).abs().max() > 1e-4


@pytest.mark.parametrize("base", [LINEAR, SOFTMAX])
def test_shared_and_repeated_portrait_agree_in_the_first_attention(base):
    """Before any block has run both variants hold the same tokens, so frames receive the same from them."""
    results = []
    for each in (True, False):
        model, given = random_model(base.with_changes(portrait_each_frame=each)), inputs(base)
        model.blocks[0].spatial.register_forward_hook(lambda module, arguments, result: results.append(result[0]))
        with torch.no_grad():
            model(given.pop("latents"), given.pop("timesteps"), **given)
    torch.testing.assert_close(results[0][:, :, : results[1].shape[2]], results[1], rtol=1e-4, atol=1e-5)


def test_memory_comes_first_in_time():
    """A clip with its first frame moved to the memory gives the same for the frames that remain."""
    config = LINEAR.with_changes(depth=1)
    model, given = random_model(config), inputs(config, frames=4, memory=0)
    latents, tokens = given.pop("latents"), given.pop("audio_tokens")
    timesteps = given.pop("timesteps")
    given.pop("memory")
    with torch.no_grad():
        whole = model(latents, timesteps, audio_tokens=tokens, **given)
        rest = model(latents[:, 1:], timesteps, audio_tokens=tokens[:, 1:], memory=latents[:, :1], **given)
    torch.testing.assert_close(whole[:, 1:], rest)


def test_half_precision_weights():
    model, given = random_model(LINEAR).bfloat16(), inputs(LINEAR)
    with torch.no_grad():
        output = model(given.pop("latents"), given.pop("timesteps"), **given)
    assert output.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(latents=torch.zeros(2, 3, 5, 4, 6)), "latents are"),
        (dict(portrait=torch.zeros(1, 4, 4, 6)), "portrait is"),
        (dict(memory=torch.zeros(2, 2, 4, 4, 4)), "memory is"),
        (dict(timesteps=torch.tensor(3)), r"timesteps are \(\), not \(2,\)"),
        (dict(timesteps=torch.zeros(1)), r"timesteps are \(1,\), not \(2,\)"),
        (dict(audio_tokens=torch.zeros(1, 3, 8, 16)), r"audio_tokens are \(1, 3, 8, 16\), not \(2, 3, K, 16\)"),
        (dict(audio_tokens=torch.zeros(2, 1, 8, 16)), r"audio_tokens are \(2, 1, 8, 16\), not \(2, 3, K, 16\)"),
        (dict(audio_tokens=torch.zeros(2, 3, 8, 17)), r"audio_tokens are \(2, 3, 8, 17\), not \(2, 3, K, 16\)"),
        (dict(audio_tokens=torch.zeros(2, 3, 16)), r"audio_tokens are \(2, 3, 16\), not \(2, 3, K, 16\)"),
    ],
)
def test_wrong_shapes_are_named(change, sentence):
    given = {**inputs(LINEAR), **change}
    with pytest.raises(ValueError, match=sentence):
        LetsTalkTransformer(LINEAR)(given.pop("latents"), given.pop("timesteps"), **given)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("linear-S", 59.6), ("linear-B", 222.6), ("linear-L", 773.9), ("linear-XL", 1135.2),
        ("softmax-S", 52.1), ("softmax-B", 193.5), ("softmax-L", 671.2), ("softmax-XL", 983.9),
    ],
)  # fmt: skip
def test_parameter_counts_of_the_paper(name, millions):
    """The paper counts its stored positions too: 256 of the picture and one per frame of [memory; clip]."""
    config = PRESETS[name]
    shape = config.transformer
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in LetsTalkTransformer(config).parameters())
    frames = shape.clip_frames + (shape.memory_frames if shape.attention == "linear" else 0)
    assert round((count + (256 + frames) * shape.width) / 1e6, 1) == millions


def test_windows_are_clamped_at_the_ends():
    features = torch.arange(4.0)[:, None, None]
    windows = window_features(features, 5)
    assert windows.shape == (4, 5, 1, 1)
    assert windows[0].flatten().tolist() == [0, 0, 0, 1, 2]
    assert windows[3].flatten().tolist() == [1, 2, 3, 3, 3]
    with pytest.raises(ValueError, match="odd"):
        window_features(features, 4)


@pytest.mark.parametrize("encoder, blocks, channels", [("mel", 4, 80), ("whisper", 2, 48)])
@pytest.mark.parametrize("window", [5, 9, 13])
def test_convolutions_along_a_recording_equal_those_of_its_windows(encoder, blocks, channels, window):
    audio = dict(audio_encoder=encoder, audio_blocks=blocks, audio_channels=channels)
    config = TINY.with_changes(audio_convolutions=True, audio_window=window, **audio)
    torch.manual_seed(0)
    projection = AudioProjection(config)
    for module in projection.modules():
        if isinstance(module, ResidualConvolution):
            torch.nn.init.normal_(module.mix.weight, std=0.1)
    recording = torch.randn(2, 20, config.audio.blocks, config.audio.channels)
    along = projection.tokens(projection.window.along(recording))
    reach = window // 2
    windows = torch.stack([window_features(one, window)[reach : 20 - reach] for one in recording])
    torch.testing.assert_close(projection(windows), along, rtol=1e-4, atol=1e-5)
    assert along.shape == (2, 20 - 2 * reach, config.audio.tokens, config.audio.width)
    far = recording.clone()
    far[:, 0] += 1  # in the window of the first token frame alone
    changed = (projection.tokens(projection.window.along(far)) - along).abs().amax((0, 2, 3)) > 1e-6
    assert changed.tolist() == [True] + [False] * (19 - 2 * reach)


def test_convolutions_need_columns_in_time():
    with pytest.raises(ValueError, match="audio_convolutions needs whisper.*, not wav2vec2 with 12 in 5"):
        LetsTalkConfig().with_changes(audio_convolutions=True)


def test_control_token():
    """What is asked for changes one more token, and a control that is not asked for is no control at zero."""
    config = TINY.with_changes(controls=["eyelids", "yaw"])
    projection = AudioProjection(config)
    features = torch.randn(2, 3, 5, config.audio.blocks, config.audio.channels)
    free, unknown = projection(features), torch.full((2, 3, 5, 2), float("nan"))
    ahead = unknown.clone()
    ahead[..., 1] = 0
    turned = ahead + torch.tensor([0.0, 25.0])
    answers = [projection(features, controls) for controls in (ahead, turned)]
    assert free.shape == (2, 3, config.audio.tokens + 1, config.audio.width)
    torch.testing.assert_close(projection(features, unknown), free)
    for one, other in ((free, answers[0]), (free, answers[1]), answers):
        torch.testing.assert_close(one[:, :, :-1], other[:, :, :-1])
        assert (one[:, :, -1] - other[:, :, -1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="made without any"):
        AudioProjection(TINY)(features, unknown)
