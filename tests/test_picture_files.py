"""Pictures as people have them: colour profiles, pictures within pictures, pages, phones' formats, huge ones."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from letstalk_core.errors import InputError
from letstalk_core.picture import picture_file
from letstalk_core.picture.picture_file import read_image
from letstalk_core.picture.portrait import crop_portrait


def quietly(path) -> np.ndarray:
    """What is read, 0..255, where no note may be."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return 255 * read_image(path)


# 10: colour profiles --------------------------------------------------------------------------------------------------


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(primaries: list[tuple[float, float, float]], gamma: float) -> bytes:
    """A small ICC profile (version 2) of a display: the XYZ (D50) of red, green and blue, and the exponent."""
    xyz = [b"XYZ \0\0\0\0" + b"".join(map(_s15, values)) for values in ((0.9642, 1.0, 0.8249), *primaries)]
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78 + 2)
    parts = [(b"desc", text), (b"wtpt", xyz[0]), (b"rXYZ", xyz[1]), (b"gXYZ", xyz[2]), (b"bXYZ", xyz[3])]
    parts += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    at, table, data = 132 + 12 * len(parts), b"", b""
    for name, content in parts:
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content
    body = struct.pack(">I", len(parts)) + table + data
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(map(_s15, (0.9642, 1.0, 0.8249))) + bytes(48)
    return header + body


ADOBE = profile([(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)], 2.19921875)
P3 = profile([(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)], 2.2)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("icc", [ADOBE, P3], ids=["Adobe RGB", "Display P3"])
def test_colours_are_those_of_srgb(tmp_path, suffix, icc):
    wanted = (200, 30, 40)
    flat = Image.new("RGB", (32, 32), wanted)
    written = ImageCms.profileToProfile(flat, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(icc)))
    assert max(abs(a - b) for a, b in zip(written.getpixel((9, 9)), wanted, strict=True)) > 8  # other numbers
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    written.save(tmp_path / f"a.{suffix}", icc_profile=icc, **options)
    assert np.abs(quietly(tmp_path / f"a.{suffix}")[9, 9] - wanted).max() <= (3 if suffix == "jpg" else 1.5)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK", "I;16"])
def test_a_profile_of_any_mode_or_a_broken_one_breaks_nothing(tmp_path, mode):
    picture = Image.fromarray(np.full((32, 32), 40000, np.uint16)) if mode == "I;16" else Image.new(mode, (32, 32), 99)
    for number, icc in enumerate((P3, b"not a profile")):
        path = tmp_path / f"{number}.{'tiff' if mode == 'CMYK' else 'png'}"
        picture.save(path, icc_profile=icc)
        try:
            assert quietly(path).shape == (32, 32, 3)
        except InputError as error:
            assert "fully transparent" in str(error)


def test_transparency_stays_where_colours_are_converted(tmp_path):
    picture = Image.new("RGBA", (32, 32), (200, 30, 40, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 16, 32))
    picture.save(tmp_path / "a.png", icc_profile=P3)
    read = quietly(tmp_path / "a.png")
    assert np.abs(read[9, 3] - 127.5).max() < 1 and read[9, 25, 0] > 205


# 11: several pictures in a file, and formats that are not what the name says ------------------------------------------


def test_a_phones_second_picture_is_no_animation(tmp_path):
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(tmp_path / "phone.jpg").format == "MPO"
    assert np.abs(quietly(tmp_path / "phone.jpg")[5, 5] - (254, 0, 0)).max() < 3


def test_pages_are_called_pages(tmp_path):
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.tiff", save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match="is a document of 2 pages; the first one is used"):
        assert tuple(read_image(tmp_path / "a.tiff")[5, 5]) == (1, 0, 0)


def test_a_heic_picture_is_called_that(tmp_path):
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match="a HEIC picture|damaged picture"):
        read_image(tmp_path / "a.jpg")


def test_a_psd_is_read(tmp_path):
    width, height = 24, 20
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3)
    planes = b"".join(bytes([value]) * (width * height) for value in (200, 30, 40))
    (tmp_path / "a.psd").write_bytes(header + struct.pack(">III", 0, 0, 0) + struct.pack(">H", 0) + planes)
    assert np.allclose(quietly(tmp_path / "a.psd")[5, 5], (200, 30, 40))


# 12: a face at the border ---------------------------------------------------------------------------------------------


def test_what_is_missing_of_a_square_is_mirrored():
    rng = np.random.default_rng(0)
    picture = rng.random((64, 64, 3)).astype(np.float32)
    from letstalk_core.picture import portrait

    square = np.array([[1.0, 0, 16], [0, 1.0, 0]])  # sixteen columns to the left of the picture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portrait, "square_of", lambda *_: (square, []))
        image = (crop_portrait(picture, 48).image.permute(1, 2, 0).numpy() + 1) / 2
    assert np.allclose(image[:, 16:48], picture[:48, :32], atol=1e-5)
    assert np.allclose(image[:, :16], picture[:48, 16:0:-1], atol=1e-5)


# 13: huge pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [*(("png", mode) for mode in ("RGB", "RGBA", "P", "L", "I;16", "1")), ("jpg", "RGB"), ("jpg", "L"), ("tiff", "F")],
)
def test_a_huge_picture_is_reduced_while_it_is_read(tmp_path, monkeypatch, suffix, mode):
    monkeypatch.setattr(picture_file, "MOST_PIXELS", 10_000)
    ramp = np.linspace(0, 1, 400, dtype=np.float32)[None].repeat(300, 0)
    kinds = {"I;16": lambda: Image.fromarray((ramp * 65535).astype(np.uint16)), "F": lambda: Image.fromarray(ramp)}
    picture = kinds.get(mode, lambda: Image.fromarray((ramp * 255).astype(np.uint8)).convert(mode))()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / f"a.{suffix}"
    picture.save(path, exif=exif.tobytes()) if suffix != "tiff" else picture.save(path)
    with pytest.warns(UserWarning, match="is 400x300 pixels large; it is reduced to"):
        read = read_image(path)
    height, width = read.shape[:2]
    assert 5_000 < height * width <= 10_000
    assert (height > width) == (suffix != "tiff")
    line = read.mean((1, 2)) if height > width else read.mean((0, 2))
    assert line[0] < 0.15 and line[-1] > 0.85
