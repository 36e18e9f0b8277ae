"""What the controller says of the certificates that it has signed: how long they last."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

CERTIFICATE_DAYS = 30  # site.yml renews a server certificate that ends sooner: fl_pki_renew_days


def certificates_last(directory: Path, days: int, now: datetime) -> bool:
    """Say whether all certificates that this controller has signed last for so many days more."""
    signed = [*directory.glob("server.crt"), *directory.glob("machines/*.crt")]
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
