"""Certificates on the controller: which requests are signed, which certificates are kept, when they end."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

CERTIFICATE_DAYS = 30  # site.yml renews a server certificate that ends sooner: fl_pki_renew_days


def coldframe_certificate_fits(path: str, request: str, authority: str, days: int) -> bool:
    """Say whether a certificate is still the one that would be signed for a request.

    Parameters
    ----------
    path : str
        The certificate's file, which may be missing.
    request : str
        Signing request in PEM.
    authority : str
        The file of the certificate of the authority that has to have signed it.
    days : int
        Days that it has to last at least.
    """
    if not (Path(path).is_file() and Path(authority).is_file()):
        return False
    wanted = x509.load_pem_x509_csr(request.encode())
    try:
        certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(Path(authority).read_bytes()))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return (
        certificate.public_key() == wanted.public_key()
        and certificate.subject == wanted.subject
        and _names(certificate) == _names(wanted)
        and certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=int(days))
    )


def coldframe_ends(text: str) -> list[str]:
    """Return the ends of the certificates in a text, in PEM and in their order, as ISO 8601."""
    found = x509.load_pem_x509_certificates(text.encode())
    return [certificate.not_valid_after_utc.isoformat() for certificate in found]


def coldframe_request_asks_for(request: str, common_name: str, names: list[str]) -> bool:
    """Say whether a signing request asks for exactly what the controller wants to sign.

    Whatever a request has is copied into the certificate: so one with other names, or with anything beside
    them (such as the right to sign others), must not be signed.

    Parameters
    ----------
    request : str
        Signing request in PEM, as a machine has sent it.
    common_name : str
        The subject's only part.
    names : list of str
        The subject's alternative names: IP:... or DNS:...
    """
    try:
        asked = x509.load_pem_x509_csr(request.encode())
        parts = [(part.oid, part.value) for part in asked.subject]
        kinds = [type(extension.value) for extension in asked.extensions]
    except ValueError:
        return False
    wanted = {
        x509.IPAddress(ipaddress.ip_address(value)) if kind == "IP" else x509.DNSName(value)
        for kind, _, value in (name.partition(":") for name in names)
    }
    return (
        asked.is_signature_valid
        and parts == [(NameOID.COMMON_NAME, common_name)]
        and kinds == [x509.SubjectAlternativeName]
        and _names(asked) == wanted
    )


def _names(item: x509.Certificate | x509.CertificateSigningRequest) -> set[x509.GeneralName]:
    return set(item.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def certificates_last(
    directory: Path, days: int, now: datetime, monitored: Iterable[str], metrics: bool
) -> bool:
    """Say whether the certificates that this controller has signed, and renews, last so many days more.

    Parameters
    ----------
    directory : Path
        Where the controller keeps them; one that another controller has signed is not there.
    monitored : iterable of str
        The machines whose exporters are deployed: those of others are no longer renewed.
    metrics : bool
        Whether the server's metrics are published.
    """
    names = ["server.crt", *(["metrics.crt"] if metrics else []), *(f"machines/{m}.crt" for m in monitored)]
    signed = [path for name in names if (path := directory / name).is_file()]
    ends = (x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc for path in signed)
    return all(end - now > timedelta(days=days) for end in ends)


def warn_certificate(path: Path, now: datetime) -> list[str]:
    """A warning if the server's certificate, as this controller has signed it, ends soon or has ended."""
    if not path.is_file():
        return []  # another controller has deployed the federation, or nobody yet
    end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    days = (end - now).days
    if days >= CERTIFICATE_DAYS:
        return []
    when = f"ends on {end:%Y-%m-%d}, in {days} days" if end > now else f"has ended on {end:%Y-%m-%d}"
    return [f"the server's certificate {when}: type ansible-playbook site.yml -e train=false to renew it"]
