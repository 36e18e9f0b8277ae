"""Makes the private keys of clients, of the server and of what is monitored, on the machine where they stay.

Only public parts are printed. Called in the FL image, so that a machine needs nothing but its engine:
    python3 -m coldframe.keys nodes [--new] DIR NAME...
        -> {"changed": bool, "public_keys": {name: "ecdsa-sha2-nistp384 ..."}}
    python3 -m coldframe.keys request [--new] DIR NAME COMMON_NAME SAN...
        -> {"changed": bool, "csr": "-----BEGIN ..."}, of the key DIR/NAME.key
    python3 -m coldframe.keys own CERTIFICATE KEY SAN...
        -> {"changed": true}; a key with a certificate that it has signed itself
A SAN is IP:1.2.3.4 or DNS:name. With --new, keys that are there are replaced.
"""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> None:
    """Write a key so that no reader ever sees half of it; mode 0600."""
    data = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    part = path.with_name(f"{path.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave an empty key, which would count as one
    part.rename(path)


def node_keys(directory: Path, names: list[str], new: bool = False) -> dict[str, object]:
    """Make the keys that are missing, or all (P-384, as Flower's node authentication wants them), and return
    all public ones."""
    changed = False
    public: dict[str, str] = {}
    for name in names:
        path = directory / name
        if new or not path.exists():
            write_private(path, ec.generate_private_key(ec.SECP384R1()), serialization.PrivateFormat.OpenSSH)
            changed = True
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
        public[name] = (
            key.public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode()
        )
    return {"changed": changed, "public_keys": public}


def alternative_names(names: list[str]) -> x509.SubjectAlternativeName:
    """Return the extension of a certificate for names like ``IP:192.0.2.1`` and ``DNS:fl.example.org``."""
    found: list[x509.GeneralName] = []
    for name in names:
        kind, _, value = name.partition(":")
        found.append(x509.IPAddress(ipaddress.ip_address(value)) if kind == "IP" else x509.DNSName(value))
    return x509.SubjectAlternativeName(found)


def signing_request(path: Path, common_name: str, names: list[str], new: bool = False) -> dict[str, object]:
    """Make a key if it is missing, or a new one, and return a signing request for ``names``
    (``IP:...`` or ``DNS:...``)."""
    changed = new or not path.exists()
    if changed:
        write_private(
            path, ec.generate_private_key(ec.SECP256R1()), serialization.PrivateFormat.TraditionalOpenSSL
        )
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .add_extension(alternative_names(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return {"changed": changed, "csr": request.public_bytes(serialization.Encoding.PEM).decode()}


def own_certificate(certificate: Path, key_file: Path, names: list[str]) -> dict[str, object]:
    """Make a key and a certificate for ``names``, signed by itself, that outlasts any container."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(key_file, key, serialization.PrivateFormat.TraditionalOpenSSL)
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coldframe")])
    now = datetime.now(UTC)
    usage = dict.fromkeys(USAGES, False) | {"digital_signature": True, "key_cert_sign": True}
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    signed = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))  # a clock may be set back
        .not_valid_after(now + timedelta(days=36500))
        .add_extension(alternative_names(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return {"changed": True}


def main(arguments: list[str]) -> int:
    """Run one of the commands; JSON on stdout."""
    new = "--new" in arguments
    command, directory, *rest = (word for word in arguments if word != "--new")
    if command == "nodes":
        result = node_keys(Path(directory), rest, new)
    elif command == "own":
        result = own_certificate(Path(directory), Path(rest[0]), rest[1:])
    else:
        result = signing_request(Path(directory) / f"{rest[0]}.key", rest[1], rest[2:], new)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
