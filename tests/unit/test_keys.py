"""Keys are made once, on the machine that uses them, and only their public parts come out."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

from coldframe.keys import node_keys, signing_request


def test_node_keys_are_made_once(tmp_path: Path) -> None:
    """A second call changes nothing and says so; a new name adds one key."""
    first = node_keys(tmp_path, ["a-0", "a-1"])
    again = node_keys(tmp_path, ["a-0", "a-1"])
    grown = node_keys(tmp_path, ["a-0", "a-1", "a-2"])
    assert (first["changed"], again["changed"], grown["changed"]) == (True, False, True)
    assert first["public_keys"] == again["public_keys"]
    assert {path.name for path in tmp_path.iterdir()} == {"a-0", "a-1", "a-2"}


def test_node_keys_are_what_flower_accepts_and_private(tmp_path: Path) -> None:
    """P-384, mode 0600, nothing private in the answer."""
    answer = node_keys(tmp_path, ["a-0"])
    public = answer["public_keys"]
    assert isinstance(public, dict)
    key = serialization.load_ssh_public_key(public["a-0"].encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.key_size == 384
    assert uses_nist_ec_curve(key)
    assert (tmp_path / "a-0").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in str(answer)


def test_signing_request_names_addresses_and_keeps_the_key(tmp_path: Path) -> None:
    """IP and DNS names stand in the request; the key is the same the second time."""
    answers = [
        signing_request(tmp_path / "server.key", "lab server", ["IP:192.0.2.1", "DNS:localhost"])
        for _ in range(2)
    ]
    assert [answer["changed"] for answer in answers] == [True, False]
    requests = [x509.load_pem_x509_csr(str(answer["csr"]).encode()) for answer in answers]
    assert requests[0].public_key() == requests[1].public_key()
    names = requests[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1"]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_keys_are_replaced_on_demand(tmp_path: Path) -> None:
    """Clients' and the server's; the next call without the demand keeps the new ones."""
    path = tmp_path / "server.key"
    old, old_request = node_keys(tmp_path, ["a-0"]), signing_request(path, "lab server", ["DNS:localhost"])
    new = node_keys(tmp_path, ["a-0"], new=True)
    request = signing_request(path, "lab server", ["DNS:localhost"], new=True)
    assert (new["changed"], request["changed"]) == (True, True)
    assert new["public_keys"] != old["public_keys"]
    keys = [x509.load_pem_x509_csr(str(r["csr"]).encode()).public_key() for r in (old_request, request)]
    assert keys[0] != keys[1]
    again = node_keys(tmp_path, ["a-0"])
    assert (again["changed"], again["public_keys"]) == (False, new["public_keys"])
