"""A square portrait from a picture: reading, finding faces, cropping so that the crop can be pasted back.

Both face detectors are optional: YuNet where its model file lies in a models folder, else OpenCV's Haar cascades where
this OpenCV still has them, else none, and then the crop is the centre of the picture. A small network then aligns
the crop (framing.py).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from ..files import check_file
from ..pixels import pictures_to_images, pictures_to_pixels, pixels_to_pictures
from .framing import SIZE as FRAMING_SIZE
from .framing import framing_net

FACE_MARGIN = 1.42  # side of the crop / side of the face box: the framing that the bundled model was trained on
FACE_RAISE = 0.03  # how far the crop's centre lies above the face box's centre, in crop sides
ALIGN_SHIFT, ALIGN_SIZE = 0.25, (0.65, 1.4)  # how far a crop may be corrected, in sides of the detector's
MIN_SIDE = 16  # pixels; smaller pictures show no face
MAX_PIXELS = 150_000_000  # 12000 x 12000, 1.8 GB as floats; Pillow itself refuses 179 million
BACKDROP = 0.5  # grey behind transparent pixels: neither hides dark hair nor white
YUNET_NAMES = ("face_detection_yunet_2023mar.onnx", "face_detection_yunet.onnx", "yunet.onnx")
_DETECT_SIDE = 640  # pictures are reduced to this for detection

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 outside


@dataclass(frozen=True)
class Portrait:
    """A square crop of a picture, and what it takes to paste frames back.

    image [3, size, size] float32 in -1..1; box (x0, y0, x1, y1) is the crop in the picture's pixels and may reach
    outside the picture (the missing part repeats its edge); original_size (width, height) of the picture; warnings
    are sentences for the user.
    """

    image: Tensor
    box: Box
    original_size: tuple[int, int]
    warnings: tuple[str, ...] = ()


# Reading -------------------------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> np.ndarray:
    """Read any picture that Pillow reads: RGB float32 [H, W, 3] in 0..1, upright as its EXIF orientation says.

    Transparent pixels are laid over grey. Of an animation the first frame is taken, with a warning. Raises InputError
    where the file is missing, empty, damaged, no picture, fully transparent, or larger than MAX_PIXELS.
    """
    path = check_file(path, "picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the one that counts
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise InputError(
                        f"{path} is {picture.width}x{picture.height} pixels, more than {MAX_PIXELS // 1_000_000} "
                        "million; reduce it first."
                    )
                frames = getattr(picture, "n_frames", 1)
                picture.seek(0)
                image = _to_rgb(ImageOps.exif_transpose(picture), path)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} claims to be far too large a picture ({error}); reduce it first.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture that can be read; use a PNG or JPEG file.") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, MemoryError) as error:
        raise InputError(f"{path} is a damaged picture ({error}); export or download it again.") from error
    if frames > 1:
        warnings.warn(f"{path} is an animation of {frames} frames; the first one is used.", stacklevel=2)
    return image


def _to_rgb(picture: Image.Image, path: Path) -> np.ndarray:
    """A picture of any of Pillow's modes as RGB float32 [H, W, 3] in 0..1."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16-bit and float grey, which Pillow's convert would clip
        grey = np.asarray(picture, dtype=np.float32)
        top = 65535.0 if grey.max(initial=0) > 255 or picture.mode.startswith("I;16") else 255.0
        if picture.mode == "F" and grey.max(initial=0) <= 1:
            top = 1.0
        return np.repeat(np.clip(np.nan_to_num(grey) / top, 0, 1)[..., None], 3, axis=-1)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return without_alpha(pixels_to_pictures(np.asarray(picture.convert("RGBA"))), path)
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


# Finding faces -------------------------------------------------------------------------------------------------------


def find_faces(image: np.ndarray, yunet: str | Path | Iterable[str | Path] | None = None) -> list[Box]:
    """Face boxes (x0, y0, x1, y1) in pixels, largest first.

    image: float [H, W, 3] in 0..1. yunet: the YuNet model file, a folder that may hold it, or several of these; the
    folder in the environment variable LETSTALK_MODELS is tried too. Without it, or where this OpenCV cannot use it,
    Haar cascades find faces; without those no face is found.
    """
    try:
        import cv2
    except ImportError:
        return []
    height, width = image.shape[:2]
    scale = min(1.0, _DETECT_SIDE / max(height, width))
    small = _resize(image, max(round(width * scale), 1), max(round(height * scale), 1))
    pixels = np.ascontiguousarray(pictures_to_pixels(small[..., ::-1]))  # BGR
    model = _find_yunet(yunet)
    boxes = None
    if model is not None and hasattr(cv2, "FaceDetectorYN"):
        try:
            boxes = _yunet_boxes(cv2, pixels, model)
        except cv2.error as error:
            warnings.warn(f"The face model {model} cannot be used ({error}); Haar cascades instead.", stacklevel=2)
    if boxes is None:
        boxes = _haar_boxes(cv2, pixels)
    whole = [tuple(round(value / scale) for value in box) for box in boxes]
    return sorted(whole, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), reverse=True)


def _find_yunet(places: str | Path | Iterable[str | Path] | None) -> Path | None:
    places = [places] if isinstance(places, str | Path) else list(places or ())
    if os.environ.get("LETSTALK_MODELS"):
        places.append(os.environ["LETSTALK_MODELS"])
    for place in map(Path, places):
        if place.is_file():
            return place
        for name in YUNET_NAMES:
            if (place / name).is_file():
                return place / name
    return None


def _yunet_boxes(cv2, pixels: np.ndarray, model: Path) -> list[tuple[float, ...]]:
    detector = cv2.FaceDetectorYN.create(str(model), "", (pixels.shape[1], pixels.shape[0]), 0.7)
    _, faces = detector.detect(pixels)
    boxes = []
    for x, y, width, height in (face[:4] for face in (faces if faces is not None else ())):
        # YuNet's box goes from hairline to chin; made square about its centre it means the same as Haar's
        side, cx, cy = max(width, height), x + width / 2, y + height / 2
        boxes.append((cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2))
    return boxes


def _haar_boxes(cv2, pixels: np.ndarray) -> list[tuple[float, ...]]:
    folder = getattr(getattr(cv2, "data", None), "haarcascades", None)
    if folder is None or not hasattr(cv2, "CascadeClassifier"):
        return []
    grey = cv2.equalizeHist(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))
    least = max(24, min(grey.shape) // 12)
    # The stricter settings first: the laxer ones find more faces, and more that are none.
    for file, neighbours in (
        ("haarcascade_frontalface_default.xml", 8),
        ("haarcascade_frontalface_alt2.xml", 4),
        ("haarcascade_frontalface_default.xml", 4),
    ):
        cascade = cv2.CascadeClassifier(os.path.join(folder, file))
        if cascade.empty():
            continue
        found = cascade.detectMultiScale(grey, scaleFactor=1.08, minNeighbors=neighbours, minSize=(least, least))
        if len(found):
            return [(x, y, x + width, y + height) for x, y, width, height in found]
    return []


# Cropping ------------------------------------------------------------------------------------------------------------


def crop_portrait(
    image: np.ndarray,
    size: int,
    face: str | int = "largest",
    margin: float = FACE_MARGIN,
    on_missing: str = "crop",
    yunet: str | Path | Iterable[str | Path] | None = None,
) -> Portrait:
    """Crop a square around a face and resample it to size x size.

    image: float [H, W, 3] in 0..1. face: "largest", a number (0 is the largest), or "none" for the picture's centred
    square as it is. margin: side of the crop in sides of an average face box; the crop is aligned by the face in
    it, then made wider or narrower about its middle.
    on_missing: without a face, "crop" takes the middle of the picture, aligned likewise, and warns; "error" raises.
    Raises InputError too for pictures below MIN_SIDE pixels, a face that is not there, and arguments out of range.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"A picture has the shape [H, W, 3], not {list(image.shape)}.")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"The picture is {width}x{height}, smaller than {MIN_SIDE} pixels; choose a larger one.")
    if size < 1:
        raise InputError(f"The portrait size is {size}; it must be at least 1.")
    if not (math.isfinite(margin) and margin > 0):
        raise InputError(f"The margin is {margin}; it must be greater than 0 (usually {FACE_MARGIN}).")
    if on_missing not in ("crop", "error"):
        raise InputError(f"on_missing is {on_missing!r}; it must be 'crop' or 'error'.")
    if not np.isfinite(image).all():
        raise InputError("The picture has NaN or infinite pixels; save it again as PNG or JPEG.")
    box, notes = _choose_box(image, face, margin, on_missing, yunet)
    side = box[2] - box[0]
    if side < size / 4:
        notes.append(
            f"The face fills only {side}x{side} pixels of the picture, enlarged to {size}x{size}: it is blurred."
        )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    crop = pictures_to_images(_resize(_cut(image, box), size, size)).contiguous()
    return Portrait(crop, box, (width, height), tuple(notes))


def _choose_box(image, face, margin, on_missing, yunet) -> tuple[Box, list[str]]:
    """The box that crop_portrait cuts out by its arguments, and warnings for the user."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    centred = (left, top, left + side, top + side)
    if face == "none":
        return centred, []
    try:
        index = 0 if face == "largest" else int(face)
    except (TypeError, ValueError):
        raise InputError(f"face is {face!r}; it must be 'largest', 'none' or a number.") from None
    faces = find_faces(image, yunet)
    if not faces:
        if on_missing == "error":
            raise InputError(
                "No face was found in the picture; choose a clearer one, or face 'none' to use it as it is."
            )
        square = align_square(image, left + side / 2, top + side / 2, side)
        return _square_box(*square, margin / FACE_MARGIN), [
            "No face was found in the picture; the middle of the picture is used."
        ]
    if not 0 <= index < len(faces):
        raise InputError(f"Face {index} was asked for, but the picture has {len(faces)}; choose 0 to {len(faces) - 1}.")
    x0, y0, x1, y1 = faces[index]
    side = max(x1 - x0, y1 - y0) * FACE_MARGIN
    square = align_square(image, (x0 + x1) / 2, (y0 + y1) / 2 - FACE_RAISE * side, side)
    return _square_box(*square, margin / FACE_MARGIN), []


def align_square(image: np.ndarray, x: float, y: float, side: float) -> tuple[float, float, float]:
    """The square (centre x, y and side in pixels) near the given one in which eyes and mouth lie as in training.

    The framing network looks three times. The answer stays within ALIGN_SHIFT sides and ALIGN_SIZE times the side, so
    that a picture that the network does not understand is still cropped about where the detector said.
    """
    net, first = framing_net(), (x, y, side)
    for _ in range(3):
        crop = _resize(_cut(image, _square_box(x, y, side)), FRAMING_SIZE, FRAMING_SIZE)
        ratio, dx, dy = net.read(crop.clip(0, 1))
        x, y = x + dx * side, y + dy * side
        side = min(max(side * ratio, first[2] * ALIGN_SIZE[0]), first[2] * ALIGN_SIZE[1])
        reach = ALIGN_SHIFT * first[2]
        x, y = min(max(x, first[0] - reach), first[0] + reach), min(max(y, first[1] - reach), first[1] + reach)
    return x, y, side


def _square_box(x: float, y: float, side: float, grow: float = 1.0) -> Box:
    """The square about (x, y) in whole pixels, its side multiplied by `grow` and at least MIN_SIDE."""
    side = max(round(side * grow), MIN_SIDE)
    left, top = round(x - side / 2), round(y - side / 2)
    return left, top, left + side, top + side


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    """The box's pixels; outside the picture, those of its edge."""
    height, width = image.shape[:2]
    columns = np.arange(box[0], box[2]).clip(0, width - 1)
    rows = np.arange(box[1], box[3]).clip(0, height - 1)
    if box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height:
        return image[box[1] : box[3], box[0] : box[2]]
    return image[rows[:, None], columns]


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture float [H, W, 3] at another size, with antialiasing: [height, width, 3]."""
    if image.shape[:2] == (height, width):
        return image
    try:
        import cv2
    except ImportError:
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        small = torch.nn.functional.interpolate(tensor, (height, width), mode="bicubic", antialias=True)
        return small[0].numpy().transpose(1, 2, 0)
    smaller = width * height < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
