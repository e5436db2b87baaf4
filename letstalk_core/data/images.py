"""Pictures for the training of an autoencoder, from a folder of images, videos, shards, or drawn people.

Each of them is a source by number: read(index, rng), decided by the index and the generator alone, gives "image" uint8
[3,S,S] and, where it is known, "regions" uint8 [S,S], 1 in the mouth and 2 in the eyes. With `portraits` (for an
autoencoder that looks at one) it also gives "portrait" uint8 [3,S,S], another picture of the same person or, where
there is none, another square of the same picture. name(index) is for messages.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..files import cannot_write, check_file, find_files
from ..picture.picture_file import read_image
from ..picture.portrait import MIN_SIDE, centred_square, square_of
from ..picture.similarity import cut, square_at
from ..pixels import pictures_to_pixels, pixels_to_pictures, pixels_to_planes
from .footage.frames import resample, timed_frames, to_rgb
from .footage.shard_index import find_shards, index_shard
from .preparation.video_sources import find_videos

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LEAST_CROP = 0.85  # share of the centred square's side: crops are mild, the face shall stay in the picture
NAMED = 5  # pictures that a warning names, of those that are left out
VERSION = 1  # raised when something else is done to a video, which makes another folder
RATE = 2  # pictures of a second of video: neighbouring frames are too much alike to learn from
LOOKS = (0, 5, 10)  # pictures of a stretch on which a face is looked for
STRETCH = 20  # pictures of a video that share one square and are one group, ten seconds
TRIES = 8  # pictures that are tried in the place of one that has become unreadable


def random_square(picture: np.ndarray, size: int, rng: np.random.Generator) -> Tensor:
    """A square within the centred one of uint8 [H,W,3], reduced to uint8 [3,size,size] and mirrored in half of cases.

    It is never smaller than size, where the picture allows that: enlarged pictures teach blur.
    """
    square = _cut(picture, _random_square(picture, size, rng), size)
    return square.flip(2) if rng.random() < 0.5 else square


def portrait_pair(picture: np.ndarray, other: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """ "image" and "portrait" of two pictures of one person, or of one picture twice: then of two squares."""
    square = _random_square(picture, size, rng)
    same = other is not picture and other.shape == picture.shape
    portrait_square = square if same else _random_square(other, size, rng)
    pair = {"image": _cut(picture, square, size), "portrait": _cut(other, portrait_square, size)}
    return {name: square.flip(2) for name, square in pair.items()} if rng.random() < 0.5 else pair


def _random_square(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The similarity [2,3] from the picture to a square within the centred one."""
    height, width = picture.shape[:2]
    short = min(height, width)
    least = min(short, max(size, round(LEAST_CROP * short)))
    side = int(rng.integers(least, short + 1))
    left, top = (int(rng.integers(short - side + 1)) + (length - short) // 2 for length in (width, height))
    return square_at(left, top, side, size)


def _cut(picture: np.ndarray, square: np.ndarray, size: int) -> Tensor:
    return pixels_to_planes(cut(picture, square, size))


# Files ----------------------------------------------------------------------------------------------------------------


class PictureFiles:
    """Pictures in files, in groups that are alike (the frames of one video) or of one each: an index is a group.

    Args:
        groups: one file or more in each.
        names: what messages call the groups.
        size: S, the side of the squares that are cut out of the pictures.
        portraits: whether to give one beside each picture.
    """

    def __init__(self, groups: Sequence[Sequence[Path]], names: Sequence[str], size: int, portraits: bool = False):
        self.groups, self.names, self.size, self.portraits = groups, names, size, portraits

    def __len__(self) -> int:
        return len(self.groups)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A random picture of group `index`; where it cannot be read any more, a warning and one of the next group."""
        failure = None
        for number in range(index, index + TRIES):
            group = self.groups[number % len(self.groups)]
            chosen = rng.integers(len(group), size=2 if self.portraits else 1)
            try:
                pictures = {int(which): pictures_to_pixels(read_image(group[which])) for which in chosen}
            except InputError as error:
                warnings.warn(f"A picture is left out, another takes its place. {error}", stacklevel=1)
                failure = error
            else:
                picture, other = pictures[int(chosen[0])], pictures[int(chosen[-1])]
                if self.portraits:
                    return portrait_pair(picture, other, self.size, rng)
                return {"image": random_square(picture, self.size, rng)}
        raise failure


def image_folder(folder: str | Path, size: int, portraits: bool = False) -> PictureFiles:
    """The PNG, JPEG and WebP pictures in a folder and below; those that cannot be read are left out with a warning.

    Raises InputError for a missing folder, and where no picture can be used.
    """
    found = find_files(folder, IMAGE_SUFFIXES, "pictures")
    usable, small, reasons = [], [], []
    for path in tqdm(found, desc="pictures", unit="picture", disable=None, mininterval=2):
        side = _short_side(path)
        if isinstance(side, str):
            reasons.append(f"{path} {side}")
        else:
            usable.append(path)
            small += [path] if side < size else []
    if not usable:
        raise InputError(
            f"None of the {len(found)} pictures in {folder} can be used ({reasons[0]}); put whole PNG, JPEG or WebP "
            "files into it."
        )
    _warn_of_pictures(reasons, small, len(usable), size)
    return PictureFiles([[path] for path in usable], [str(path) for path in usable], size, portraits)


def _short_side(path: Path) -> int | str:
    """The shorter side of a picture in pixels, or why it cannot be used; without decoding it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow says of odd metadata
            with Image.open(path) as picture:
                side = min(picture.size)
                picture.verify()
    except Exception as error:  # Pillow's readers raise nearly anything for a damaged file
        return f"is damaged or no picture ({' '.join(str(error).split()) or type(error).__name__})"
    return side if side >= MIN_SIDE else f"is smaller than {MIN_SIDE} pixels"


def _warn_of_pictures(reasons: list[str], small: list[Path], usable: int, size: int) -> None:
    if reasons:
        more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        warnings.warn(f"{len(reasons)} pictures are left out: {'; '.join(reasons[:NAMED])}{more}.", stacklevel=3)
    if small:
        warnings.warn(
            f"{len(small)} of {usable} pictures are smaller than {size} pixels (the first is {small[0]}) and are "
            "enlarged, which teaches blur; train with larger ones, or set image_size lower.",
            stacklevel=3,
        )


# Videos ---------------------------------------------------------------------------------------------------------------


def video_pictures(folder: str | Path, output: str | Path, size: int, portraits: bool = False) -> PictureFiles:
    """Pictures of all videos in a folder and below, with or without sound, each group ten seconds of one.

    The square around the face is cut out as for the transformer's training. The pictures are kept in `output`: a second
    call finds them, and after an interruption it goes on with the video that was being read. A video that cannot be
    read is left out with a warning; InputError for a missing or empty folder, and where no video can be used.
    """
    folder, videos = Path(folder), find_videos(folder)
    target, groups, names, reasons = Path(output) / f"{size}px-{VERSION}", [], [], []
    for video in tqdm(videos, desc="videos", unit="video", disable=None):
        name = video.relative_to(folder).as_posix()
        try:
            kept = _kept_pictures(check_file(video, "video"), name, target, size)
            for number, stretch in enumerate(sorted(kept.glob("stretch-*"))):
                groups.append(sorted(stretch.glob("*.png")))
                names.append(f"{name}, {number * STRETCH // RATE} s")
        except InputError as error:  # not kept: the next start looks at it again, it may have been mended
            reasons.append(f"{name}: {error}")
            warnings.warn(f"A video is left out. {reasons[-1]}", stacklevel=2)
    if not groups:
        raise InputError(f"None of the {len(videos)} videos in {folder} can be used ({reasons[0].rstrip('.')}).")
    return PictureFiles(groups, names, size, portraits)


def _kept_pictures(video: Path, name: str, target: Path, size: int) -> Path:
    """The folder of a video's pictures, STRETCH of them in each of its folders; made now unless it is there."""
    stat = video.stat()
    path, state = (
        hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
        for text in (str(video.resolve()), f"{stat.st_size} {stat.st_mtime_ns}")
    )
    kept, aside = target / f"{path}-{state}", target / f".{path}-{state}.part"
    if kept.is_dir():
        return kept
    without_face = []
    try:
        for old in (aside, *target.glob(f"{path}-*")):  # those from before the video was changed
            shutil.rmtree(old, ignore_errors=True)
        aside.mkdir(parents=True)
        for number, (pictures, found) in enumerate(_stretches(video, size)):
            stretch = aside / f"stretch-{number:05d}"
            stretch.mkdir()
            for place, picture in enumerate(pictures):
                Image.fromarray(picture).save(stretch / f"{place:02d}.png")
            if not found:
                without_face.append(f"{number * STRETCH // RATE} s")
        (aside / "video.json").write_text(json.dumps({"video": name, "without_face": without_face}))
        os.replace(aside, kept)
    except OSError as error:
        raise cannot_write(kept, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if without_face:
        warnings.warn(
            f"No face was found in {len(without_face)} stretches of {name} (the first at {without_face[0]}); the "
            "middle of the picture is used there.",
            stacklevel=3,
        )
    return kept


def _stretches(video: Path, size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield (uint8 [n,size,size,3], face found) of each ten seconds of a video; InputError where it is damaged."""
    timed = timed_frames(video)
    first = next(timed, None)
    if first is None:
        raise InputError(f"{video} has no pictures in it.")
    pictures = (to_rgb(picture) for _, picture in resample(itertools.chain([first], timed), Fraction(RATE), first[0]))
    for picture in pictures:
        yield _crop_stretch(itertools.chain([picture], itertools.islice(pictures, STRETCH - 1)), size)


def _crop_stretch(pictures: Iterator[np.ndarray], size: int) -> tuple[np.ndarray, bool]:
    """Cut one square out of all pictures uint8 [H,W,3], so that the background keeps still: (uint8 [T,size,size,3],
    face found). The largest face is looked for on a few pictures near the start; without one, the centred square."""
    square: np.ndarray | None = None
    held: list[np.ndarray] = []  # until the square is known
    for number, picture in enumerate(pictures):
        held.append(picture)
        if number in LOOKS:
            square = _face_square(picture, size)
        if square is not None or number == LOOKS[-1]:
            break
    found = square is not None
    square = square if found else centred_square(held[0], size)
    return np.stack([cut(picture, square, size) for picture in itertools.chain(held, pictures)]), found


def _face_square(pixels: np.ndarray, size: int) -> np.ndarray | None:
    """The similarity [2,3] from pixels uint8 [H,W,3] to the square around the largest face; None without one."""
    try:
        return square_of(pixels_to_pictures(pixels), size, 0, on_missing="error")[0]
    except InputError:
        return None


# Shards --------------------------------------------------------------------------------------------------


class ShardPictures:
    """The frames of shards (footage/shards.py), each index one stretch, of which any frame is read.

    Raises InputError where there are no shards or one of them has no frames.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], size: int, portraits: bool = False):
        self.size, self.portraits = size, portraits
        self._entries = [entry for path in find_shards(paths) for entry in index_shard(path)]
        blind = [entry for entry in self._entries if "mp4" not in entry.members]
        if blind:
            raise InputError(
                f"{blind[0].path} has latents but no frames, which an autoencoder is trained on; prepare the videos "
                "with frames kept."
            )
        small = [entry for entry in self._entries if min(entry.size) < size]
        if small:
            warnings.warn(
                f"The frames of {small[0].path} are {small[0].size[1]}x{small[0].size[0]} pixels and are enlarged to "
                f"{size}, which teaches blur; set image_size to the size they were prepared in.",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        return self._entries[index].title

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A frame of stretch `index`. Raises InputError where the shard is damaged or gone."""
        entry = self._entries[index]

        def frame() -> np.ndarray:
            number = int(rng.integers(entry.frames))
            return entry.pixels(number, number + 1)[0].permute(1, 2, 0).numpy()

        if self.portraits:
            return portrait_pair(frame(), frame(), self.size, rng)
        return {"image": random_square(frame(), self.size, rng)}
