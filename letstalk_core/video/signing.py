"""C2PA manifests: a signed statement of what made a video, with a key and a certificate that the user names.

All of it happens here: no timestamp server, no trust list and no remote manifest is asked for. It needs c2pa-python
(the extra `provenance`), which brings cryptography along.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import cannot_write, check_file, create_part, move_into_place
from .marks import GENERATED, VERSION, VOCABULARY
from .writer import VideoWriter

MIME = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime"}
INSTALL = "pip install c2pa-python"
# Offline, and no thumbnail of the portrait: the picture may show more people than the face that speaks.
_SETTINGS = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True)
class Signature:
    """What a video is signed with: the files of a private key and of its certificate (with the chain that it comes
    from), both PEM, and the picture's file that becomes the manifest's ingredient, if there is one."""

    key: str | Path | None
    certificate: str | Path | None
    portrait: str | Path | None = None


def check_signing(signature: Signature, output: Path) -> None:
    """Raises InputError where the file `output` could not be signed so, whatever the reason: now, not after hours.

    Which certificates the standard takes only signing tells, so a video of one picture is signed.
    """
    _library()
    if output.suffix.lower() not in MIME:
        raise InputError(
            f"{output} cannot be signed: C2PA has no place in that format; name it .mp4, or leave the signature out."
        )
    if signature.key is None or signature.certificate is None:
        raise InputError(
            "A signature needs a key and its certificate, and one is missing; give both (--sign-key, --sign-cert)."
        )
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, f"a{output.suffix}")
        with VideoWriter(trial, 16, 16) as writer:
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))
        sign_video(trial, signature, GENERATED, output.name)


def sign_video(path: Path, signature: Signature, source_type: str, title: str) -> None:
    """Sign a finished .mp4, .m4v or .mov, which the signed one replaces. Nothing may be written to it afterwards.

    title: the name that the video will have. InputError where the key or certificate cannot be used, or the disk is
    full; then the file stays as it was.
    """
    c2pa = _library()
    agent = {"name": "LetsTalk", "version": VERSION}
    created = {"action": "c2pa.created", "digitalSourceType": VOCABULARY + source_type, "softwareAgent": agent}
    if signature.portrait is not None:
        created["parameters"] = {"ingredientIds": ["portrait"]}
    manifest = {
        "claim_generator_info": [agent],
        "title": title,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }
    algorithm, key, chain = _credentials(signature)
    part = create_part(path)
    try:
        with (
            c2pa.Context.from_dict(_SETTINGS) as context,
            c2pa.Builder(manifest, context) as builder,
            c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, None)) as signer,
            open(path, "rb") as source,
            open(part, "w+b") as target,
        ):
            if signature.portrait is not None:
                _add_portrait(c2pa, builder, Path(signature.portrait))
            builder.sign(signer, MIME[path.suffix.lower()], source, target)
        move_into_place(part, path)
    except c2pa.C2paError.Signature as error:
        raise InputError(
            f"{signature.certificate} cannot sign a video ({_said(error)}); take a certificate that C2PA allows."
        ) from error
    except (c2pa.C2paError, OSError) as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def _add_portrait(c2pa, builder, portrait: Path) -> None:
    """The picture as the manifest's ingredient, with its own manifest if it has one."""
    about = {"title": "portrait", "label": "portrait", "relationship": "inputTo"}
    try:
        with Image.open(portrait) as picture:  # names lie
            kind = picture.get_format_mimetype()
        with open(portrait, "rb") as file:
            builder.add_ingredient(about, "image/jpeg" if kind == "image/mpo" else kind or "", file)
    except (c2pa.C2paError, OSError) as error:
        raise InputError(
            f"{portrait} cannot be named in a manifest ({_said(error)}); save it as PNG or JPEG."
        ) from error


def _credentials(signature: Signature) -> tuple[str, bytes, bytes]:
    """(algorithm, key, certificates) for c2pa, the last two as PEM; InputError where they cannot be used."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key_file, certificate_file = check_file(signature.key, "key"), check_file(signature.certificate, "certificate")
    secret, chain = key_file.read_bytes(), certificate_file.read_bytes()
    try:
        key = load_pem_private_key(secret, None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key_file} is no private key in PEM, without a password; export it as PKCS #8.") from error
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise InputError(f"{certificate_file} is no certificate in PEM; export it as PEM.") from error
    if certificate.public_key() != key.public_key():
        raise InputError(f"The key {key_file} does not belong to the certificate {certificate_file}; give its own key.")
    now = datetime.datetime.now(datetime.timezone.utc)
    if now > certificate.not_valid_after_utc:
        raise InputError(f"{certificate_file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it.")
    if now < certificate.not_valid_before_utc:
        raise InputError(f"{certificate_file} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}; wait.")
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256", secret, chain
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519", secret, chain
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name], secret, chain
    raise InputError(f"{key_file} is of a kind that C2PA does not know; take an elliptic curve such as P-256.")


def read_manifest(path: Path) -> tuple[str, bool | None, list[str]]:
    """What a video's C2PA manifest says: (words for people, does it hold?, its digital source types).

    It does not hold where the file was changed after signing; None where c2pa-python, which could tell, is missing.
    """
    try:
        c2pa = _library()
    except InputError:
        return f"there is one; {INSTALL} to check it", None, []
    try:
        with (
            c2pa.Context.from_dict(_SETTINGS) as context,
            open(path, "rb") as file,
            c2pa.Reader("video/mp4", file, context=context) as reader,
        ):
            told = json.loads(reader.json())
    except c2pa.C2paError as error:
        return f"invalid ({_said(error)})", False, []
    manifest = told["manifests"][told["active_manifest"]]
    signed = manifest.get("signature_info", {})
    by = f"signed by {signed.get('common_name') or 'somebody'} ({signed.get('issuer') or 'no organisation'})"
    if told["validation_state"] == "Invalid":
        failures = told.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
        reasons = [each.get("explanation") or each["code"] for each in failures if "untrusted" not in each["code"]]
        return f"invalid ({'; '.join(reasons) or 'no reason is given'}), {by}", False, []
    actions = [each["data"]["actions"] for each in manifest["assertions"] if each["label"].startswith("c2pa.actions")]
    sources = [action["digitalSourceType"] for some in actions for action in some if "digitalSourceType" in action]
    types = ", ".join(source.removeprefix(VOCABULARY) for source in sources)
    trust = "" if told["validation_state"] == "Trusted" else "; no trust list was asked who that is"
    return f"valid, {by}, digital source type {types or 'not given'}{trust}", True, sources


def _said(error: Exception) -> str:
    """The library's reason, without the kind of error that it begins with."""
    return str(error).split(": ", 1)[-1].rstrip(".")


def _library():
    """The module c2pa; InputError where it is missing."""
    try:
        import c2pa
    except ImportError as error:
        raise InputError(f"Signing needs the package c2pa-python, which is not installed; {INSTALL}.") from error
    return c2pa
