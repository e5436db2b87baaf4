"""Files of the published networks' shapes load and are looked with; other files are refused in one sentence."""

import numpy as np
import pytest
import torch

from letstalk_core.data.preparation.syncnet import (
    SyncNet,
    cepstral_coefficients,
    load_syncnet,
    shifted_scores,
    sync_scores,
)
from letstalk_core.errors import CheckpointError
from letstalk_core.evaluation import feature_networks
from letstalk_core.evaluation.i3d import I3D, pad_as_tensorflow

PICTURES = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
# Shapes of layers as they are in the published files.
I3D_SHAPES = {
    "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
    "Conv3d_2c_3x3.bn.running_var": (192,),
    "Mixed_3b.b1b.conv3d.weight": (128, 96, 3, 3, 3),
    "Mixed_4f.b2a.conv3d.weight": (32, 528, 1, 1, 1),
    "Mixed_5c.b3b.conv3d.weight": (128, 832, 1, 1, 1),
    "logits.conv3d.weight": (400, 1024, 1, 1, 1),
    "logits.conv3d.bias": (400,),
}
SYNCNET_SHAPES = {
    "netcnnaud.0.weight": (64, 1, 3, 3),
    "netcnnaud.14.weight": (256, 256, 3, 3),
    "netcnnaud.18.weight": (512, 256, 5, 4),
    "netcnnlip.0.weight": (96, 3, 5, 7, 7),
    "netcnnlip.18.weight": (512, 256, 1, 6, 6),
    "netfcaud.3.weight": (1024, 512),
    "netfclip.1.running_mean": (512,),
}


def saved(network: torch.nn.Module, path, counters=True):
    torch.save({k: v for k, v in network.state_dict().items() if counters or "num_batches" not in k}, path)
    return path


@pytest.mark.parametrize("kind, shapes", [(I3D, I3D_SHAPES), (SyncNet, SYNCNET_SHAPES)])
def test_layers_have_the_published_names_and_shapes(kind, shapes):
    state = kind().state_dict()
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_i3d_looks_at_each_window(tmp_path):
    torch.manual_seed(0)
    look = feature_networks.load_i3d(saved(I3D(), tmp_path / "i3d.pt", counters=False))
    video = np.concatenate([PICTURES[:16], PICTURES[4:20]])
    found = look(video)
    assert found.shape == (2, 400) and not np.allclose(found[0], found[1])
    assert np.allclose(look(PICTURES[:20]), found[:1], atol=1e-5)  # the four frames that are left over are no window
    assert np.array_equal(look(video), found)


def test_padding_is_tensorflows():
    assert pad_as_tensorflow(torch.ones(1, 1, 16, 224, 224), (7, 7, 7), (2, 2, 2)).shape[2:] == (21, 229, 229)
    padded = pad_as_tensorflow(torch.ones(1, 1, 1, 1, 4), (1, 1, 3), (1, 1, 2))[0, 0, 0, 0]
    assert padded.tolist() == [1, 1, 1, 1, 0]  # the odd zero is at the end


def test_cepstral_coefficients_are_those_of_python_speech_features():
    """Computed once with python_speech_features 0.6."""
    tone = 2000 * np.sin(2 * np.pi * 440 * np.arange(3000) / 16000)
    found = cepstral_coefficients(tone)
    expected = [16.2933, 26.0439, 9.4326, -7.5628, -21.8845, -29.1895, -25.8865, -15.1882, -0.2094, 12.4903, 19.9723]
    assert found.shape == (18, 13) and np.allclose(found[3], [*expected, 19.1247, 12.2592], atol=1e-4)


@pytest.mark.parametrize("late", [-4, 0, 7])
def test_sound_that_comes_late_is_found(late):
    """Vectors that are alike in pairs: the distance is 0 at the right shift and far from it elsewhere."""
    torch.manual_seed(0)
    seen = torch.randn(60, 32)
    clear, least, shift = shifted_scores(seen, seen.roll(late, 0))
    assert shift == late and least < 2 and clear > 4
    unclear, apart, _ = shifted_scores(seen, torch.randn(60, 32))
    assert unclear < 1 < apart


def test_syncnet_hears_and_sees(tmp_path):
    torch.manual_seed(0)
    net = load_syncnet(saved(SyncNet(), tmp_path / "syncnet_v2.model"))
    faces = np.random.default_rng(0).integers(0, 256, (10, 224, 224, 3), np.uint8)
    sound = np.random.default_rng(1).standard_normal(6400).astype(np.float32) / 10
    scores = sync_scores(net, faces, sound)
    assert np.isfinite(scores).all() and scores == sync_scores(net, faces, sound)
    assert np.isnan(sync_scores(net, faces[:5], sound)[:2]).all()


def test_inception_of_fid_gives_2048_features(tmp_path):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    kind = fidelity.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:  # it has no way to be made without a file
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        shell = kind("random", ["2048"])
    look = feature_networks.load_inception(saved(shell, tmp_path / "inception.pth"))
    assert look(PICTURES).shape == (20, 2048) and np.isfinite(look(PICTURES)).all()
    with pytest.raises(CheckpointError, match="is not the InceptionV3 of FID"):
        feature_networks.load_inception(saved(torch.nn.Linear(2, 2), tmp_path / "other.pth"))


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_lpips_takes_torchvisions_files(name, tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    compare = feature_networks.load_lpips(saved(getattr(models, name)(weights=None), tmp_path / f"{name}.pth"))
    near = np.clip(PICTURES.astype(int) + 4, 0, 255).astype(np.uint8)
    assert compare(PICTURES, PICTURES).max() < 1e-6
    assert 0 < compare(near, PICTURES).mean() < compare(PICTURES[::-1], PICTURES).mean()


def test_onnx_networks_of_faces(tmp_path):
    path = write_onnx(tmp_path / "net.onnx", (3, 3))
    found = feature_networks.OnnxJudge(path, from_signed=True)
    crops = PICTURES[:2, :8, :8]
    assert found.side == 8 and found(crops).shape == (2, 3)
    assert np.allclose(found(crops), crops.astype(float).mean((1, 2)) / 127.5 - 1, atol=1e-5)
    plain = feature_networks.OnnxJudge(path, from_signed=False)
    assert np.allclose(plain(crops), crops.astype(float).mean((1, 2)) / 255, atol=1e-5)


def write_onnx(path, shape):
    """A network that averages each colour of pictures of 8 pixels, of `shape[0]` colours."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("ReduceMean", ["pictures", "axes"], ["vectors"], keepdims=0)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    given = helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["n", shape[0], 8, 8])
    made = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", shape[1]])
    graph = helper.make_graph([node], "mean", [given], [made], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_files_of_another_kind_are_refused(tmp_path):
    other = saved(torch.nn.Linear(2, 2), tmp_path / "other.pt")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no weights at all")
    nested = tmp_path / "nested.pt"
    torch.save({"state_dict": {}, "epoch": 3}, nested)
    damaged = [tmp_path / f"damaged {number}.pt" for number in range(4)]  # each another error of unpickling
    for path, content in zip(damaged, (b".", b"h\x05", b"X\x01\x00\x00\x00\xff", b"\x80\x02K"), strict=True):
        path.write_bytes(content)
    cases = [
        ("i3d", other, "give the I3D of Kinetics-400"),
        ("syncnet", other, "give syncnet_v2.model"),
        ("i3d", broken, "no file of weights"),
        ("syncnet", nested, "no plain table of tensors"),
        *(("syncnet", path, "no file of weights") for path in damaged),
        ("identity", broken, "no ONNX network"),
        ("expression", write_onnx(tmp_path / "grey.onnx", (1, 1)), r"takes \['n', 1, 8, 8\]"),
    ]
    for name, path, words in cases:
        with pytest.raises(CheckpointError, match=words) as caught:
            feature_networks.load_networks({name: path})
        assert "\n" not in str(caught.value)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"weight": Runs()}, tmp_path / "bad.pt")
    for load in (feature_networks.load_i3d, load_syncnet):
        with pytest.raises(CheckpointError, match="cannot|can be read"):
            load(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
