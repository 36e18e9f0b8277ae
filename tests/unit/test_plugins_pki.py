"""Tests of the filter that says whether a certificate has to be signed anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coldframe.controller.certificates import (
    certificates_last,
    coldframe_certificate_fits,
    coldframe_ends,
    coldframe_request_asks_for,
)
from coldframe.controller.openpgp import coldframe_key_fingerprints
from coldframe.keys import signing_request

AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
NAMES = ["IP:192.0.2.1", "DNS:localhost"]


def sign(path: Path, subject: x509.CertificateSigningRequest | None, key: ec.EllipticCurvePrivateKey) -> Path:
    """Write the certificate of a request, or the authority's own, good for ten days."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject.subject if subject else AUTHORITY)
        .issuer_name(AUTHORITY)
        .public_key(subject.public_key() if subject else key.public_key())  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=10))
    )
    for extension in subject.extensions if subject else []:
        builder = builder.add_extension(extension.value, extension.critical)
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def pki(tmp_path: Path) -> tuple[str, str, str]:
    """A certificate, its request and its authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = sign(tmp_path / "ca.crt", None, key)
    request = str(signing_request(tmp_path / "a.key", "server", NAMES)["csr"])
    certificate = sign(tmp_path / "a.crt", x509.load_pem_x509_csr(request.encode()), key)
    return str(certificate), request, str(authority)


def test_what_was_signed_fits_as_long_as_it_lasts(pki: tuple[str, str, str]) -> None:
    assert coldframe_certificate_fits(*pki, 9)
    assert not coldframe_certificate_fits(*pki, 11)


def test_ends_of_certificates_are_told_in_their_order(pki: tuple[str, str, str]) -> None:
    """Of a text that holds more than certificates, too."""
    certificate, _, authority = pki
    text = Path(certificate).read_text() + Path(authority).read_text()
    ends = coldframe_ends(f'{text}{{"runtime": "warm"}}\n')
    assert len(ends) == 2
    left = [(datetime.fromisoformat(end) - datetime.now(UTC)).total_seconds() for end in ends]
    assert all(0 <= 864_000 - seconds < 600 for seconds in left), ends
    assert ends[0].endswith("+00:00")


def test_certificates_of_the_monitoring_count_where_they_are_renewed(tmp_path: Path) -> None:
    """Those of a monitoring that is off, or of a machine that has left, are kept, and end some day."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    (tmp_path / "machines").mkdir()
    assert certificates_last(tmp_path, 30, now, ["c1"], metrics=True), "another controller has signed all"
    sign(tmp_path / "machines" / "c1.crt", None, key)
    assert certificates_last(tmp_path, 9, now, ["c1"], metrics=True)
    assert not certificates_last(tmp_path, 11, now, ["c1"], metrics=True)
    assert certificates_last(tmp_path, 11, now, ["c2"], metrics=True)
    sign(tmp_path / "metrics.crt", None, key)
    assert not certificates_last(tmp_path, 11, now, [], metrics=True)
    assert certificates_last(tmp_path, 11, now, [], metrics=False)
    sign(tmp_path / "server.crt", None, key)
    assert not certificates_last(tmp_path, 11, now, [], metrics=False)


@pytest.mark.parametrize(
    ("key", "name", "names"),
    [("b", "server", NAMES), ("a", "other", NAMES), ("a", "server", NAMES[:1]), ("a", "server", [])],
    ids=["another key", "another subject", "a name less", "no names"],
)
def test_what_was_signed_for_something_else_does_not_fit(
    pki: tuple[str, str, str], tmp_path: Path, key: str, name: str, names: list[str]
) -> None:
    request = str(signing_request(tmp_path / f"{key}.key", name, names)["csr"])
    assert not coldframe_certificate_fits(pki[0], request, pki[2], 1)


def test_another_authoritys_does_not_fit(pki: tuple[str, str, str], tmp_path: Path) -> None:
    other = sign(tmp_path / "other.crt", None, ec.generate_private_key(ec.SECP256R1()))
    assert not coldframe_certificate_fits(pki[0], pki[1], str(other), 1)


def test_one_that_is_missing_does_not_fit(pki: tuple[str, str, str]) -> None:
    assert not coldframe_certificate_fits(f"{pki[0]}.gone", pki[1], pki[2], 1)


def test_one_that_is_damaged_does_not_fit(pki: tuple[str, str, str]) -> None:
    Path(pki[0]).write_text("-----BEGIN CERTIFICATE-----\n")
    assert not coldframe_certificate_fits(*pki, 1)


def request(*extensions: x509.ExtensionType, name: str = "server") -> str:
    """Return a signing request as a machine could make it by itself."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def test_our_own_request_asks_for_what_is_wanted(tmp_path: Path) -> None:
    made = str(signing_request(tmp_path / "a.key", "server", NAMES)["csr"])
    assert coldframe_request_asks_for(made, "server", NAMES)
    assert coldframe_request_asks_for(made, "server", NAMES[::-1])


SAN = x509.SubjectAlternativeName([x509.DNSName("localhost")])


@pytest.mark.parametrize(
    "asked",
    [
        request(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName("prometheus")])),
        request(x509.SubjectAlternativeName([x509.DNSName("prometheus")])),
        request(SAN, x509.BasicConstraints(ca=True, path_length=None)),
        request(SAN, x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])),
        request(SAN, name="authority"),
        request(),
        "no request",
    ],
    ids=[
        "a name more",
        "another name",
        "to sign others",
        "another use",
        "another subject",
        "no names",
        "torn",
    ],
)
def test_a_request_for_anything_else_is_not_signed(asked: str) -> None:
    assert coldframe_request_asks_for(request(SAN), "server", ["DNS:localhost"])
    assert not coldframe_request_asks_for(asked, "server", ["DNS:localhost"])


# Made by gpg: a key that signs, with a subkey that encrypts.
KEY = """\
-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEaw21RRYJKwYBBAHaRw8BAQdAeo8+4LmFWnvfihRlLel8h+3z9b3BB7PvbqzK
IYXdRZy0F3Rlc3QgPHRlc3RAZXhhbXBsZS5vcmc+iJAEExYIADgWIQTdzVfQHVr6
5dVG1+BPcPu9YTenOQUCaw21RQIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAK
CRBPcPu9YTenOWbTAP4z6DmhtbpbQPkD99jvgpVpEUm++MlUKR+dQXXh7NiwXgD/
bwOxinVhtZvQCoZ3YLXsRjzOc198vDT+H6Tc22XaowO4OARrDbVFEgorBgEEAZdV
AQUBAQdA6VH4RDHcd2dp6Uh7ThTt7uMBdLPyYcscON7uP0GOklgDAQgHiHgEGBYI
ACAWIQTdzVfQHVr65dVG1+BPcPu9YTenOQUCaw21RQIbDAAKCRBPcPu9YTenOSAK
APsG2bEVpuSy2U+M9lAWrlIk88+i57wTM+dFzbwPUpVPBgD/YhTuIYZtDUFJHsuF
j/KGBPpYSq9yg4A6iZJNm/tbPAE=
=xKjg
-----END PGP PUBLIC KEY BLOCK-----
"""
FINGERPRINT = "DDCD57D01D5AFAE5D546D7E04F70FBBD6137A739"


def test_fingerprints_of_keys_are_those_that_gpg_shows() -> None:
    """Of each key in the text: one that is added to the right one does not go unseen."""
    assert coldframe_key_fingerprints(KEY) == [FINGERPRINT]
    assert coldframe_key_fingerprints(KEY.replace("\n", "\r\n")) == [FINGERPRINT]
    assert coldframe_key_fingerprints(KEY + KEY) == [FINGERPRINT] * 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>sign in first</html>",
        KEY[:200],
        KEY.replace("mDMEaw21", "mDMEaw22"),
        KEY.replace("mDME", "!"),
    ],
    ids=["nothing", "a page", "cut", "another key", "no base64"],
)
def test_another_text_has_not_the_fingerprint(text: str) -> None:
    assert FINGERPRINT not in coldframe_key_fingerprints(text)
