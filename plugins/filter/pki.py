"""What the role fl_pki decides about certificates on the controller."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID


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


class FilterModule:
    """Ansible's way to find the filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "coldframe_certificate_fits": coldframe_certificate_fits,
            "coldframe_request_asks_for": coldframe_request_asks_for,
        }
