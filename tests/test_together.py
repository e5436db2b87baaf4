"""Several videos at once: calls of threads as one batch, batches of files, and what goes wrong with some of them."""

import dataclasses
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from letstalk_core import cli
from letstalk_core.errors import InputError
from letstalk_core.model.together import Together
from letstalk_core.picture.portrait import Portrait
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.render.many import Pair, find_pairs, write_videos
from letstalk_core.render.render import write_video
from letstalk_core.video.reader import probe, read_video_frames

from .media_files import write_media
from .rendering import StopAt
from .tiny import write_tiny_checkpoint

RATE = 16000


class Counted:
    """Twice its input; remembers the sizes of the batches, and fails beyond `most`."""

    def __init__(self, most=10**9):
        self.sizes, self.most = [], most

    def __call__(self, x, *, more=None, factor=2.0):
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("too many")
        self.sizes.append(len(x))
        return factor * x if more is None else factor * x + more[0]


def in_threads(calls):
    """The answers of functions that are all called at the same time."""
    ready = threading.Barrier(len(calls))

    def call(function):
        ready.wait()
        return function()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call, function) for function in calls]]


def test_calls_of_threads_are_one_batch_and_each_gets_its_own_answer(monkeypatch):
    monkeypatch.setattr("letstalk_core.model.together.PATIENCE", 10.0)  # however late a thread is
    function = Counted()
    together = Together(function, 4)
    given = [torch.full((2, 3), float(i)) for i in range(4)]
    answers = in_threads([lambda x=x: together(x, more=(x,)) for x in given])
    assert function.sizes == [8]
    assert all(torch.equal(answer, 3 * x) for answer, x in zip(answers, given, strict=True))


def test_only_calls_of_one_kind_go_together(monkeypatch):
    monkeypatch.setattr("letstalk_core.model.together.PATIENCE", 0.5)
    function = Counted()
    together = Together(function, 2)
    calls = [
        lambda: together(torch.ones(1, 3)), lambda: together(torch.ones(1, 4)),
        lambda: together(torch.ones(1, 3), factor=3.0), lambda: together(torch.ones(1, 3).double()),
        lambda: together(torch.ones(1, 3), more=(torch.ones(1, 3),)), lambda: together(torch.ones(1, 3)),
    ]  # fmt: skip
    answers = in_threads(calls)
    assert sorted(function.sizes) == [1, 1, 1, 1, 2]
    assert [float(answer[0, 0]) for answer in answers] == [2, 2, 3, 2, 3, 2]


def test_no_batch_is_larger_than_asked_for():
    function = Counted()
    together = Together(function, 3)
    answers = in_threads([lambda i=i: together(torch.full((1, 1), float(i))) for i in range(8)])
    assert [float(answer) for answer in answers] == [2.0 * i for i in range(8)]
    assert sum(function.sizes) == 8 and max(function.sizes) <= 3


def test_where_memory_is_short_fewer_go_together(monkeypatch):
    monkeypatch.setattr("letstalk_core.model.together.PATIENCE", 10.0)
    function = Counted(most=2)
    together = Together(function, 8)
    with pytest.warns(UserWarning, match="does not hold 8 videos at once; going on with 4"):
        answers = in_threads([lambda i=i: together(torch.full((1, 1), float(i))) for i in range(8)])
    assert [float(answer) for answer in answers] == [2.0 * i for i in range(8)]
    assert together.most == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_threads([lambda: together(torch.ones(1, 1)) for _ in range(2)])
    function.most = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        together(torch.ones(1, 1))


def test_an_error_reaches_all_who_wait(monkeypatch):
    monkeypatch.setattr("letstalk_core.model.together.PATIENCE", 10.0)

    def fails(x):
        raise ValueError("no")

    together = Together(fails, 3)

    def call():
        with pytest.raises(ValueError, match="no"):
            together(torch.ones(1))
        return True

    assert all(in_threads([call] * 3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", memory_frames=2)


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return LetsTalkPipeline.load(checkpoint, "cpu", "fp32")


def sound(seed, seconds=1.0):
    return 0.1 * torch.randn(1, int(RATE * seconds), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_streams_at_once_have_the_frames_of_each_alone(pipeline, guidance, monkeypatch):
    from letstalk_core.video.clips import SamplingSettings

    monkeypatch.setattr("letstalk_core.model.together.PATIENCE", 0.2)
    size, sizes = pipeline.config.image_size, []
    settings = SamplingSettings(guidance_scale=guidance)

    def frames(seed):
        image = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        portrait = Portrait(image, np.eye(2, 3), (size, size))
        return torch.cat(list(pipeline.stream(portrait, sound(seed).split(400, 1), RATE, settings)))

    alone = [frames(seed) for seed in range(3)]
    with pipeline.together(3):
        inner = pipeline.denoiser.function
        pipeline.denoiser.function = lambda x, t, **named: sizes.append(len(x)) or inner(x, t, **named)
        at_once = in_threads([lambda seed=seed: frames(seed) for seed in range(3)])
    assert pipeline.denoiser is pipeline.model.transformer
    assert max(sizes) == 3 * (1 if guidance == 1 else 2)
    for one, other in zip(alone, at_once, strict=True):
        assert (one.int() - other.int()).abs().max() <= 1  # larger products add up in another order
    assert not torch.equal(alone[0], alone[1])


@pytest.fixture
def batch(tmp_path):
    """A folder of three pairs, the last with a picture that is none, and files that belong to no pair."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number, name in enumerate(("anna", "ben", "zoe")):
        picture = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), picture)
        write_media(folder / f"{name}.wav", sound(number).numpy(), RATE)
    (folder / "zoe.png").write_bytes(b"no picture")
    (folder / "alone.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    return folder


def test_pairs_of_a_folder_and_of_a_table(batch, tmp_path):
    output = tmp_path / "out"
    pairs = find_pairs(batch, output)
    assert [pair.output for pair in pairs] == [output / f"{name}.mp4" for name in ("anna", "ben", "zoe")]
    assert pairs[0] == Pair(batch / "anna.png", batch / "anna.wav", output / "anna.mp4")
    table = batch / "pairs.csv"
    table.write_text("portrait,audio,output\nanna.png,ben.wav,a.mp4\nanna.png,anna.wav,\n", encoding="utf-8-sig")
    assert find_pairs(table, output) == [
        Pair(batch / "anna.png", batch / "ben.wav", output / "a.mp4"),
        Pair(batch / "anna.png", batch / "anna.wav", output / "anna_anna.mp4"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("portrait,audio\na.png,\n", "Line 2 .* its columns are portrait, audio, output"),
        ("picture,audio\na.png,b.wav\n", "Line 2"),
        ("portrait,audio,output\na.png,b.wav,c.mp4,d\n", "Line 2"),
        ("portrait,audio,output\na.png,b.wav,c.mp4\nd.png,b.wav,c.mp4\n", "Two videos .* different names"),
        ("portrait,audio\n", "nothing to make"),
        ("", "nothing to make"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, text, sentence):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        find_pairs(tmp_path / "pairs.csv", tmp_path)


def test_two_recordings_of_one_name_are_refused(batch, tmp_path):
    (batch / "anna.flac").write_bytes(b"another")
    with pytest.raises(InputError, match="more than one picture and one recording called anna"):
        find_pairs(batch, tmp_path)


def test_a_batch_that_is_not_there_or_empty(tmp_path):
    with pytest.raises(InputError, match="give a folder"):
        find_pairs(tmp_path / "none", tmp_path)
    with pytest.raises(InputError, match="nothing to make"):
        find_pairs(tmp_path, tmp_path)


@pytest.mark.parametrize("together", [1, 3])
def test_one_that_fails_stops_no_other(pipeline, batch, tmp_path, together):
    output = tmp_path / "out"
    output.mkdir()
    made = dict(write_videos(pipeline, find_pairs(batch, output), together, face="none"))
    failed = [pair.output.name for pair, result in made.items() if isinstance(result, Exception)]
    assert failed == ["zoe.mp4"] and isinstance(next(r for p, r in made.items() if p.output.stem == "zoe"), InputError)
    assert sorted(path.name for path in output.iterdir()) == ["anna.mp4", "ben.mp4"]
    assert probe(output / "anna.mp4").frames == 25
    assert not np.array_equal(read_video_frames(output / "anna.mp4"), read_video_frames(output / "ben.mp4"))


def test_stopped_early_all_go_on_where_they_were(pipeline, batch, tmp_path, monkeypatch):
    monkeypatch.setattr("letstalk_core.render.job.SEGMENT_SECONDS", 0.3)
    output = tmp_path / "out"
    output.mkdir()
    long = batch / "long.wav"
    write_media(long, sound(9, 60.0).numpy(), RATE)
    pairs = [find_pairs(batch, output)[0], Pair(batch / "ben.png", long, output / "long.mp4")]
    videos = write_videos(pipeline, pairs, 2, face="none")
    assert next(videos)[0] == pairs[0]  # the short one; the long one is under way
    until = time.monotonic() + 60
    while not list(output.glob("long*.work-*/*.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    videos.close()
    assert not (output / "long.mp4").exists()
    kept = len(list(output.glob("long*.work-*/*.safetensors")))
    assert kept > 0
    watcher = StopAt(kept * 8 + 8)
    with pytest.raises(KeyboardInterrupt):
        write_video(pipeline, *dataclasses.astuple(pairs[1]), observer=watcher, face="none")
    assert watcher.estimate.done >= kept * 8


def test_generate_many_on_the_command_line(checkpoint, batch, tmp_path, capsys):
    output = tmp_path / "new" / "out"
    command = ["generate-many", str(batch), "--output", str(output), "--model", str(checkpoint), "--face", "none"]
    assert cli.main([*command, "--together", "2"]) == 1
    out, err = capsys.readouterr()
    assert "anna.mp4: 25 frames" in out and "zoe.mp4: failed: " in out
    assert "1 of 3 videos failed" in err and "Traceback" not in err
    (batch / "zoe.png").write_bytes((batch / "ben.png").read_bytes())
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "2 of 3 videos are there already; --no-resume makes them anew",
        f"1 of 1, {output / 'zoe.mp4'}: 25 frames",
    ]
    assert cli.main([*command, "--no-resume", "--together", "0"]) == 1
    assert "must be at least 1" in capsys.readouterr().err


def test_notes_name_the_video_that_they_are_about(batch, repository, tmp_path, capsys):
    """Also where two videos have the same note, and several are made at once."""
    face = cv2.resize(cv2.imread(str(repository / "assets" / "portrait.jpg")), (96, 96), interpolation=cv2.INTER_AREA)
    small = cv2.copyMakeBorder(face, 80, 80, 80, 80, cv2.BORDER_REPLICATE)
    for name in ("anna", "ben"):
        cv2.imwrite(str(batch / f"{name}.png"), small)
    model = write_tiny_checkpoint(tmp_path / "256.safetensors", image_size=256)
    assert cli.main(["generate-many", str(batch), "--output", str(tmp_path), "--model", str(model), "--together", "3"])
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    said = {line.partition("mp4: ")[2] for line in notes}
    assert len(said) == 1 and "The face fills only" in said.pop()
    assert sorted(line.split(": ")[2] for line in notes) == [str(tmp_path / f"{name}.mp4") for name in ("anna", "ben")]
