"""The published networks that FID, FVD, LPIPS, Sync-C and the like look with, from files that the user names.

None is downloaded, and none is replaced by another. docs/evaluation.md says where each file is from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..data.preparation.syncnet import SyncNet, load_syncnet
from ..errors import CheckpointError, InputError
from ..files import check_file
from ..pixels import pixels_to_images, pixels_to_planes
from ..weights import fill_strictly, read_published, read_state
from .i3d import I3D, SIDE, WINDOW

BATCH = 16  # pictures that are looked at at a time
ALEXNET = "features.10.weight"  # its last convolution; VGG16 has a convolution there, too, of another shape
Judge = Callable[[np.ndarray], np.ndarray]  # frames uint8 [n,H,W,3] -> features [n,D]


@dataclass(frozen=True)
class Networks:
    """Those that a file was given for; the others are None.

    inception: frames -> [n,2048]. i3d: frames -> [windows,400]. lpips: two videos -> [n]. syncnet: see syncnet.py.
    identity, expression: crops of a face -> [n,D].
    """

    inception: Judge | None = None
    i3d: Judge | None = None
    lpips: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    syncnet: SyncNet | None = None
    identity: OnnxJudge | None = None
    expression: OnnxJudge | None = None


def load_networks(files: dict[str, Path]) -> Networks:
    """The networks of files, by the names of Networks. CheckpointError where a file is another network's."""
    loaders = {
        "inception": load_inception,
        "i3d": load_i3d,
        "lpips": load_lpips,
        "syncnet": load_syncnet,
        "identity": lambda path: OnnxJudge(path, from_signed=True),
        "expression": lambda path: OnnxJudge(path, from_signed=False),
    }
    return Networks(**{name: loaders[name](check_file(path, f"{name} network")) for name, path in files.items()})


def _batches(frames: np.ndarray) -> Iterator[np.ndarray]:
    for low in range(0, len(frames), BATCH):
        yield frames[low : low + BATCH]


# Pictures -------------------------------------------------------------------------------------------------------------


def load_inception(path: Path) -> Judge:
    """The InceptionV3 of FID, as torch-fidelity has it: frames -> [n,2048], resized as TensorFlow 1 did."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise InputError(f"FID needs {error.name}; run pip install -r requirements-dev.txt.") from None
    read_state(path)  # it holds nothing but tensors: torch-fidelity unpickles whatever there is
    try:
        network = FeatureExtractorInceptionV3("inception", ["2048"], str(path))
    except RuntimeError as error:
        what = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} is not the InceptionV3 of FID: {what}...; docs/evaluation.md names it."
        ) from error

    @torch.inference_mode()
    def look(frames: np.ndarray) -> np.ndarray:
        return torch.cat([network(pixels_to_planes(part))[0] for part in _batches(frames)]).numpy()

    return look


def load_lpips(path: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """LPIPS of torchvision's AlexNet or VGG16, whichever the file is, with the weights of LPIPS that torchmetrics
    carries (version 0.1): two videos uint8 [n,H,W,3] -> [n]."""
    try:
        import torchvision  # noqa: F401
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError as error:
        raise InputError(f"LPIPS needs {error.name}; run pip install -r requirements-dev.txt.") from None
    state = read_state(path)
    alex = ALEXNET in state and tuple(state[ALEXNET].shape) == (256, 256, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = _LPIPS(net="alex" if alex else "vgg", pnet_rand=True)
    # sliceK.N.weight there is features.N.weight in torchvision's file, whose classifier is not needed.
    places = {name: f"features.{name.split('.', 1)[1]}" for name in network.net.state_dict()}
    found = {name: state[place] for name, place in places.items() if place in state}
    fill_strictly(network.net, found, str(path), "give torchvision's AlexNet or VGG16")
    network.eval().requires_grad_(False)

    @torch.inference_mode()
    def compare(made: np.ndarray, real: np.ndarray) -> np.ndarray:
        pairs = zip(_batches(made), _batches(real), strict=True)
        return torch.cat([network(*map(pixels_to_images, pair)).flatten() for pair in pairs]).numpy()

    return compare


def load_i3d(path: Path) -> Judge:
    """I3D: frames [F,H,W,3] -> logits [F // 16,400] of windows that follow one another, resized to 224 pixels."""
    network = read_published(path, I3D(), "give the I3D of Kinetics-400 as a PyTorch state_dict")

    @torch.inference_mode()
    def look(frames: np.ndarray) -> np.ndarray:
        found = []
        for low in range(0, len(frames) - WINDOW + 1, WINDOW):
            images = pixels_to_images(frames[low : low + WINDOW])
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(-1, 1)
            found.append(network(images.transpose(0, 1)[None]))
        return torch.cat(found).numpy()

    return look


# Faces ----------------------------------------------------------------------------------------------------------------


class OnnxJudge:
    """A network of an ONNX file that takes crops [n,3,side,side] and gives vectors [n,D]; side is the file's own.

    from_signed: crops are given in -1..1 (as ArcFace takes them), else in 0..1. Raises CheckpointError for a file of
    another form.
    """

    def __init__(self, path: Path, from_signed: bool):
        try:
            import onnxruntime
        except ImportError:
            raise InputError(f"{path} needs onnxruntime; run pip install -r requirements-dev.txt.") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes have no base but this one
            what = str(error).splitlines()[0][:120]
            raise CheckpointError(f"{path} is no ONNX network that can be read ({what}); export it again.") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = list(inputs[0].shape) if len(inputs) == 1 else []
        fits = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and isinstance(shape[2], int)
        if not fits or len(outputs[0].shape) != 2:
            raise CheckpointError(
                f"{path} takes {shape} and gives {list(outputs[0].shape)}; export a network that takes [n,3,side,side] "
                "and gives [n,D]."
            )
        self.side, self._signed, self._name = shape[2], from_signed, inputs[0].name

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Crops uint8 [n,side,side,3] -> float32 [n,D]."""
        values = crops.astype(np.float32).transpose(0, 3, 1, 2) / 255
        values = values * 2 - 1 if self._signed else values
        one = [self._session.run(None, {self._name: values[i : i + 1]})[0] for i in range(len(values))]
        return np.concatenate(one)
