"""Keys and certificates of an authority of the tests' own, as C2PA wants them."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def write_certificate(folder: Path, name: str, days=(-1, 365), key=None, **changes) -> tuple[Path, Path]:
    """The files (key, certificate with its chain) of somebody called `name`, valid between these days from today.

    key: default a new one on P-256; usage: what the certificate is for; self_signed: without an authority.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    usage, self_signed = changes.get("usage", ExtendedKeyUsageOID.EMAIL_PROTECTION), changes.get("self_signed", False)
    authority = key if self_signed else ec.generate_private_key(ec.SECP256R1())
    issuer = name if self_signed else "The Tests' Authority"
    chain = _certificate(name, issuer, key, authority, days, usage)
    if not self_signed:
        chain += _certificate(issuer, issuer, authority, authority, (-1000, 1000), None)
    files = folder / f"{name}.key.pem", folder / f"{name}.cert.pem"
    files[0].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files[1].write_bytes(chain)
    return files


def _certificate(name, issuer, key, authority, days, usage) -> bytes:
    """One certificate as PEM; usage None: an authority's."""
    is_authority, now = usage is None, datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(_name(issuer), _name(name), key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now + datetime.timedelta(days[0])).not_valid_after(
        now + datetime.timedelta(days[1])
    )
    builder = builder.add_extension(x509.BasicConstraints(is_authority, None), True)
    uses = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    uses |= {"digital_signature": True, "key_cert_sign": is_authority, "crl_sign": is_authority}
    builder = builder.add_extension(x509.KeyUsage(**uses, encipher_only=False, decipher_only=False), True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
    return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)


def _name(text: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "LetsTalk's tests")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, text)])
