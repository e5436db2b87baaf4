"""A picture's file as an array: any that Pillow reads."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import InputError
from ..files import check_file
from ..pixels import pixels_to_pictures

MAX_PIXELS = 150_000_000  # 12000 x 12000, 1.8 GB as floats; Pillow itself refuses 179 million
MOST_PIXELS = 36_000_000  # 6000 x 6000; larger pictures are reduced, by whole numbers
# What several pictures in a file are, by its format; nothing where the others belong to the first.
_SEVERAL = {"TIFF": "a document of {} pages", "MPO": "", "PSD": "", "HEIF": "", "ICO": "", "ICNS": ""}
BACKDROP = 0.5  # grey behind transparent pixels: neither hides dark hair nor white


def read_image(path: str | Path) -> np.ndarray:
    """Read any picture as read_with_alpha does, [H, W, 3]: transparent pixels are laid over grey.

    Raises InputError where it does, and for a picture that is fully transparent.
    """
    return without_alpha(read_with_alpha(path), path)


def read_with_alpha(path: str | Path) -> np.ndarray:
    """Read any picture that Pillow reads: sRGB float32 [H, W, 3] in 0..1, upright as its EXIF orientation says; or
    [H, W, 4] where the file has transparency.

    Colours are those of sRGB, whatever profile the file has. Of an animation and of pages the first is taken, and
    pictures of more than MOST_PIXELS are reduced, both with a warning. Raises InputError where the file is missing,
    empty, damaged, no picture, or larger than MAX_PIXELS.
    """
    path = check_file(path, "picture")
    _read_heif_too()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the one that counts
            with Image.open(path) as picture:
                size = picture.size
                if size[0] * size[1] > MAX_PIXELS:
                    raise InputError(
                        f"{path} is {size[0]}x{size[1]} pixels, more than {MAX_PIXELS // 1_000_000} million; reduce it "
                        "first."
                    )
                several, frames = _SEVERAL.get(picture.format, "an animation of {} frames"), _frames(picture)
                picture = _reduced(picture)
                image = _to_floats(_in_srgb(ImageOps.exif_transpose(picture)))
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} claims to be far too large a picture ({error}); reduce it first.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is {_what_it_is(path)}") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, MemoryError) as error:
        raise InputError(f"{path} is a damaged picture ({error}); export or download it again.") from error
    if frames > 1 and several:
        warnings.warn(f"{path} is {several.format(frames)}; the first one is used.", stacklevel=2)
    if image.shape[0] * image.shape[1] < size[0] * size[1]:
        height, width = image.shape[:2]
        warnings.warn(f"{path} is {size[0]}x{size[1]} pixels large; it is reduced to {width}x{height}.", stacklevel=2)
    return image


def _frames(picture: Image.Image) -> int:
    return getattr(picture, "n_frames", 1)


def _read_heif_too() -> None:
    """HEIC, the format of phones, where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def _what_it_is(path: Path) -> str:
    """The end of a sentence about a file that Pillow does not know."""
    with path.open("rb") as file:
        head = file.read(32)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return "a HEIC picture, whatever its name says; run pip install pillow-heif, or export it as JPEG."
    return "not a picture that can be read; use a PNG or JPEG file."


def _reduced(picture: Image.Image) -> Image.Image:
    """A picture of at most MOST_PIXELS, reduced while it is read where its format allows that."""
    times = math.ceil(math.sqrt(picture.width * picture.height / MOST_PIXELS))
    if times <= 1:
        return picture
    info, exif = picture.info, picture.getexif()
    picture.draft(picture.mode, (picture.width // times, picture.height // times))  # JPEG: by 2, 4 or 8
    times = math.ceil(math.sqrt(picture.width * picture.height / MOST_PIXELS))
    if times > 1:
        mode = "I" if picture.mode.startswith("I") else "RGBA" if picture.mode in ("P", "1", "PA") else picture.mode
        picture = picture.convert(mode).reduce(times)
        picture.info |= {key: info[key] for key in ("icc_profile",) if key in info}
        picture.getexif().update(exif)
    return picture


def _in_srgb(picture: Image.Image) -> Image.Image:
    """The picture with its colours in sRGB, where it has a profile of other ones."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode.startswith("I") or picture.mode == "F":
        return picture
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    colours = picture if picture.mode in ("RGB", "CMYK", "L", "LAB") else picture.convert("RGB")
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        result = ImageCms.profileToProfile(colours, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a profile of another kind of colours, or broken
        return picture
    if alpha is not None:
        result.putalpha(alpha)
    return result


def _to_floats(picture: Image.Image) -> np.ndarray:
    """A picture of any of Pillow's modes as RGB float32 [H, W, 3] in 0..1, or RGBA [H, W, 4]."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16-bit and float grey, which Pillow's convert would clip
        grey = np.asarray(picture, dtype=np.float32)
        top = 65535.0 if grey.max(initial=0) > 255 or picture.mode.startswith("I;16") else 255.0
        if picture.mode == "F" and grey.max(initial=0) <= 1:
            top = 1.0
        return np.repeat(np.clip(np.nan_to_num(grey) / top, 0, 1)[..., None], 3, axis=-1)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return pixels_to_pictures(np.asarray(picture.convert("RGBA")))
    return pixels_to_pictures(np.asarray(picture.convert("RGB")))


def without_alpha(image, name: str | Path = "The picture"):
    """An array or tensor [H,W,3] or [H,W,4] in 0..1 as [H,W,3]: transparent pixels are laid over grey.

    Raises InputError, which begins with `name`, where all are transparent.
    """
    if image.shape[-1] != 4:
        return image
    alpha = image[..., 3:]
    if not alpha.any():
        raise InputError(f"{name} is fully transparent; choose a picture that shows something.")
    return image[..., :3] * alpha + BACKDROP * (1 - alpha)
