"""Reading pictures, finding faces, cropping."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from letstalk_core.errors import InputError
from letstalk_core.picture import portrait
from letstalk_core.picture.portrait import crop_portrait, find_faces, read_image

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
    assert np.allclose(image[:20], portrait.BACKDROP) and np.allclose(image[20:], rgba[20:, :, :3] / 255)
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


@pytest.fixture
def unaligned(monkeypatch):
    """Crops as the detector says; the alignment of real faces has its own tests (test_framing.py)."""
    monkeypatch.setattr(portrait, "align_square", lambda image, x, y, side: (x, y, side))


@pytest.fixture
def two_faces(monkeypatch, unaligned):
    monkeypatch.setattr(portrait, "find_faces", lambda image, yunet=None: [(40, 20, 80, 60), (0, 0, 20, 20)])


def test_crop_around_a_face(two_faces):
    image = picture(100, 120).astype(np.float32) / 255
    result = crop_portrait(image, 32, margin=1.5)
    x0, y0, x1, y1 = result.box
    assert (x1 - x0, y1 - y0) == (60, 60) and (x0 + x1) / 2 == 60 and 35 <= (y0 + y1) / 2 < 40
    assert result.image.shape == (3, 32, 32) and result.original_size == (120, 100) and result.warnings == ()
    expected = image[y0:y1, x0:x1].mean(axis=(0, 1)) * 2 - 1
    assert np.allclose(result.image.mean(dim=(1, 2)).numpy(), expected, atol=0.01)


def test_the_box_may_reach_outside_and_repeats_the_edge(two_faces):
    image = picture(100, 120).astype(np.float32) / 255
    result = crop_portrait(image, 40, face=1, margin=2.0)
    assert result.box[0] < 0 and result.box[1] < 0 and result.box[2] - result.box[0] == 40
    assert np.allclose(result.image[:, 0, 0].numpy(), image[0, 0] * 2 - 1)


def test_numbers_of_faces(two_faces):
    image = picture(100, 120).astype(np.float32) / 255
    assert (
        crop_portrait(image, 32, face=0).box == crop_portrait(image, 32).box != crop_portrait(image, 32, face="1").box
    )
    with pytest.raises(InputError, match="Face 2 was asked for, but the picture has 2; choose 0 to 1"):
        crop_portrait(image, 32, face=2)
    with pytest.raises(InputError, match="Face -1"):
        crop_portrait(image, 32, face=-1)


def test_no_face(unaligned):
    image = picture(40, 60).astype(np.float32) / 255
    with pytest.warns(UserWarning, match="No face was found"):
        result = crop_portrait(image, 32)
    assert result.box == (10, 0, 50, 40) and "No face" in result.warnings[0]
    with pytest.raises(InputError, match="No face was found"):
        crop_portrait(image, 32, on_missing="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert crop_portrait(image, 32, face="none").box == (10, 0, 50, 40)


@pytest.mark.parametrize("height, width", [(16, 16), (20, 400), (400, 20), (3000, 3000)])
def test_unusual_sizes(height, width):
    image = np.full((height, width, 3), 0.25, np.float32)
    result = crop_portrait(image, 64, face="none")
    assert np.allclose(result.image.numpy(), -0.5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert crop_portrait(image, 64).image.shape == (3, 64, 64)


def test_bad_arguments():
    image = np.zeros((40, 40, 3), np.float32)
    for sentence, arguments in {
        "1x1, smaller than 16 pixels": dict(image=np.zeros((1, 1, 3), np.float32), size=32),
        "shape \\[H, W, 3\\]": dict(image=np.zeros((40, 40), np.float32), size=32),
        "NaN": dict(image=np.full((40, 40, 3), np.nan, np.float32), size=32),
        "size is 0": dict(image=image, size=0),
        "margin": dict(image=image, size=32, margin=0),
        "on_missing": dict(image=image, size=32, on_missing="ignore"),
        "face is 'left'": dict(image=image, size=32, face="left"),
    }.items():
        with pytest.raises(InputError, match=sentence):
            crop_portrait(**arguments)


def test_without_any_detector(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2, "CascadeClassifier", raising=False)
    monkeypatch.delattr(cv2, "FaceDetectorYN", raising=False)
    assert find_faces(np.zeros((64, 64, 3), np.float32)) == []


def test_a_broken_yunet_file_falls_back(tmp_path):
    (tmp_path / portrait.YUNET_NAMES[0]).write_text("not a network")
    with pytest.warns(UserWarning, match="cannot be used"):
        assert find_faces(np.zeros((64, 64, 3), np.float32), tmp_path) == []


@pytest.mark.skipif(not PORTRAITS.is_dir(), reason="the folder ../shared/media/portraits is not here")
def test_real_portraits():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("this OpenCV has no Haar cascades")
    for path in sorted(PORTRAITS.iterdir()):
        image = read_image(path)
        faces = find_faces(image)
        assert faces, f"no face found in {path.name}"
        x0, y0, x1, y1 = faces[0]
        assert 0.2 < (x0 + x1) / 2 / image.shape[1] < 0.8 and (y0 + y1) / 2 < 0.6 * image.shape[0]
