"""What `evaluate` says of clips beside real ones: right on controlled damage, the same twice, or refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from letstalk_core.cli import main
from letstalk_core.data.footage.shard_writer import Stretch, write_shard
from letstalk_core.data.preparation.syncnet import SyncNet
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.evaluation.clip_judges import Judges, picture_numbers, vectors_of
from letstalk_core.evaluation.clip_sets import ANOTHER, GENERATED, STILL, TRUTH, Clip, ClipSet, of_model, paired_folders
from letstalk_core.evaluation.comparison import compare
from letstalk_core.evaluation.comparison_report import markdown
from letstalk_core.evaluation.feature_networks import Networks, OnnxJudge
from letstalk_core.evaluation.held_out import held_out_pairs
from letstalk_core.evaluation.measure_table import MEASURES
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.video.writer import VideoWriter

from .test_driving import write_video as write_turned
from .test_feature_networks import write_onnx
from .tiny import write_tiny_checkpoint

SIZE, FRAMES, LATE = 128, 40, 4
needs_speech = pytest.mark.skipif(not available_engines(), reason="espeak-ng and flite are not installed")


@pytest.fixture(scope="module")
def people():
    """Two people who speak: frames uint8 [2,40,128,128,3] and waveforms."""
    pairs = list(held_out_pairs(2, FRAMES / 25, SIZE))
    return np.stack([pair.frames()[:FRAMES] for pair in pairs]), [pair.waveform for pair in pairs]


def blurred(frames, sigma):
    return gaussian_filter(frames, (0, sigma, sigma, 0))


def noisy(frames, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def jumping(frames):
    brighter = (np.arange(len(frames)) // 16 % 2)[:, None, None, None] * 20
    return np.clip(frames.astype(int) + brighter, 0, 255).astype(np.uint8)


def clip_set(clips):
    return ClipSet(
        [clip.name for clip in clips], list(clips[0].made), 25.0, (SIZE, SIZE), "not resized", 16,
        [lambda clip=clip: clip for clip in clips],
    )  # fmt: skip


@pytest.fixture(scope="module")
def damaged(people):
    frames, sounds = people
    clips = []
    for i in range(2):
        real = frames[i]
        made = {
            TRUTH: real,
            "blurred": blurred(real, 1.0),
            "more blurred": blurred(real, 2.5),
            "noisy": noisy(real, 12),
            "late": np.concatenate([real[:1].repeat(LATE, 0), real[:-LATE]]),
            "another's face": frames[1 - i],
            "jumping": jumping(real),
        }
        clips.append(Clip(f"clip {i}", real, made, 25.0, sounds[i]))
    return compare(clip_set(clips), Networks())[0]


@needs_speech
def test_the_truth_is_perfect(damaged):
    truth = damaged["rows"][TRUTH]
    assert truth["ssim"]["value"] == pytest.approx(1) and truth["psnr"]["value"] == pytest.approx(100)
    assert truth["mouth_r"]["value"] == pytest.approx(1) and truth["mouth_extent"]["value"] == pytest.approx(1)
    assert truth["lag"]["value"] == 0 and truth["blinks"] == truth["blinks_real"]
    assert truth["readings_frechet"]["value"] < 1e-9 and truth["judges_frechet"]["value"] < 1e-9


@needs_speech
@pytest.mark.parametrize(
    ("measure", "order"),  # from what it finds best to what it finds worst
    [
        ("ssim", (TRUTH, "blurred", "more blurred")),
        ("ssim", (TRUTH, "noisy", "another's face")),
        ("psnr", (TRUTH, "blurred", "more blurred", "another's face")),
        ("psnr", (TRUTH, "noisy")),
        ("judges_frechet", (TRUTH, "blurred", "more blurred")),
        ("judges_frechet", (TRUTH, "noisy")),
        ("readings_frechet", (TRUTH, "more blurred")),
        ("identity_distance", (TRUTH, "another's face")),
        ("mouth_r", (TRUTH, "late")),
        ("mouth_r", (TRUTH, "another's face")),
        ("mouth_r_points", (TRUTH, "late")),
        ("border_jump", (TRUTH, "jumping")),
    ],
)
def test_damage_makes_a_measure_worse(damaged, measure, order):
    values = [damaged["rows"][row][measure]["value"] for row in order]
    sign = {"+": -1, "-": 1}[MEASURES[measure].better]
    assert values == sorted(values, key=lambda value: sign * value) and len(set(values)) == len(values)


@needs_speech
def test_a_late_mouth_has_its_lag(damaged):
    assert damaged["rows"]["late"]["lag"]["value"] == LATE
    assert set(damaged["not_computed"]) == {name for name, measure in MEASURES.items() if measure.network}
    assert damaged["not_computed"]["fvd"] == "needs FILE (--i3d)"


def test_ssim_and_psnr_are_those_of_their_formulas():
    """Wang et al. 2004 by scipy's filters, mirrored at the edges, and the logarithm of the mean squared error."""
    rng = np.random.default_rng(0)
    real = gaussian_filter(rng.integers(0, 256, (2, 48, 48, 3)).astype(float), (0, 2, 2, 0))
    real = ((real - real.min()) / np.ptp(real) * 255).astype(np.uint8)
    made = noisy(real, 10)
    found = picture_numbers(made, real)
    a, b = (np.asarray(x, float) for x in (made, real))

    def mean(x):
        return gaussian_filter(x, (0, 1.5, 1.5, 0), truncate=3.5, mode="mirror")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    spread_a, spread_b, together = (
        mean(a * a) - mean(a) ** 2,
        mean(b * b) - mean(b) ** 2,
        mean(a * b) - mean(a) * mean(b),
    )
    index = (2 * mean(a) * mean(b) + c1) * (2 * together + c2)
    index /= (mean(a) ** 2 + mean(b) ** 2 + c1) * (spread_a + spread_b + c2)
    assert found["ssim"] == pytest.approx(index.mean(), abs=1e-4)
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / ((a - b) ** 2).mean()), abs=1e-3)


@needs_speech
def test_with_every_network_everything_is_computed(people, tmp_path):
    frames, sounds = people
    torch.manual_seed(0)
    face = OnnxJudge(write_onnx(tmp_path / "face.onnx", (3, 3)), from_signed=True)
    networks = Networks(
        inception=lambda video: video[:, :2, :2].reshape(len(video), -1).astype(np.float32),
        i3d=lambda video: video[::16, :2, :2].reshape(-1, 12).astype(np.float32),
        lpips=lambda made, real: np.abs(made.astype(float) - real).mean((1, 2, 3)),
        syncnet=SyncNet().eval(),
        identity=face,
        expression=face,
    )  # fmt: skip
    clips = []
    for i in range(2):
        real = frames[i, :20]
        clips.append(Clip(f"clip {i}", real, {GENERATED: real, "noisy": noisy(real, 25)}, 25.0, sounds[i][:12800]))
    report, _ = compare(clip_set(clips), networks)
    row, damaged = report["rows"][GENERATED], report["rows"]["noisy"]
    assert not report["not_computed"] and set(row) == set(MEASURES)
    for measure in ("fid", "fvd", "lpips", "e_fid"):
        assert damaged[measure]["value"] > max(row[measure]["value"], 1e-6), measure
    assert row["fid"]["value"] == row["fvd"]["value"] == row["lpips"]["value"] == 0
    assert row["identity"]["value"] == pytest.approx(1, abs=0.05) and row["sync_d"]["value"] > 0
    silent = [Clip(clip.name, clip.real, clip.made, 25.0, None) for clip in clips]
    assert "sound" in compare(clip_set(silent), networks)[0]["not_computed"]["sync_c"]


@needs_speech
def test_faces_are_aligned_before_they_are_compared(people, tmp_path):
    """Where a head lies in the picture makes no difference to who it is, even to a network that sees only places."""
    frames = people[0][0, :1]
    network = OnnxJudge(write_places_onnx(tmp_path / "face.onnx"), from_signed=True)
    moved = np.roll(frames, 9, 2)
    places = [Judges(Networks()).look(Clip("", video, {}, 25.0, None)).track.places for video in (frames, moved)]
    face, same, elsewhere = (
        vectors_of(network, video, at)[0]
        for video, at in ((frames, places[0]), (moved, places[1]), (moved, places[0]))  # the last one is not aligned
    )
    assert face @ same > 0.99 > 0.95 > face @ elsewhere


def write_places_onnx(path):
    """A network that makes pictures of 32 pixels smaller, [3,8,8], and gives them as they are."""
    import onnx
    from onnx import TensorProto, helper

    pool = helper.make_node("AveragePool", ["pictures"], ["small"], kernel_shape=[4, 4], strides=[4, 4])
    flat = helper.make_node("Flatten", ["small"], ["vectors"])
    given = helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["n", 3, 32, 32])
    made = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", 192])
    graph = helper.make_graph([pool, flat], "places", [given], [made])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@needs_speech
def test_folders_are_compared_and_twice_alike(people, tmp_path, capsys):
    frames, sounds = people
    for i in range(2):
        for folder, video in (("real", frames[i]), ("made", noisy(frames[i], 8))):
            write(tmp_path / folder / f"{i}.mp4", video, sound=sounds[i])
    options = ["--generated", str(tmp_path / "made"), "--real", str(tmp_path / "real"), "--rungs", "--size", "96"]
    texts = []
    for output in ("one", "two"):
        assert main(["evaluate", *options, "--seconds", "1", "--output", str(tmp_path / output)]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == (tmp_path / "one" / "report.md").read_text()
    assert "needs FILE (--inception)" in texts[0] and "| LetsTalk-L | 37.134 | 219.119 | 0.632 | 1.962 |" in texts[0]
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report == json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["size"] == [96, 96] and report["frames"] == 50 and "resized to 96x96" in report["resized"]
    assert list(report["rows"]) == [GENERATED, TRUTH, STILL]
    rungs = [report["rows"][row] for row in (TRUTH, GENERATED, STILL)]
    assert rungs[0]["mouth_r"]["value"] > rungs[1]["mouth_r"]["value"] > 0.5 > rungs[2]["mouth_r"]["value"]
    assert {"report.png", "clips.png"} <= {path.name for path in (tmp_path / "one").iterdir()}


@needs_speech
def test_a_model_is_measured_on_the_eval_split_of_shards(people, tmp_path, capsys):
    """A model that has not learned anything: faces that nobody finds are said, not refused."""
    model = write_tiny_checkpoint(tmp_path / "tiny.safetensors", image_size=64, default_steps=1, clip_frames=8)
    shards, stretches = tmp_path / "shards", stretches_of(people, LetsTalkPipeline.load(model, "cpu"))
    (shards / "eval").mkdir(parents=True)
    write_shard(shards / "eval" / "a.tar", stretches)
    write_shard(shards / "b.tar", stretches[:1])
    options = ["--model", str(model), "--data", str(shards), "--rungs", "--output", str(tmp_path / "out")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["evaluate", *options]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["clips"] == 2 and report["frames"] == 40 and report["size"] == [64, 64]
    assert list(report["rows"]) == [GENERATED, TRUTH, STILL, ANOTHER]
    assert report["rows"][TRUTH]["ssim"]["value"] > report["rows"][GENERATED]["ssim"]["value"]
    shutil.rmtree(shards / "eval")
    capsys.readouterr()
    assert main(["evaluate", *options]) == 1
    assert "1 stretches of at least 16 frames" in capsys.readouterr().err


@needs_speech
@pytest.mark.filterwarnings("ignore:Landmarks and identity")
def test_a_number_of_fewer_clips_says_so(people):
    frames, _ = people
    faceless = np.full_like(frames[1, :16], 128)
    made = [frames[0, :16], faceless]
    clips = [Clip(f"clip {i}", frames[i, :16], {GENERATED: made[i]}, 25.0, None) for i in range(2)]
    table = markdown({**compare(clip_set(clips), Networks())[0], "networks": {}}).splitlines()
    lines = {name: next(line for line in table if line.startswith(f"| {MEASURES[name].title} |")) for name in MEASURES}
    assert "), 1 of 2 clips |" in lines["mouth_r_points"] and "clips" not in lines["psnr"]


def stretches_of(people, pipeline, **fields):
    """The first 20 frames of each person as they go into a shard."""
    encoder, found = pipeline.config.audio.encoder, []
    for i in range(2):
        features = pipeline.encode_audio(torch.from_numpy(people[1][i])[None], 16000)[:20]
        found.append(Stretch(f"person {i}", 25.0, features, 0, encoder, people[0][i, :20], **fields))
    return found


@needs_speech
@pytest.mark.filterwarnings("ignore")  # a model that has not learned anything makes no faces
def test_the_sound_that_shards_keep_goes_to_syncnet(people, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "tiny.safetensors", image_size=64, default_steps=1, clip_frames=8)
    pipeline, sound = LetsTalkPipeline.load(model, "cpu"), people[1][0][: 20 * 640]
    networks = Networks(syncnet=SyncNet().eval())
    for folder in ("heard", "silent"):
        (tmp_path / folder).mkdir()
    write_shard(tmp_path / "heard" / "a.tar", stretches_of(people, pipeline, sound=sound))
    clips = of_model(pipeline, tmp_path / "heard", 0.64, 64, False)
    for clip in clips.clips():
        assert len(clip.waveform) == 16 * 640 and np.abs(clip.waveform - sound[: 16 * 640]).max() < 1e-4
    assert compare(clips, networks)[0]["rows"][GENERATED]["sync_d"]["clips"] == 2
    write_shard(tmp_path / "silent" / "a.tar", stretches_of(people, pipeline))
    silent, _ = compare(of_model(pipeline, tmp_path / "silent", 0.64, 64, False), networks)
    assert silent["not_computed"]["sync_d"] == "needs clips with sound"


def write(path, frames, fps=25.0, sound=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = None if sound is None else (torch.from_numpy(sound)[None], 16000)
    with VideoWriter(path, frames.shape[2], frames.shape[1], fps, audio) as writer:
        writer.write(frames)


GREY = np.full((20, 64, 64, 3), 128, np.uint8)
CASES = {  # of the folders' videos: generated, real
    "names": ({"a": GREY, "b": GREY}, {"a": GREY, "c": GREY}, "has no video named b"),
    "length": ({"a": GREY[:18], "b": GREY}, {"a": GREY, "b": GREY}, "cut both to the same length"),
    "short": ({"a": GREY[:9], "b": GREY}, {"a": GREY[:9], "b": GREY}, "has at least 16"),
    "size": ({"a": GREY[:, :32, :32], "b": GREY}, {"a": GREY, "b": GREY}, "give --size"),
    "sizes of clips": ({"a": GREY[:, :32], "b": GREY}, {"a": GREY[:, :32], "b": GREY}, "give clips of one frame rate"),
    "one clip": ({"a": GREY}, {"a": GREY}, "has 1 video"),
    "no face": ({"a": GREY, "b": GREY}, {"a": GREY, "b": GREY}, "shows no face"),
}


@pytest.mark.parametrize("case", CASES)
def test_folders_that_do_not_fit_are_refused(case, tmp_path, capsys):
    *sides, words = CASES[case]
    for folder, videos in zip(("made", "real"), sides, strict=True):
        for name, frames in videos.items():
            write(tmp_path / folder / f"{name}.mp4", frames)
    refused(tmp_path, capsys, words)


def test_videos_that_phones_stored_turned_are_compared_upright(tmp_path, capsys):
    tall, wide = np.full((20, 96, 64, 3), 128, np.uint8), np.full((20, 64, 96, 3), 128, np.uint8)
    for folder in ("made", "real"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        write_turned(tmp_path / "real" / f"{name}.mp4", wide, turned=90)
        write(tmp_path / "made" / f"{name}.mp4", tall)
    clips = paired_folders(tmp_path / "made", tmp_path / "real", None, None, False, 16)
    assert clips.size == (96, 64) and all(clip.real.shape == clip.made[GENERATED].shape for clip in clips.clips())
    for name in ("a", "b"):
        write(tmp_path / "made" / f"{name}.mp4", wide)  # the sides that are stored
    refused(tmp_path, capsys, "has 96x64 pixels and")


def test_other_rates_and_empty_folders_are_refused(tmp_path, capsys):
    for folder, fps in (("made", 25.0), ("real", 30.0)):
        for name in ("a", "b"):
            write(tmp_path / folder / f"{name}.mp4", GREY, fps)
    refused(tmp_path, capsys, "convert one to the other's rate")
    shutil.rmtree(tmp_path / "made")
    refused(tmp_path, capsys, "is not a folder")
    (tmp_path / "made").mkdir()
    refused(tmp_path, capsys, "There are no videos")


def refused(folder, capsys, words):
    options = ["--generated", str(folder / "made"), "--real", str(folder / "real"), "--output", str(folder / "out")]
    assert main(["evaluate", *options]) == 1
    error = capsys.readouterr().err.strip()
    assert words in error and len([line for line in error.splitlines() if not line.startswith("clips:")]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--generated", "x"], "go together"),
        (["--generated", "x", "--real", "y", "--model", "z"], "without --model"),
        (["--i3d", "x"], "--i3d is for real clips"),
        (["--clip-frames", "16"], "--clip-frames is for real clips"),
        (["--generated", "x", "--real", "y", "--pairs", "0"], "--pairs is for held-out puppets"),
        (["--generated", "x", "--real", "y", "--drawings"], "--drawings is for held-out puppets"),
        (["--data", "x", "--speech", "y"], "--speech is for held-out puppets"),
        (["--data", "x", "--memory-noise", "0.1"], "--memory-noise is for held-out puppets"),
        (["--data", "x", "--clip-frames", "8"], "--clip-frames is for --generated"),
        (["--generated", "x", "--real", "y", "--size", "3"], "choose 32 to 2048"),
        (["--generated", "x", "--real", "y", "--seconds", "0"], "choose 1 to 600"),
    ],
)
def test_options_that_do_not_go_together(options, words, tmp_path, capsys):
    assert main(["evaluate", "--output", str(tmp_path), *options]) == 1
    assert words in capsys.readouterr().err
