"""The head of a driving video is followed, frame by frame, at the times at which frames are shown."""

import math
import re
import weakref
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest

from letstalk_core.config import CONTROLS
from letstalk_core.data.people.gestures import rest_controls
from letstalk_core.data.people.puppet import COLUMN
from letstalk_core.errors import InputError
from letstalk_core.evaluation.held_out import held_out_actor
from letstalk_core.picture.driving import head_motion
from letstalk_core.pixels import pictures_to_pixels, pixels_to_pictures
from letstalk_core.video.driving_video import driving_frames
from letstalk_core.video.motion_keys import Motion

from .media_files import tone, write_media


def led(name: str, degrees: np.ndarray, person: int) -> np.ndarray:
    """Frames float [F,H,W,3] of somebody held out whose head turns."""
    actor = held_out_actor(person)
    controls = np.repeat(rest_controls(actor.rng)[None], len(degrees), 0)
    controls[:, COLUMN[name]] = np.deg2rad(degrees)
    return actor.render(controls, natural=True).permute(0, 2, 3, 1).numpy()


def tracks_of(frames: np.ndarray) -> dict[str, np.ndarray]:
    return head_motion((number / 25, frame) for number, frame in enumerate(frames))[1]


@pytest.mark.parametrize("name", ["yaw", "pitch", "roll"])
def test_the_head_of_a_driving_video_is_followed(name):
    most = 0.7 * CONTROLS[name][1]
    degrees = most * np.sin(np.linspace(0, 2 * math.pi, 25))
    for person in (1, 3):
        tracks = tracks_of(led(name, degrees, person))
        assert np.corrcoef(tracks[name], degrees)[0, 1] > 0.97
        assert 0.7 < np.polyfit(degrees, tracks[name], 1)[0] < 1.4
        others = [np.abs(tracks[other]).max() for other in tracks if other != name]
        assert max(others) < 0.6 * most


def test_frames_without_a_face_and_videos_without_one():
    frames = led("yaw", np.linspace(-15, 15, 9), 0)
    gone = frames.copy()
    gone[4] = 0.5
    assert np.abs(tracks_of(gone)["yaw"] - tracks_of(frames)["yaw"]).max() < 3
    with pytest.raises(InputError, match="No face was found in the driving video"):
        tracks_of(np.full((2, 64, 64, 3), 0.5, np.float32))


# Files ----------------------------------------------------------------------------------------------------------------


def write_video(path, frames: np.ndarray, times=None, turned: int = 0):
    """Frames uint8 [F,H,W,3], shown at times in milliseconds (else at 25 a second), and to be turned by players."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "g": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        if turned:
            stream.set_display_rotation(turned)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = 40 * number if times is None else times[number], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def shades(count: int, size: int = 32) -> np.ndarray:
    """Frames whose brightness tells their number."""
    return np.repeat(np.arange(count, dtype=np.uint8), size * size * 3).reshape(count, size, size, 3) * 3 + 20


def numbers(frames) -> list[int]:
    return [round((float(frame.mean()) - 20) / 3) for frame in frames]


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """Frames uint8 [20,H,W,3] of a head that turns."""
    return pictures_to_pixels(led("yaw", 15 * np.sin(np.linspace(0, 2 * math.pi, 20)), 1))


def motion_of(source, **part) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return head_motion((seconds, pixels_to_pictures(frame)) for seconds, frame in driving_frames(source, **part))


def test_a_file_leads_as_its_frames_do(head, tmp_path):
    path = write_video(tmp_path / "head: a.mp4", head)
    times, tracks = motion_of(path)
    np.testing.assert_allclose(times, (np.arange(20) + 0.5) / 25)
    for name, expected in tracks_of(pixels_to_pictures(head)).items():
        assert np.abs(tracks[name] - expected).max() < 1.5  # degrees: it was compressed
    held, same = motion_of(BytesIO(path.read_bytes()))
    assert held.tolist() == times.tolist() and all(same[name].tolist() == tracks[name].tolist() for name in tracks)
    assert Motion.of_tracks(tracks, times).seconds == times[-1]


def test_turned_pictures_stand_upright(head, tmp_path):
    """As phones store them: on their side, with a note of how to turn them."""
    _, upright = motion_of(write_video(tmp_path / "a.mp4", head[:8]))
    for turned in (90, 180, 270):
        path = write_video(tmp_path / "turned.mp4", np.rot90(head[:8], -turned // 90, (1, 2)), turned=turned)
        _, tracks = motion_of(path)
        assert np.abs(tracks["yaw"] - upright["yaw"]).max() < 1.5
        assert np.abs(tracks["roll"] - upright["roll"]).max() < 1.5


def test_uneven_times_are_kept(head, tmp_path):
    """A head that turns evenly, filmed unevenly, is led evenly; a stretch in which no face is seen lasts as it did."""
    shown = np.array([0, 40, 80, 200, 240, 600, 640, 680, 900, 1000])
    frames = led("yaw", 12 - 24 * shown / 1000, 1)
    frames[4] = 0.5
    times, tracks = motion_of(write_video(tmp_path / "a.mp4", pictures_to_pixels(frames), shown))
    half = times[0]
    assert 0 < half < 0.1 and times - half == pytest.approx(shown / 1000)
    assert np.corrcoef(tracks["yaw"], shown)[0, 1] < -0.99
    evenly = np.interp(times, times[[3, 5]], tracks["yaw"][[3, 5]])
    assert abs(tracks["yaw"][4] - evenly[4]) < 1


def test_times_begin_at_the_first_frame_and_rise(tmp_path):
    late = write_video(tmp_path / "late.mkv", shades(5), [5000, 5040, 5080, 5120, 5160])
    assert [seconds for seconds, _ in driving_frames(late)] == pytest.approx([0.02, 0.06, 0.1, 0.14, 0.18])
    raw = write_video(tmp_path / "a.h264", shades(5))  # no container, hence no times
    seconds = [seconds for seconds, _ in driving_frames(raw)]
    assert len(seconds) == 5 and seconds == sorted(set(seconds)) and seconds[0] < 0.05


def test_a_part_of_a_video(tmp_path):
    path, told = write_video(tmp_path / "a.mp4", shades(75)), []
    part = list(driving_frames(path, 1.0, 0.8, lambda done, total: told.append((done, total))))
    assert numbers(frame for _, frame in part) == list(range(25, 45))
    assert [seconds for seconds, _ in part] == pytest.approx((np.arange(20) + 0.5) / 25)
    assert told == [(number, 20) for number in range(1, 21)]
    assert numbers(frame for _, frame in driving_frames(path, 2.0)) == list(range(50, 75))
    assert numbers(frame for _, frame in driving_frames(path, 0.0, 0.2)) == list(range(5))
    told.clear()
    assert len(list(driving_frames(path, advance=lambda *all_of: told.append(all_of)))) == 75
    assert told[0] == (1, 75) and told[-1] == (75, 75)


def test_frames_are_not_kept(head, tmp_path):
    """However long a video is, as many of its frames are held: the one that is looked at, and one on its way."""
    most = {}
    for seconds in (5, 40):
        rate, alive = 5, weakref.WeakSet()
        times = np.arange(seconds * rate) * 1000 // rate
        path = write_video(tmp_path / f"{seconds}.mp4", head[np.arange(len(times)) % len(head)][:, ::2, ::2], times)

        def watched(path=path, alive=alive, seconds=seconds):
            for at, frame in driving_frames(path):
                held = Held(pixels_to_pictures(frame))
                alive.add(held)
                most[seconds] = max(most.get(seconds, 0), len(alive))
                yield at, held.picture

        times, _ = head_motion(watched())
        assert len(times) == seconds * rate
    assert most[5] == most[40] <= 2


class Held:
    """A picture whose life can be watched."""

    def __init__(self, picture: np.ndarray):
        self.picture = picture


def test_what_leads_nobody_is_said(head, tmp_path):
    with pytest.raises(InputError, match="No face was found in the driving video; choose one"):
        motion_of(write_video(tmp_path / "nobody.mp4", shades(3, 64)))
    whole = write_video(tmp_path / "a.mp4", head).read_bytes()  # its table of contents is at its end
    cut, text = tmp_path / "cut.mp4", tmp_path / "text.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("this is no video\n" * 50)
    sound = write_media(tmp_path / "sound.wav", tone(16000, 16000, 1), 16000)
    for path, sentence in ((cut, "cannot be decoded"), (text, "cannot be decoded"), (sound, "has no picture")):
        for source, name in ((path, str(path)), (BytesIO(path.read_bytes()), "The driving video")):
            with pytest.raises(InputError, match=f"^{re.escape(name)} {sentence}[^\n]*\\.$"):
                motion_of(source)
    with pytest.raises(InputError, match="There is no file"):
        motion_of(tmp_path / "nowhere.mp4")
