"""Reading pictures, finding faces, cropping."""

import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from letstalk_core.data.drawn.avatars import Avatar
from letstalk_core.data.drawn.drawing import draw_frames
from letstalk_core.data.drawn.motion import rest_controls
from letstalk_core.data.people.geometry import MARGIN
from letstalk_core.data.people.portraits import load_person, people
from letstalk_core.data.people.puppet import COLUMN, Puppet
from letstalk_core.errors import InputError
from letstalk_core.picture import picture_file, portrait
from letstalk_core.picture.face import CORNERS, LEFT_EYE, POINTS, RIGHT_EYE, Face, find_faces
from letstalk_core.picture.picture_file import read_image
from letstalk_core.picture.portrait import FACE_MARGIN, FRAMING, crop_portrait, square_of
from letstalk_core.picture.similarity import apply, corners, cut, inverse, rotation, square_at

PORTRAITS = Path(__file__).resolve().parents[2] / "shared" / "media" / "portraits"


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """uint8 [H, W, 3] with red rising to the right and green downwards."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // (width - 1), rows * 255 // (height - 1), rows * 0 + 30], -1).astype(np.uint8)


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16", "1", "F"])
def test_modes(tmp_path, mode):
    original = Image.fromarray(picture())
    path = tmp_path / ("a.tiff" if mode in ("F", "CMYK") else "a.png")
    if mode == "I;16":
        Image.fromarray(np.asarray(original.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        original.convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (40, 60, 3) and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1
    if mode not in ("1", "P"):
        expected = np.asarray(original.convert("RGB" if mode in ("RGB", "RGBA", "CMYK") else "L").convert("RGB")) / 255
        assert np.abs(image - expected).max() < 0.02


def test_transparency(tmp_path):
    rgba = np.dstack([picture(), np.full((40, 60), 255, np.uint8)])
    rgba[:20, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "half.png")
    image = read_image(tmp_path / "half.png")
    assert np.allclose(image[:20], picture_file.BACKDROP) and np.allclose(image[20:], rgba[20:, :, :3] / 255)
    rgba[..., 3] = 0
    Image.fromarray(rgba).save(tmp_path / "none.png")
    with pytest.raises(InputError, match="fully transparent"):
        read_image(tmp_path / "none.png")


def test_exif_orientation(tmp_path):
    turned = Image.fromarray(picture()).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    turned.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (40, 60, 3)
    assert np.abs(image - picture() / 255).mean() < 0.02


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_give_the_first_frame_with_a_warning(tmp_path, suffix):
    frames = [Image.fromarray(np.full((20, 20, 3), value, np.uint8)) for value in (200, 20, 90)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    with pytest.warns(UserWarning, match="3 frames"):
        image = read_image(tmp_path / f"a.{suffix}")
    assert np.allclose(image, 200 / 255, atol=0.02)


def bomb(path: Path, side: int) -> Path:
    """A PNG that claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_bad_files_are_one_sentence(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    for suffix in ("png", "jpg", "webp", "gif"):
        Image.fromarray(picture(200, 200)).save(tmp_path / f"whole.{suffix}")
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    bomb(tmp_path / "bomb.png", 60000)
    bomb(tmp_path / "large.png", 13000)
    (tmp_path / "folder").mkdir()
    for name, sentence in {
        "missing.png": "There is no file",
        "empty.png": "is empty",
        "text.png": "not a picture",
        "cut.png": "damaged",
        "cut.jpg": "damaged",
        "cut.webp": "damaged|not a picture",
        "cut.gif": "damaged",
        "bomb.png": "too large",
        "large.png": "13000x13000 pixels, more than 150 million",
        "folder": "is a folder",
    }.items():
        with pytest.raises(InputError, match=sentence) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


# Cropping ------------------------------------------------------------------------------------------------------------


SIDE = 256
WALL = 100, 60  # left of and above a drawing, in pixels


def drawn(seed: int) -> np.ndarray:
    """A person never trained on, float [256,256,3] in 0..1, framed as in training."""
    controls = rest_controls(np.random.default_rng(seed))
    return draw_frames(Avatar((3_000_000 + seed, 0), SIDE), controls)[0].astype(np.float32) / 255


def on_a_wall(picture: np.ndarray) -> np.ndarray:
    """The drawing inside a larger picture, [400,460,3], its edges drawn out."""
    left, top = WALL
    return cv2.copyMakeBorder(picture, top, 400 - top - SIDE, left, 460 - left - SIDE, cv2.BORDER_REPLICATE)


def face_at(middle, side) -> Face:
    """A face that fills a square about the middle [2]."""
    points = np.zeros((len(POINTS), 2))
    for part, place in zip((LEFT_EYE, RIGHT_EYE, CORNERS), FRAMING, strict=True):
        points[part] = np.array(middle) + (place - 0.5) * side
    points[POINTS.index("nose")] = np.array(middle) + (FRAMING.mean(0) - 0.5) * side
    return Face(points, 1.0)


@pytest.fixture
def two_faces(monkeypatch):
    monkeypatch.setattr(portrait, "find_faces", lambda image: [face_at((60, 40), 60), face_at((10, 10), 20)])


def test_crop_around_a_face(two_faces):
    image = picture(100, 120).astype(np.float32) / 255
    result = crop_portrait(image, 32)
    assert result.image.shape == (3, 32, 32) and result.original_size == (120, 100) and result.warnings == ()
    places = corners(result.square, 32)
    assert np.allclose(places[[0, 3]], [(30, 10), (90, 70)], atol=0.1)
    expected = image[10:70, 30:90].mean(axis=(0, 1)) * 2 - 1
    assert np.allclose(result.image.mean(dim=(1, 2)).numpy(), expected, atol=0.01)


def test_a_margin_widens_the_crop_about_its_middle(two_faces):
    image = picture(100, 120).astype(np.float32) / 255
    places = corners(crop_portrait(image, 32, margin=1.5 * FACE_MARGIN).square, 32)
    assert np.allclose(places[[0, 3]], [(15, -5), (105, 85)], atol=0.1)


def test_the_square_may_reach_outside(two_faces):
    image = picture(100, 120).astype(np.float32) / 255
    result = crop_portrait(image, 40, face=1, margin=2 * FACE_MARGIN)
    assert np.allclose(corners(result.square, 40)[0], (-10, -10), atol=0.1)
    mirrored = image[4:16, 4:16].mean((0, 1)) * 2 - 1
    assert np.allclose(result.image[:, 0, 0].numpy(), mirrored, atol=0.2)


def test_numbers_of_faces(two_faces):
    image = picture(100, 120).astype(np.float32) / 255
    first, largest, second = (crop_portrait(image, 32, face=face).square for face in (0, "largest", "1"))
    assert np.array_equal(first, largest) and not np.allclose(first, second)
    with pytest.raises(InputError, match="Face 2 was asked for, but the picture has 2; choose 0 to 1"):
        crop_portrait(image, 32, face=2)
    with pytest.raises(InputError, match="Face -1"):
        crop_portrait(image, 32, face=-1)


def squares_of_drawings(people: int, tilt: float) -> np.ndarray:
    """Of drawings in larger pictures, tilted by degrees, whose faces are found: where the corners [n,4,2] of the square
    lie in the drawing, in its sides."""
    rng, found = np.random.default_rng(1), []
    for seed in range(people):
        turned = rotation(rng.uniform(0.7, 1.3), np.radians(tilt), np.array([228.0, 188.0]), np.array([300.0, 300.0]))
        square, warnings = square_of(cut(on_a_wall(drawn(seed)), turned, 600), SIDE, "largest", on_missing="crop")
        if not any("No face" in warning for warning in warnings):
            found.append((apply(inverse(turned), corners(square, SIDE)) - WALL) / SIDE)
    return np.array(found)


def test_faces_come_upright_to_the_framing_of_the_training():
    people, found = 40, {tilt: squares_of_drawings(40, tilt) for tilt in (0, -40, 25)}
    assert sum(map(len, found.values())) >= 0.95 * len(found) * people
    offsets = found[0].mean(1) - 0.5  # in pixels of a 128-pixel model 0.02 is 2.6
    sides = np.linalg.norm(found[0][:, 1] - found[0][:, 0], axis=1)
    assert np.abs(offsets).mean() < 0.02 and np.abs(sides - 1).mean() < 0.06
    for squares in found.values():
        errors = np.sort(np.abs(squares - corners(np.eye(2, 3), 1)).mean((1, 2)))
        assert errors[: 7 * len(errors) // 8].mean() < 0.04 and np.median(errors) < 0.03


def test_no_face():
    image = picture(40, 60).astype(np.float32) / 255
    with pytest.warns(UserWarning, match="No face was found"):
        result = crop_portrait(image, 32, on_missing="crop")
    assert np.array_equal(result.square, square_at(10, 0, 40, 32)) and "No face" in result.warnings[0]
    with pytest.raises(InputError, match="No face was found in the picture; choose another .*--face none"):
        crop_portrait(image, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(crop_portrait(image, 32, face="none").square, result.square)


@pytest.mark.parametrize("height, width", [(16, 16), (20, 400), (400, 20), (3000, 3000)])
def test_unusual_sizes(height, width):
    image = np.full((height, width, 3), 0.25, np.float32)
    result = crop_portrait(image, 64, face="none")
    assert np.allclose(result.image.numpy(), -0.5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert crop_portrait(image, 64, on_missing="crop").image.shape == (3, 64, 64)


def test_bad_arguments():
    image = np.zeros((40, 40, 3), np.float32)
    for sentence, arguments in {
        "1x1, smaller than 16 pixels": dict(image=np.zeros((1, 1, 3), np.float32), size=32),
        "shape \\[H, W, 3\\]": dict(image=np.zeros((40, 40), np.float32), size=32),
        "NaN": dict(image=np.full((40, 40, 3), np.nan, np.float32), size=32),
        "size is 0": dict(image=image, size=0),
        "margin": dict(image=image, size=32, margin=0),
        "on_missing": dict(image=image, size=32, on_missing="ignore"),
        "face is 'middle'": dict(image=image, size=32, face="middle"),
    }.items():
        with pytest.raises(InputError, match=sentence):
            crop_portrait(**arguments)


@pytest.mark.skipif(not PORTRAITS.is_dir(), reason="the folder ../shared/media/portraits is not here")
def test_real_portraits():
    for path in sorted(PORTRAITS.glob("*.*g")):
        image = read_image(path)
        faces = find_faces(image)
        assert faces, f"no face found in {path.name}"
        x, y = faces[0].anchors.mean(0)
        assert 0.2 < x / image.shape[1] < 0.8 and y < 0.65 * image.shape[0]


def test_a_turned_head_and_a_hidden_mouth_are_said(monkeypatch):
    """And nothing is said of people who look ahead."""
    person = load_person(people(held_out=True)[0])
    picture = person.picture / np.float32(255)
    masked = picture.copy()
    x, y = np.round(person.landmarks[13, :2] + MARGIN).astype(int)
    masked[y - 22 : y + 34, x - 40 : x + 40] = (0.75, 0.85, 0.9)
    with pytest.warns(UserWarning, match="Something seems to hide the mouth"):
        crop_portrait(masked, 64)
    controls = np.zeros((1, 21), np.float32)
    controls[:, COLUMN["yaw"]] = 0.6
    turned = Puppet(person, np.random.default_rng(0)).render(controls)[0].movedim(0, -1).numpy()
    monkeypatch.setattr(portrait, "MOST_YAW", 10.0)  # puppets do not turn as far as is said, nothing hides behind noses
    with pytest.warns(UserWarning, match=r"The head is turned by about 1\d degrees"):
        crop_portrait(turned, 64)
    monkeypatch.undo()
    said = [crop_portrait(load_person(number).picture / np.float32(255), 256).warnings for number in people(True)]
    assert sum(bool(warnings) for warnings in said) <= 1


def test_a_face_of_300_pixels_in_a_large_photograph_is_found():
    person = load_person(people(held_out=True)[0])
    face = cv2.resize(person.picture, (640, 640), interpolation=cv2.INTER_CUBIC)
    wall = np.random.default_rng(0).integers(90, 160, (125, 94, 3)).astype(np.uint8)
    image = cv2.resize(wall, (3000, 4000), interpolation=cv2.INTER_CUBIC)
    image[2600:3240, 300:940] = face
    faces = find_faces(image / np.float32(255))
    assert np.abs(faces[0].anchors.mean(0) - (620, 2600 + 2 * (MARGIN + 133))).max() < 30
