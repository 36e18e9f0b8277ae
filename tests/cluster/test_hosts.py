"""Test hosts behave like machines, break like machines, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.controlgroups import Kernel, read
from tests.hosts import Host, Hosts, HostsError, image, make_seed
from tests.hosts.hosts import LABEL, sweep
from tests.hosts.shell import cache, docker, remove_tree

ROOT = Path(__file__).parents[2]
# A web server that is small, holds no data, and comes from the host itself: no registry is in reach.
TINY = "tar -C /usr/bin -c busybox | docker import --change 'ENTRYPOINT [\"/busybox\"]' - tiny"
SERVE = (
    "docker run -d --restart always --stop-signal KILL --name web -p 8080:80 "
    "tiny sh -c 'echo hello > /index.html; exec /busybox httpd -f'"
)
# The body of a test run that somebody interrupts at a terminal. A suite that was started in the background
# has been told by its shell to ignore that signal, and what it starts inherits this.
WAIT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.hosts import Hosts
with Hosts(1) as hosts:
    print(hosts.prefix, flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Hosts]:
    with Hosts(2) as hosts:
        for host in hosts:
            host.run("systemctl enable --now docker")
            host.run(TINY)
            host.run(SERVE)
        yield hosts


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


def succeeds(host: Host, command: str) -> bool:
    return host.run(command, check=False).returncode == 0


def fetches(host: Host, other: Host) -> bool:
    """Whether a container on one host reaches a container's published port on the other."""
    return succeeds(host, f"docker exec web /busybox wget -q -T 2 -O /dev/null http://{other.address}:8080/")


def save(host: Host, tag: str, archive: Path) -> None:
    """Fetch the tiny image from a host under another tag."""
    with archive.open("wb") as file:
        subprocess.run([*host.ssh(), f"docker tag tiny {tag} && docker save {tag}"], stdout=file, check=True)


def groups(containers: list[str]) -> list[str]:
    """The control groups of containers, whatever hierarchy and parent the engine puts them under."""
    return [
        str(Path(top, name))
        for top, names, _ in os.walk("/sys/fs/cgroup")  # which minds no group that ends meanwhile
        for name in names
        if any(container in name for container in containers)
    ]


def traces(prefix: str, containers: list[str]) -> list[str]:
    """Everything on this machine that belongs to a set of hosts."""
    mine = ["--quiet", "--filter", f"label={LABEL}={prefix}"]
    found = docker("ps", "--all", *mine).split() + docker("network", "ls", *mine).split()
    found += [str(path) for path in cache().glob(f"{prefix}*")]
    found += groups(containers)
    mounts = Path("/proc/self/mountinfo").read_text()
    return found + [line for line in mounts.splitlines() if f"/{prefix}/" in line]


def identities(prefix: str) -> list[str]:
    return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL}={prefix}").split()


def test_root_and_a_user_with_sudo_log_in_over_ssh(pair: Hosts) -> None:
    assert pair["server"].run("id -un").stdout.strip() == "root"
    assert pair["server"].run("id -un", user="gardener").stdout.strip() == "gardener"
    assert pair["server"].run("sudo -n id -un", user="gardener").stdout.strip() == "root"


def test_every_host_has_a_name_an_address_and_an_identity_of_its_own(pair: Hosts) -> None:
    assert [host.run("hostname").stdout.strip() for host in pair] == ["server", "c1"]
    assert len({host.address for host in pair}) == 2
    assert len({host.run("cat /etc/machine-id").stdout for host in pair}) == 2
    assert len({host.run("docker info --format '{{.ID}}'").stdout for host in pair}) == 2


def test_systemd_runs_with_no_failed_unit(pair: Hosts) -> None:
    for host in pair:
        assert host.run("systemctl is-system-running").stdout.strip() == "running"


def test_inner_containers_get_the_cpu_they_are_limited_to_and_no_more(pair: Hosts) -> None:
    host = pair["c1"]
    host.run("docker run -d --name burn --cpus 0.5 tiny sh -c 'while :; do :; done'")

    def kernel() -> Kernel:
        return read(lambda command: host.run(command).stdout, "burn")

    before = kernel()
    assert eventually(lambda: kernel().periods - before.periods >= 30)
    after = kernel()
    host.run("docker rm -f burn")
    used, periods = after.cpu_seconds - before.cpu_seconds, after.periods - before.periods
    # A period is 0.1 s and grants 0.05 CPU-s. The files are read one after the other: 15 %.
    assert after.cpu == 0.5
    assert periods >= 30
    assert 0 < used <= periods * 0.05 * 1.15
    assert after.throttled > before.throttled


def test_power_cut_kills_at_once_and_restart_policies_bring_containers_back(pair: Hosts) -> None:
    host, started = pair["c1"], "docker inspect --format '{{.State.StartedAt}}' web"
    before, boot = host.run(started).stdout, host.boot_id()
    host.power_cut()
    assert not host.answers()
    host.start()
    assert host.boot_id() != boot
    assert eventually(lambda: host.run(started, check=False).stdout not in ("", before))
    assert eventually(lambda: fetches(pair["server"], host))


def test_reboot_from_inside_makes_a_new_boot(pair: Hosts) -> None:
    host = pair["c1"]
    boot = host.boot_id()
    host.reboot()
    assert host.boot_id() != boot
    assert eventually(lambda: fetches(pair["server"], host))


def test_partition_swallows_everything_until_rejoin(pair: Hosts) -> None:
    host, other = pair["c1"], pair["server"]
    assert host.answers()
    assert fetches(other, host)
    host.partition()
    assert not host.answers()
    assert not fetches(other, host)
    assert host.inside("hostname") == "c1"
    host.rejoin()
    assert eventually(host.answers)
    assert eventually(lambda: fetches(other, host))


def test_isolation_cuts_peers_and_their_containers_and_spares_the_controller(pair: Hosts) -> None:
    host, other = pair["c1"], pair["server"]
    assert fetches(host, other)
    assert fetches(other, host)
    host.isolate_from_peers()
    assert not fetches(host, other)
    assert not fetches(other, host)
    assert not succeeds(host, f"ping -c 1 -W 1 {other.address}")
    assert host.answers()
    host.rejoin_peers()
    assert fetches(host, other)
    assert fetches(other, host)


def test_an_image_archive_is_loaded_past_the_network(pair: Hosts, tmp_path: Path) -> None:
    archive = tmp_path / "tiny.tar"
    save(pair["server"], "shipped:1", archive)
    subprocess.run(["zstd", "-q", "--rm", archive], check=True)
    pair["c1"].load_image(archive.with_suffix(".tar.zst"))
    assert pair["c1"].run("docker run --rm shipped:1 echo loaded").stdout.strip() == "loaded"


def test_seeded_hosts_have_the_image_from_the_start_and_do_not_share_what_they_write(
    pair: Hosts, tmp_path: Path
) -> None:
    archive = tmp_path / "tiny.tar"
    save(pair["server"], "seeded:1", archive)
    seed = make_seed(archive, f"test-{pair.prefix}")
    try:
        with Hosts(2, seed=seed) as hosts:
            assert len(list(hosts.directory.glob("*/overlay2/*/diff/busybox"))) == 2
            for layer in seed.glob("overlay2/*/diff/busybox"):
                assert layer.stat().st_nlink == 3
            for host in hosts:
                host.run("systemctl start docker")
                host.run(
                    f"docker run --name mine seeded:1 sh -c 'echo {host.name} >> /busybox.txt; rm /busybox'"
                )
            for host in hosts:
                assert host.run("docker diff mine").stdout.split() == ["A", "/busybox.txt", "D", "/busybox"]
                assert host.run("docker run --rm seeded:1 echo whole").stdout == "whole\n"
            hosts[0].run("docker rm mine && docker rmi seeded:1")
            assert hosts[1].run("docker run --rm seeded:1 echo whole").stdout == "whole\n"
            assert len({host.run("docker info --format '{{.ID}}'").stdout for host in hosts}) == 2
    finally:
        remove_tree(seed)
        seed.with_name(f"{seed.name}.used").unlink()


def test_a_second_set_lives_beside_the_first_and_leaves_nothing(pair: Hosts) -> None:
    """Its engine is off until somebody turns it on, and running when the set goes."""
    with Hosts(1) as other:
        assert other.subnet != pair.subnet
        assert other[0].run("hostname").stdout == pair[0].run("hostname").stdout
        assert other[0].run("systemctl is-enabled docker", check=False).stdout.strip() == "disabled"
        assert other[0].run("systemctl is-active docker", check=False).stdout.strip() == "inactive"
        containers = identities(other.prefix)
        other[0].run("systemctl start docker")
        other[0].run(TINY)
        other[0].run(SERVE)
        assert traces(other.prefix, containers)
        assert groups(containers)
    assert traces(other.prefix, containers) == []
    assert pair[0].answers()


def test_a_name_in_use_is_refused_and_the_set_that_has_it_lives_on(pair: Hosts) -> None:
    with pytest.raises(HostsError, match="there are hosts called"):
        Hosts(1, prefix=pair.prefix).up()
    assert pair[0].answers()


def make_in_another_process() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WAIT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_hosts_go_with_the_process_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where it is interrupted; where it is killed, the next that makes hosts sweeps them up."""
    image.ensure_image()
    # Other test runs sweep too, and would not leave those of the killed process to this one.
    monkeypatch.setenv("COLDFRAME_CACHE", str(tmp_path))
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    processes = {number: make_in_another_process() for number in numbers}
    prefixes, containers = {}, {}
    try:
        for number, process in processes.items():
            assert process.stdout is not None
            prefixes[number] = process.stdout.readline().strip()
            assert prefixes[number]
            containers[number] = identities(prefixes[number])
            assert len(containers[number]) == 1
        for number, process in processes.items():
            process.send_signal(number)
        for process in processes.values():
            process.communicate(timeout=30)
            assert process.returncode != 0
        for number in (signal.SIGTERM, signal.SIGINT):
            assert traces(prefixes[number], containers[number]) == []
        killed = prefixes[signal.SIGKILL]
        assert len(identities(killed)) == 1
        assert killed in sweep()
        assert traces(killed, containers[signal.SIGKILL]) == []
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
        sweep()
