"""The image by way of a registry: Debian's docker-registry on the server's host, with TLS."""

from __future__ import annotations

import io
import platform
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster.lab import Lab, sh
from tests.cluster.pair import pair
from tests.hosts import Host
from tests.hosts.image import locked
from tests.hosts.shell import cache

PORT = 5000
IMAGES = "docker image ls --format '{{.Repository}}:{{.Tag}} {{.ID}}'"
CONFIGURATION = """
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry-of-tests}}
http: {addr: ":%d", tls: {certificate: /root/registry/crt, key: /root/registry/key}}
"""


def certificate(address: str) -> tuple[bytes, bytes]:
    """A key and a certificate signed by itself, for an address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    begin = datetime.now(UTC) - timedelta(minutes=5)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, private, serialization.NoEncryption()), signed.public_bytes(pem)


def put(host: Host, files: dict[str, bytes]) -> None:
    """Write files on a host."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o755 if path.startswith("/usr/") else 0o600
            archive.addfile(entry, io.BytesIO(content))
    subprocess.run([*host.ssh(), "tar -x -C /"], input=packed.getvalue(), check=True)


def debian_registry(directory: Path) -> bytes:
    """The program of Debian's package docker-registry, kept for the next time."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    kept = cache().parent / "tools" / f"docker-registry-{suite}-{platform.machine()}"
    with locked("registry"):
        if not kept.exists():
            for command in (
                "true",
                "apt-get update -q",
            ):  # a machine's list of packages may be missing or old
                subprocess.run(command.split(), cwd=directory, check=True)
                download = ["apt-get", "download", "-q", "docker-registry"]
                if not subprocess.run(download, cwd=directory).returncode:
                    break
            (package,) = directory.glob("docker-registry_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, directory / "unpacked"], check=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(f"{kept.name}.part")
            part.write_bytes((directory / "unpacked" / "usr" / "bin" / "docker-registry").read_bytes())
            part.rename(kept)
    return kept.read_bytes()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server that has the image, and a machine with one client that the tests take it from."""
    with pair(tmp_path_factory.mktemp("registry")) as lab:
        least = dict.fromkeys(("min_train_clients", "min_evaluate_clients", "min_available_clients"), 1)
        lab.write_inventory(clients=1, dataset="synthetic", **least)
        yield lab


@pytest.fixture
def registry(lab: Lab, tmp_path: Path) -> Iterator[str]:
    """A registry that both hosts' engines trust; its name."""
    name = f"{lab.server.address}:{PORT}"
    key, signed = certificate(lab.server.address)
    for host in (lab.server, lab.machine):
        put(host, {f"/etc/docker/certs.d/{name}/ca.crt": signed})
    put(
        lab.server,
        {
            "/usr/local/bin/docker-registry": debian_registry(tmp_path),
            "/root/registry/crt": signed,
            "/root/registry/key": key,
            "/root/registry/config.yml": (CONFIGURATION % PORT).encode(),
        },
    )
    unit = "systemd-run --quiet --unit registry-of-tests --property Type=exec"
    lab.on_server(f"{unit} /usr/local/bin/docker-registry serve /root/registry/config.yml")
    lab.wait_for(
        "the registry",
        lambda: (
            "200"
            in lab.on_server(f"curl -sk -o /dev/null -w '%{{http_code}}' https://{name}/v2/", check=False)
        ),
        30,
    )
    yield name
    lab.on_server("systemctl stop registry-of-tests; rm -rf /root/registry /var/lib/registry-of-tests")
    for host in (lab.server, lab.machine):
        sh(host, f"rm -rf /etc/docker/certs.d/{name}")


def fl_images(host: Host) -> list[str]:
    """Name and id of the images on a host that have to do with ours."""
    return sorted(line for line in sh(host, IMAGES).splitlines() if "coldframe/fl" in line)


def test_machines_pull_what_the_builder_has_pushed(lab: Lab, registry: str) -> None:
    for host in (lab.server, lab.machine):
        sh(host, "systemctl start docker")  # on a new host it is off
    before = fl_images(lab.server)
    sh(lab.machine, f"docker image rm -f $({IMAGES} | grep -o 'coldframe/fl:[^ ]*')", check=False)
    assert fl_images(lab.machine) == []
    settings = {"train": "false", "fl_image_registry": f"{registry}/lab"}
    lab.must("site.yml", **settings)
    lab.deployed.add("coldframe")
    # One image, under its own name alone: that of the server's seed; the other machine's came this way.
    assert fl_images(lab.server) == before
    assert len(before) == 1
    assert fl_images(lab.machine) == fl_images(lab.server)
    logs = lab.on_server("journalctl --unit registry-of-tests --output cat")
    assert f'remoteaddr="{lab.machine.address}' in logs or lab.machine.address in logs
    assert '"GET /v2/lab/coldframe/fl/blobs' in logs or "/v2/lab/coldframe/fl/blobs" in logs

    # Pulled by the digest of what was pushed: who replaces the image in the registry changes nothing.
    (kept,) = (lab.directory / "state" / "coldframe" / "coldframe" / "images").iterdir()
    assert kept.read_text().startswith("sha256:")
    assert f"/v2/lab/coldframe/fl/manifests/{kept.read_text()}" in logs

    again = lab.must("site.yml", **settings)
    assert set(again.changed.values()) == {0}


def test_registry_out_of_reach_is_named(lab: Lab) -> None:
    """Before anything of the federation changes."""
    lab.deploy()
    names = sh(lab.machine, f"{IMAGES} | grep -o 'coldframe/fl:[^ ]*'").split()
    sh(lab.machine, f"docker tag {names[0]} kept:1 && docker image rm {names[0]}")
    try:
        play = lab.play("site.yml", train="false", fl_image_registry=f"{lab.server.address}:{PORT}/lab")
    finally:
        sh(lab.machine, f"docker tag kept:1 {names[0]} && docker image rm kept:1")
    assert play.code != 0
    assert f"The registry {lab.server.address}:{PORT}/lab" in play.output
    assert "docker login" in play.output
    assert set(play.changed.values()) == {0}
