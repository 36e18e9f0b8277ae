"""What the role fl_pki decides about certificates on the controller."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature


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


def _names(item: x509.Certificate | x509.CertificateSigningRequest) -> set[x509.GeneralName]:
    return set(item.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


class FilterModule:
    """Ansible's way to find the filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"coldframe_certificate_fits": coldframe_certificate_fits}
