"""C2PA manifests: signed with a key of the user's, verified, and refused before anything is made."""

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from letstalk_core.cli import EXIT_NOT_MARKED, main
from letstalk_core.errors import InputError
from letstalk_core.render import render
from letstalk_core.render.render import render_video
from letstalk_core.video import signing
from letstalk_core.video.marks import C2PA_BOX, GENERATED, VERSION, VOCABULARY, XMP_BOX, boxes
from letstalk_core.video.reader import read_video_frames
from letstalk_core.video.signing import Signature, check_signing, sign_video
from letstalk_core.video.verify import verify_marks

from .certificates import write_certificate
from .command_line import command
from .rendering import StopAt
from .test_marks import lines_of, packets, write

c2pa = pytest.importorskip("c2pa")
VALID = (
    f"C2PA manifest: valid, signed by Anna (LetsTalk's tests), digital source type {GENERATED}; no trust list was "
    "asked who that is"
)


@pytest.fixture(scope="module")
def anna(tmp_path_factory):
    """A key and its certificate."""
    return write_certificate(tmp_path_factory.mktemp("anna"), "Anna")


def manifests(path) -> dict:
    with c2pa.Context.from_dict(signing._SETTINGS) as context, c2pa.Reader(path, context=context) as reader:
        return json.loads(reader.json())


@pytest.mark.parametrize("suffix", ["mp4", "m4v", "mov"])
def test_a_signed_file_verifies_and_plays_as_before(tmp_path, anna, suffix):
    path = write(tmp_path / f"a.{suffix}")
    before, frames = packets(path), read_video_frames(path)
    sign_video(path, Signature(*anna), GENERATED, "talk.mp4")
    assert verify_marks(path) == ([*lines_of(GENERATED, suffix), VALID], True)
    assert packets(path) == before and (read_video_frames(path) == frames).all()
    with open(path, "rb") as file:
        kinds = [kind for kind, _ in boxes(file)]
    assert kinds.count(C2PA_BOX) == kinds.count(XMP_BOX) == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_the_manifest_says(tmp_path, anna, repository):
    """Who made it of what; no name of a file of the user's, and no thumbnail, which may show more people."""
    path = write(tmp_path / "a.mp4")
    sign_video(path, Signature(*anna, repository / "assets" / "portrait.jpg"), GENERATED, "talk.mp4")
    told = manifests(path)
    (manifest,) = told["manifests"].values()
    generator = manifest["claim_generator_info"][0]
    assert (generator["name"], generator["version"], manifest["title"]) == ("LetsTalk", VERSION, "talk.mp4")
    (ingredient,) = manifest["ingredients"]
    assert (ingredient["title"], ingredient["relationship"]) == ("portrait", "inputTo")
    assert "thumbnail" not in ingredient and "thumbnail" not in manifest
    (actions,) = [each["data"]["actions"] for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2"]
    assert [(each["action"], each["digitalSourceType"]) for each in actions] == [
        ("c2pa.created", VOCABULARY + GENERATED)
    ]
    assert len(actions[0]["parameters"]["ingredients"]) == 1
    assert "time" not in manifest["signature_info"]  # nobody was asked for it


def test_a_portrait_s_own_manifest_is_kept(tmp_path, anna, repository):
    portrait = tmp_path / "portrait.jpg"
    shutil.copy(repository / "assets" / "portrait.jpg", tmp_path / "bare.jpg")
    _, key, chain = signing._credentials(Signature(*anna))
    created = {"action": "c2pa.created", "digitalSourceType": VOCABULARY + "digitalCapture"}
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    camera = {"claim_generator_info": [{"name": "Camera"}], "assertions": [actions]}
    with (
        c2pa.Context.from_dict(signing._SETTINGS) as context,
        c2pa.Builder(camera, context) as builder,
        c2pa.Signer.from_info(c2pa.C2paSignerInfo("es256", chain, key, None)) as signer,
    ):
        builder.sign_file(tmp_path / "bare.jpg", portrait, signer)
    path = write(tmp_path / "a.mp4")
    sign_video(path, Signature(*anna, portrait), GENERATED, "a.mp4")
    told = manifests(path)
    names = {each["claim_generator_info"][0]["name"] for each in told["manifests"].values()}
    assert names == {"Camera", "LetsTalk"}
    (ingredient,) = told["manifests"][told["active_manifest"]]["ingredients"]
    assert ingredient["active_manifest"] in told["manifests"]
    assert verify_marks(path)[1]


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tiff", "gif", "pcx", "png called jpg", "without a suffix"])
def test_portraits_of_many_kinds(tmp_path, anna, kind):
    file, name = {
        "png called jpg": ("png", "a.jpg"),
        "without a suffix": ("png", "a"),
    }.get(kind, (kind, f"a.{kind}"))
    Image.new("RGB", (64, 64), "red").save(tmp_path / name, format=file)
    path = write(tmp_path / "a.mp4", 2)
    sign_video(path, Signature(*anna, tmp_path / name), GENERATED, "a.mp4")
    (ingredient,) = next(iter(manifests(path)["manifests"].values()))["ingredients"]
    assert ingredient["format"].removeprefix("image/x-").removeprefix("image/") == file


@pytest.mark.parametrize("where", [b"mdat", b"moov", XMP_BOX, C2PA_BOX])
def test_one_changed_byte_is_noticed(tmp_path, anna, capfd, where):
    path = write(tmp_path / "a.mp4")
    sign_video(path, Signature(*anna), GENERATED, "a.mp4")
    content = bytearray(path.read_bytes())
    with open(path, "rb") as file:
        for kind, size in boxes(file):
            if kind == where:
                at = file.tell() + (size * 2 // 3 if kind in (b"mdat", XMP_BOX) else size // 2)
    if where == b"moov":
        at = content.index(b"Synthetic video")
    content[at] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(path)]) == EXIT_NOT_MARKED
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("C2PA")]
    assert line.startswith("C2PA manifest: invalid (") and "()" not in line and "no reason" not in line


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_other_kinds_of_keys(tmp_path, make):
    path = write(tmp_path / "a.mp4", 2)
    sign_video(path, Signature(*write_certificate(tmp_path, "Anna", key=make())), GENERATED, "a.mp4")
    assert VALID in verify_marks(path)[0]


def test_a_certificate_without_an_authority(tmp_path):
    path = write(tmp_path / "a.mp4", 2)
    sign_video(path, Signature(*write_certificate(tmp_path, "Anna", self_signed=True)), GENERATED, "a.mp4")
    assert VALID in verify_marks(path)[0]


@pytest.mark.usefixtures("short_segments")
def test_a_joined_video_is_signed_last(job, tmp_path, anna):
    path = tmp_path / "a.mp4"
    assert render_video(job, path, signature=Signature(*anna)) == 38
    assert verify_marks(path) == ([*lines_of(GENERATED, "mp4"), VALID], True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    render_video(job, tmp_path / "b.mp4")
    assert packets(path) == packets(tmp_path / "b.mp4")


@pytest.mark.usefixtures("short_segments")
def test_a_certificate_that_fails_at_the_end_loses_nothing(job, tmp_path, anna, monkeypatch):
    def expired(*_):
        raise InputError("expired")

    monkeypatch.setattr(render, "sign_video", expired)
    with pytest.raises(InputError, match="expired"):
        render_video(job, tmp_path / "a.mp4", signature=Signature(*anna))
    assert not (tmp_path / "a.mp4").exists()
    monkeypatch.undo()
    seen = StopAt()
    render_video(job, tmp_path / "a.mp4", seen, signature=Signature(*anna))
    assert seen.made == [] and VALID in verify_marks(tmp_path / "a.mp4")[0]


def bad_signatures(folder) -> dict[str, tuple[tuple, str]]:
    anna, ben = write_certificate(folder, "Anna"), write_certificate(folder, "Ben")
    (folder / "text.pem").write_text("not a key")
    (folder / "empty.pem").write_text("")
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (folder / "locked.pem").write_bytes(locked)
    web = write_certificate(folder, "Web", usage=ExtendedKeyUsageOID.SERVER_AUTH)
    odd = write_certificate(folder, "Odd", key=ec.generate_private_key(ec.SECP256K1()))
    return {
        "expired": (
            write_certificate(folder, "Old", (-9, -1)),
            r"cert\.pem expired on 20\d\d-\d\d-\d\d; renew it",
        ),
        "too early": (write_certificate(folder, "Early", (2, 9)), "is not valid before"),
        "another key": ((ben[0], anna[1]), "does not belong to the certificate"),
        "no key": ((folder / "text.pem", anna[1]), "is no private key in PEM, without a password"),
        "a key with a password": ((folder / "locked.pem", anna[1]), "is no private key in PEM, without a password"),
        "empty": ((anna[0], folder / "empty.pem"), "is empty"),
        "missing": ((folder / "nowhere.pem", anna[1]), "There is no file"),
        "no certificate": ((anna[0], folder / "text.pem"), "is no certificate in PEM"),
        "swapped": ((anna[1], anna[0]), "is no private key"),
        "only a key": ((anna[0], None), "one is missing; give both"),
        "for websites": (web, r"cannot sign a video \(.+\); take a certificate that C2PA allows"),
        "an odd curve": (odd, "is of a kind that C2PA does not know"),
    }


CASES = (
    *("expired", "too early", "another key", "no key", "a key with a password", "empty", "missing", "no certificate"),
    *("swapped", "only a key", "for websites", "an odd curve"),
)


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_sign_is_said_before_anything_is_made(job, tmp_path, case):
    files, words = bad_signatures(tmp_path)[case]
    there, seen = sorted(tmp_path.iterdir()), StopAt()
    with pytest.raises(InputError, match=words) as caught:
        render_video(job, tmp_path / "a.mp4", seen, signature=Signature(*files))
    assert "\n" not in str(caught.value)
    assert seen.estimate is None and sorted(tmp_path.iterdir()) == there


def test_formats_that_cannot_be_signed(job, tmp_path, anna):
    with pytest.raises(InputError, match=r"a\.mkv cannot be signed: C2PA has no place in that format; name it \.mp4"):
        render_video(job, tmp_path / "a.mkv", signature=Signature(*anna))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"cut\.png cannot be named in a manifest .+; save it as PNG or JPEG"):
        check_signing(Signature(*anna, tmp_path / "cut.png"), tmp_path / "a.mp4")


def test_without_the_package(job, tmp_path, anna, monkeypatch):
    path = write(tmp_path / "a.mp4")
    sign_video(path, Signature(*anna), GENERATED, "a.mp4")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(InputError, match="needs the package c2pa-python.+pip install c2pa-python"):
        render_video(job, tmp_path / "b.mp4", signature=Signature(*anna))
    lines, marked = verify_marks(path)
    assert marked and lines[-1] == "C2PA manifest: there is one; pip install c2pa-python to check it"
    render_video(job, tmp_path / "b.mp4")  # marks need nothing
    assert verify_marks(tmp_path / "b.mp4")[1]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, anna):
    path = write(tmp_path / "a.mp4")
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a\.mp4 cannot be written \("):
            sign_video(path, Signature(*anna), GENERATED, "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_the_command_line_signs_one_and_many(inputs, tmp_path, anna, capfd):
    key, certificate = map(str, anna)
    assert main(command(inputs, tmp_path / "a.mp4", sign_key=key, sign_cert=certificate)) == 0
    assert VALID in verify_marks(tmp_path / "a.mp4")[0]
    assert len(manifests(tmp_path / "a.mp4")["manifests"]) == 1
    assert "ingredients" in next(iter(manifests(tmp_path / "a.mp4")["manifests"].values()))
    (tmp_path / "many.csv").write_text(f"portrait,audio,output\n{inputs['portrait']},{inputs['audio']},b.mp4\n")
    many = ["generate-many", str(tmp_path / "many.csv"), "--output", str(tmp_path), "--model", str(inputs["model"])]
    assert main([*many, "--sign-key", key, "--sign-cert", certificate]) == 0
    assert VALID in verify_marks(tmp_path / "b.mp4")[0]
    capfd.readouterr()
    assert main(command(inputs, tmp_path / "c.mp4", sign_key=key)) == 1
    assert capfd.readouterr().err.count("\n") == 1 and not (tmp_path / "c.mp4").exists()


SIGN = """
import sys
from pathlib import Path
from letstalk_core.video.signing import Signature, sign_video
from letstalk_core.video.verify import verify_marks
sign_video(Path(sys.argv[1]), Signature(*sys.argv[2:]), "trainedAlgorithmicMedia", "a.mp4")
print(verify_marks(sys.argv[1])[1])
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_no_network_is_asked(tmp_path, anna, repository):
    path = write(tmp_path / "a.mp4", 2)
    command = ["strace", "-f", "-e", "trace=connect,sendto", "-o", tmp_path / "calls", sys.executable, "-c", SIGN]
    done = subprocess.run([*command, path, *anna], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert "AF_INET" not in (tmp_path / "calls").read_text()
