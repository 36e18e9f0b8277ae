"""Tests of coldframe/controller/checks.py: what preflight finds, from facts as a machine would give them."""

import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coldframe.controller import certificates, checks, training_set
from coldframe.controller import settings as variables
from coldframe.controller.checks import Machine
from coldframe.controller.settings import Finding
from fl import data

GB = 1 << 30


def facts(**changes):
    healthy = {
        "time": 1000.5,
        "controller_before": 1000.0,
        "controller_after": 1001.0,
        "arch": "x86_64",
        "python": "3.11.2",
        "os": {"id": "debian", "id_like": "", "pretty_name": "Debian GNU/Linux 12"},
        "cpus": 4,
        "memory_total": 8 * GB,
        "memory_available": 6 * GB,
        "disk_path": "/var/lib",
        "disk_free": 20 * GB,
        "disk_files": 1_000_000,
        "disk_device": 1,
        "engine_disks": [{"path": "/var/lib/docker", "free": 20 * GB, "files": 1_000_000, "device": 1}],
        "ports": {},
        "docker": {
            "installed": True,
            "version": "26.1.5",
            "api": "1.45",
            "error": "",
            "kind": "docker",
            "root": "/var/lib/docker",
            "containerd": False,
            "rootless": False,
            "elsewhere": False,
            "containers": [],
            "image": False,
        },
        "cgroup": {"version": 2, "cpu": True, "memory": True, "pids": True},
        "hostname": "one",
        "machine_id": "aa",
        "address": "192.0.2.1",
        "netem": True,
    }
    return {**healthy, **changes}


def docker(**changes):
    return {**facts()["docker"], **changes}


def machine(name="one", groups=("fl_server", "fl_clients"), settings=None, **changes):
    own = {key: changes.pop(key) for key in list(changes) if key in Machine.__dataclass_fields__}
    own.setdefault("facts", facts(**changes))
    return Machine(name=name, groups=frozenset(groups), settings=settings or {}, **own)


def client(cpu=1.0, memory=GB, profile=None, **limits):
    return {"name": "c-0", "cpu": cpu, "memory": memory, "profile": profile, **limits}


def only(findings):
    assert len(findings) == 1, findings
    return str(findings[0])


def test_a_healthy_machine_has_no_findings():
    one = machine()
    assert checks.check_shape([one]) == []
    assert checks.check_addresses([one]) == []
    assert checks.check_answers([one]) == []
    assert checks.check_identity([one]) == []
    assert checks.check_architectures([one], "one", "x86_64") == []
    assert checks.check_clock(one) + checks.check_platform(one) + checks.check_disk(one) == []
    assert checks.check_memory(one, [client()] * 3) == []
    assert checks.check_ports(one, "coldframe", {"fl_port": 9092}) == []
    assert checks.warn_platform(one) + checks.warn_cpu(one, [client()] * 4, "coldframe") == []


def test_an_inventory_without_machines_is_told_which_to_take():
    assert "use -i inventory/local.yml" in only(checks.check_shape([]))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("fl_clients",)], "the group fl_server needs exactly one machine, and has none"),
        (
            [("fl_server", "fl_clients"), ("fl_server",)],
            "fl_server needs exactly one machine, and has m0, m1",
        ),
        ([("fl_server",)], "the group fl_clients has no machine"),
        (
            [("fl_server", "fl_clients", "fl_monitor"), ("fl_monitor",)],
            "the group fl_monitor can have one machine, and has m0, m1",
        ),
    ],
)
def test_the_shape_of_the_inventory(groups, message):
    assert message in only(checks.check_shape([machine(f"m{k}", group) for k, group in enumerate(groups)]))


def test_a_machines_name_must_do_for_containers():
    assert "cannot be part of a container's name" in only(checks.check_shape([machine("joe@host")]))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.1.1"])
def test_a_loopback_address_does_not_lead_other_machines_to_the_server(host):
    server, other = (
        machine("srv", ("fl_server",), host=host),
        machine("far", ("fl_clients",), host="192.0.2.7"),
    )
    message = only(checks.check_addresses([server, other]))
    assert f"clients on far cannot reach the server as {host}" in message
    assert "set fl_address of srv in the inventory to its own address, such as 192.0.2.1" in message
    named = machine("srv", ("fl_server",), {"fl_address": "192.0.2.1"}, host=host)
    assert checks.check_addresses([named, other]) == []


def test_the_controller_as_server_needs_an_address_once_there_are_other_machines():
    server = machine("srv", ("fl_server", "fl_clients"), local=True)
    assert checks.check_addresses([server]) == []
    other = machine("far", ("fl_clients",), host="192.0.2.7")
    assert "set fl_address of srv" in only(checks.check_addresses([server, other]))


def test_two_machines_with_one_address():
    pair = [machine(name, ("fl_clients",), host="192.0.2.7") for name in ("a", "b")]
    assert "machines a and b have the same address 192.0.2.7" in only(checks.check_addresses(pair))
    pair = [machine(name, ("fl_clients",), host="127.0.0.1", port=2222) for name in ("a", "b")]
    assert "a and b are both reached at 127.0.0.1 port 2222" in only(checks.check_addresses(pair))
    pair = [machine(f"m{port}", ("fl_clients",), host="127.0.0.1", port=port) for port in (2200, 2222)]
    assert checks.check_addresses(pair) == []


def test_a_machine_that_does_not_answer_is_named_with_the_error_and_the_command_to_try():
    silent = machine("far", facts=None, failure="Permission denied\n(publickey)", login="ssh -p 22 joe@far")
    assert only(checks.check_answers([silent])) == (
        "machine far did not answer (Permission denied (publickey)): check that this works: ssh -p 22 joe@far"
    )


def test_a_missing_sudo_password_can_be_asked_for():
    for local in (True, False):
        silent = machine("far", facts=None, failure="Missing sudo password", local=local)
        assert "add -K, so that Ansible asks for the password" in only(checks.check_answers([silent]))
    silent = machine("far", facts=None, failure="Incorrect sudo password")
    assert "set ansible_become_password for each" in only(checks.check_answers([silent]))


@pytest.mark.parametrize(
    "failure",
    [
        "Attempting to decrypt but no vault secrets found.",
        "Decryption failed (no vault secrets were found that could decrypt).",
    ],
)
def test_a_missing_vault_password_can_be_asked_for(failure):
    silent = machine("far", facts=None, failure=failure, login="ssh far")
    assert "type --ask-vault-pass too" in only(checks.check_answers([silent]))


def test_one_machine_under_two_names():
    pair = [machine("a"), machine("b")]
    assert "a and b are the same machine (same machine-id" in only(checks.check_identity(pair))
    assert checks.check_identity([machine("a"), machine("b", hostname="two", machine_id="bb")]) == []
    assert checks.check_identity([machine("a", machine_id=""), machine("b", machine_id="")]) == []


@pytest.mark.parametrize(
    ("clock", "message"), [(1041.0, "40 s ahead of"), (960.0, "40 s behind"), (1601.0, "600 s ahead of")]
)
def test_a_wrong_clock(clock, message):
    assert f"the clock is {message} the controller's" in only(checks.check_clock(machine(time=clock)))


def test_a_slow_connection_is_no_wrong_clock():
    assert checks.check_clock(machine(controller_before=900.0, controller_after=1100.0)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "riscv64"}, "the architecture riscv64 is not supported"),
        ({"python": "3.8.10"}, "Python 3.8.10 is too old: set ansible_python_interpreter"),
        ({"docker": docker(version="19.03", api="1.40")}, "Docker 19.03 is too old (its API is 1.40)"),
        ({"cgroup": {"version": 1, "cpu": False, "memory": True, "pids": True}}, "no CPU quotas (cgroup v1)"),
        (
            {"cgroup": {"version": 2, "cpu": True, "memory": False, "pids": True}},
            "no memory limits (cgroup v2): boot it with the cgroup controller memory",
        ),
    ],
)
def test_a_platform_that_will_not_do(changes, message):
    assert message in only(checks.check_platform(machine(**changes)))


def test_an_engine_that_does_not_run_is_started_unless_its_owner_does_that():
    stopped = docker(version="", api="", error="Cannot connect")
    missing = docker(installed=False, version="", api="")
    own = {"docker_engine_manage": False}
    assert checks.check_platform(machine(docker=stopped)) == []
    assert checks.check_platform(machine(docker=missing)) == []
    assert "does not answer (Cannot connect)" in only(
        checks.check_platform(machine(settings=own, docker=stopped))
    )
    assert "it has no Docker" in only(checks.check_platform(machine(settings=own, docker=missing)))


def test_another_system_is_warned_of_where_the_engine_is_missing():
    fedora = {"id": "fedora", "id_like": "", "pretty_name": "Fedora Linux 42"}
    missing = docker(installed=False, version="", api="")
    assert (
        "Fedora Linux 42 is neither Debian nor Ubuntu"
        in checks.warn_platform(machine(os=fedora, docker=missing))[0]
    )
    assert checks.warn_platform(machine(os=fedora)) == []
    mint = {"id": "linuxmint", "id_like": "ubuntu debian", "pretty_name": "Mint"}
    assert checks.warn_platform(machine(os=mint, docker=missing)) == []


def test_a_mix_of_architectures_is_refused():
    mixed = [machine("pc"), machine("pi", ("fl_clients",), arch="aarch64")]
    finding = checks.check_architectures(mixed, "pc", "x86_64")[0]
    assert (finding.machine, finding.problem) == (
        "pi",
        "it is arm64, and pc, which builds the image, is amd64",
    )
    assert checks.check_architectures(mixed[1:], "pi", "aarch64") == []


def test_an_image_of_another_architecture_than_the_controllers_is_refused():
    pi = machine("pi", arch="aarch64")
    assert "run ansible-playbook on a machine that is arm64, such as pi" in only(
        checks.check_architectures([pi], "pi", "x86_64")
    )


@pytest.mark.parametrize(
    ("engine", "words", "remedy"),
    [
        ({"kind": "podman", "api": ""}, "Podman's emulation", "podman-docker"),
        ({"rootless": True}, "rootless", "docker context use default"),
        ({"elsewhere": True}, "another engine than /var/run/docker.sock", "DOCKER_HOST"),
        ({"root": "/var/snap/docker/common/var-lib-docker"}, "the snap package", "snap remove docker"),
    ],
)
@pytest.mark.parametrize("managed", [True, False])
def test_an_engine_that_cannot_run_a_federation_is_refused_in_one_line(managed, engine, words, remedy):
    one = machine(settings={"docker_engine_manage": managed}, docker=docker(**engine))
    text = only(checks.check_platform(one))
    assert words in text and remedy in text


def test_the_engines_disk_is_judged_where_it_is():
    """Images go to data-root, and since Docker 29 to containerd's directory; only the rest to /var/lib."""

    def findings(state, *engines, device=1, **settings):
        disks = [
            {"path": path, "free": free * GB, "files": None, "device": number}
            for path, free, number in engines
        ]
        one = machine(settings=settings, disk_free=state * GB, disk_device=device, engine_disks=disks)
        return checks.check_disk(one)

    assert findings(2, ("/srv/docker", 20, 2)) == []
    assert "1 GB are free on /srv/docker, 4 GB needed" in only(findings(2, ("/srv/docker", 1, 2)))
    assert "512 MB are free on /var/lib, 1 GB needed" in only(findings(0.5, ("/srv/docker", 20, 2)))
    assert "4 GB needed" in only(findings(2, ("/var/lib/docker", 2, 1)))
    assert "/var/lib/containerd" in only(
        findings(9, ("/var/lib/docker", 9, 1), ("/var/lib/containerd", 3, 2))
    )
    assert len(findings(0.5, ("/srv/docker", 1, 2))) == 2
    assert findings(2, ("/srv/docker", 1, 2), fl_min_disk=GB) == []


def test_a_disk_without_inodes_is_full():
    """The engine says "no space left on device" while df shows gigabytes."""
    assert "inodes for 20 more files" in only(checks.check_disk(machine(disk_files=20)))
    assert checks.check_disk(machine(disk_files=None)) == []
    assert checks.check_disk(machine(disk_files=20, docker=docker(image=True))) == []
    there = [{"path": "/srv/docker", "free": 20 * GB, "files": 20, "device": 2}]
    assert "/srv/docker has inodes" in only(checks.check_disk(machine(engine_disks=there)))
    there[0]["files"] = 10**6
    assert checks.check_disk(machine(disk_files=20, engine_disks=there)) == []


def test_too_little_disk_for_the_image():
    little = machine(disk_free=2 * GB)
    assert "2 GB are free on /var/lib, 4 GB needed: make room" in only(checks.check_disk(little))
    assert checks.check_disk(machine(disk_free=2 * GB, docker=docker(image=True))) == []
    assert checks.check_disk(machine(settings={"fl_min_disk": GB}, disk_free=2 * GB)) == []
    assert "900 GB needed" in only(checks.check_disk(machine(settings={"fl_min_disk": 900 * GB})))


def test_limits_of_a_client_that_the_machine_cannot_give():
    """They come from a profile most of the time."""
    assert checks.check_limits(machine(), [client(4.0), client(0.05, down=10**6)]) == []
    message = only(checks.check_limits(machine(), [client(5.41, profile="phone-high")]))
    assert "cpu=5.41 (profile phone-high on this machine), but there are 4 cores" in message
    assert "0.05 or more" in only(checks.check_limits(machine(), [client(0.04, profile="raspberry-pi-3")]))
    message = only(checks.check_limits(machine(netem=False), [client(delay=0.05, profile="dsl")]))
    assert "fl_client_delay: 0 in the inventory" in message
    assert checks.check_limits(machine(), [client(delay=0.05, profile="dsl")]) == []


def test_a_profile_on_a_machine_that_is_not_calibrated_is_warned_of():
    assert "calibrate.yml" in checks.warn_profiles(machine(), [client(), client(profile="laptop")])[0]
    assert checks.warn_profiles(machine(), [client()]) == []
    calibrated = machine(calibration={"steps_per_second": 10.0})
    assert checks.warn_profiles(calibrated, [client(profile="laptop")]) == []


def test_too_little_memory_for_the_limits():
    message = only(checks.check_memory(machine(memory_total=3 * GB), [client()] * 3))
    assert "its 3 clients may use 3 GB and the server 700 MB, and the machine has 3 GB" in message
    assert "type -e fl_client_memory=790m, or give it fewer clients" in message
    assert checks.check_memory(machine("c", ("fl_clients",), memory_total=3 * GB), [client()] * 3) == []
    assert "-e fl_client_memory" not in only(checks.check_memory(machine(memory_total=GB), [client()] * 3))


def test_memory_of_the_server_that_does_not_fit_beside_the_clients():
    """What nobody has set is half of the machine's: that is a bound, not a need."""
    asked = {"fl_server_memory": 6 * GB}
    message = only(checks.check_memory(machine(memory_total=8 * GB, settings=asked), [client()] * 3))
    assert "its 3 clients may use 3 GB and the server 6 GB, and the machine has 8 GB" in message
    assert "type -e fl_client_memory=682m, or type -e fl_server_memory=5120m, or give it fewer" in message
    assert checks.check_memory(machine(memory_total=8 * GB), [client()] * 7) == []
    alone = machine("c", ("fl_clients",), memory_total=8 * GB, settings=asked)
    assert checks.check_memory(alone, [client()] * 8) == []


def test_more_quota_than_cores_is_a_warning_that_says_what_it_means():
    warning = checks.warn_cpu(machine(cpus=2), [client(cpu=1.0)] * 3, "coldframe")[0]
    assert "3 clients may use 3 cores, and it has 2: the run is recorded as oversubscribed" in warning
    assert warning.endswith("; type -e fl_client_cpu=0.66 to avoid that")
    many = checks.warn_cpu(machine(cpus=2), [client(cpu=0.05)] * 60, "coldframe")[0]
    assert many.endswith("; deploy fewer clients to avoid that"), "less than the floor is no remedy"


def test_quotas_of_other_federations_count_on_the_same_machine():
    def beside(*limits):
        items = [{"federation": "other", "role": "client", "running": True, "cpu": cpu} for cpu in limits]
        own = {"federation": "lab", "role": "client", "running": True}
        return machine(cpus=2, docker=docker(containers=[own, *items]))

    two = [client(cpu=0.5)] * 2
    assert checks.warn_cpu(beside(0.5, 0.5), two, "lab") == []
    warning = checks.warn_cpu(beside(0.5, 0.75), two, "lab")[0]
    assert "2 clients may use 1 cores, the clients of other federations 1.25, and it has 2" in warning
    assert "; type -e fl_client_cpu=0.37, or stop the other federations to avoid that" in warning
    full = checks.warn_cpu(beside(None), two, "lab")[0]  # one without a limit may use all cores
    assert "of other federations 2, and it has 2" in full
    assert "; deploy fewer clients, or stop the other federations to avoid that" in full
    assert checks.warn_cpu(beside(0.5, 1.75), [], "lab") == [], "no client of ours has to share"


def test_a_port_that_another_program_holds():
    busy = machine(ports={"9092": "nginx (pid 7)"})
    assert only(checks.check_ports(busy, "coldframe", {"fl_port": 9092})) == (
        "port 9092 is in use by nginx (pid 7): stop it, or type -e fl_port=9192"
    )


def test_a_port_that_a_federation_holds_is_fine_for_that_federation_only():
    holder = {"name": "lab-server", "ports": "0.0.0.0:9092->9092/tcp, :::9092->9092/tcp", "federation": "lab"}
    busy = machine(ports={"9092": "docker-proxy (pid 7)"}, docker=docker(containers=[holder]))
    assert checks.check_ports(busy, "lab", {"fl_port": 9092}) == []
    assert only(checks.check_ports(busy, "coldframe", {"fl_port": 9092})) == (
        "port 9092 (fl_port) is in use by the federation lab: give coldframe its own: type -e fl_port=9192"
    )


def test_a_second_federation_is_told_all_ports_that_it_needs_in_one_line():
    ports = {"fl_port": 9092, "fl_metrics_port": 9093, "prometheus_port": 9090}
    holders = [
        {"name": "lab-server", "ports": "0.0.0.0:9092-9093->9092-9093/tcp", "federation": "lab"},
        {"name": "lab-prometheus", "ports": "0.0.0.0:9090->9090/tcp", "federation": "lab"},
    ]
    taken = {str(port): "docker-proxy (pid 7)" for port in ports.values()}
    busy = machine(ports=taken, docker=docker(containers=holders))
    told = only(checks.check_ports(busy, "x", ports))
    assert "ports 9092 (fl_port), 9093 (fl_metrics_port), 9090 (prometheus_port) are in use by" in told
    assert told.endswith(
        "give x its own: type -e fl_port=9192 -e fl_metrics_port=9193 -e prometheus_port=9190"
    )


def test_neighbouring_ports_of_one_container_are_written_as_a_range():
    holder = {"name": "lab-server", "ports": "0.0.0.0:9092-9093->9092-9093/tcp", "federation": "lab"}
    busy = machine(ports={"9092": "", "9093": "", "9094": ""}, docker=docker(containers=[holder]))
    assert checks.check_ports(busy, "lab", {"fl_port": 9092, "fl_metrics_port": 9093}) == []
    assert "9094 is in use by another program" in only(checks.check_ports(busy, "lab", {"fl_port": 9094}))


def test_a_port_of_the_machines_own_network_is_known_by_its_label():
    """The node exporter publishes none; machine_facts adds what it says that it listens on."""
    holder = {"name": "lab-node-exporter", "ports": " :9100->", "federation": "lab"}
    busy = machine(ports={"9100": "prometheus-node (pid 7)"}, docker=docker(containers=[holder]))
    assert checks.check_ports(busy, "lab", {"node_exporter_port": 9100}) == []
    assert "by the federation lab" in only(checks.check_ports(busy, "x", {"node_exporter_port": 9100}))


def test_two_services_want_one_port():
    wanted = {"fl_port": 9092, "prometheus_port": 9092}
    assert only(checks.check_ports(machine(), "lab", wanted)) == (
        "fl_port and prometheus_port are both 9092: type -e prometheus_port=9192"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"partitioner": "dirichlet", "partitioner_args": {"alpha": 0, "min_samples": 5}},
            "partitioner_args: dirichlet: alpha must be a number above 0 and up to 1000000, and is 0: "
            'type -e \'{"partitioner_args": {"alpha": 0.5, "min_samples": 5}}\'',
        ),
        (
            {"partitioner": "quantity_skew", "partitioner_args": {"alpha": float("inf")}},
            "partitioner_args: quantity_skew: alpha must be a number above 0 and up to 1000000, and is inf: "
            'type -e \'{"partitioner_args": {"alpha": 1.0}}\'',
        ),
        (
            {"partitioner": "shards", "partitioner_args": {"classes_per_client": 0.5}},
            "partitioner_args: shards: classes_per_client must be a whole number from 1 on, and is 0.5: "
            'type -e \'{"partitioner_args": {"classes_per_client": 2}}\'',
        ),
        (
            {"partitioner": "dirichlet", "max_samples": 25},
            "25 samples are too few for 3 clients with partitioner dirichlet (it needs 30): use fewer "
            "clients, a smaller min_samples, or a larger max_samples if it is set",
        ),
        (
            {"partitioner": "dirichlet", "partitioner_args": {"alpha": 0.001, "min_samples": 1000}},
            "dirichlet: with alpha 0.001 no draw of 1000 left each of 3 clients 1000 samples: use a larger "
            "alpha, a smaller min_samples or fewer clients",
        ),
        ({"partitioner": "dirichlet"}, ""),
        ({"partitioner": "dirichlet", "partitioner_args": {"alpha": 0}, "app": "mine"}, ""),
        ({"partitioner": "dirichlet", "partitioner_args": {"alpha": 0}, "collect": "1"}, ""),
    ],
)
def test_division_is_judged_by_what_divides(tmp_path, prepared, given, message):
    values = variables.cast("run", {})[0] | {"dataset": "synthetic"} | given
    found = training_set.check_training_set(values, None, 3, prepared)
    assert [str(finding) for finding in found] == ([message] if message else [])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Where the synthetic set is prepared."""
    root = tmp_path_factory.mktemp("data")
    data.prepare("synthetic", root)
    return root


def test_folder_is_judged_by_what_prepares_it(tmp_path, prepared):
    values = variables.cast("run", {})[0]
    message = only(training_set.check_training_set(values, tmp_path, 3, tmp_path / "cache"))
    assert message.startswith(f"fl_data_dir: {tmp_path} holds no file train-images-idx?-ubyte")
    for name in data.FILES:
        shutil.copy(prepared / f"synthetic/{name}.npy", tmp_path)
    assert training_set.check_training_set(values, tmp_path, 3, tmp_path / "cache") == []
    few = values | {"partitioner": "shards", "partitioner_args": {"classes_per_client": 1001}}
    assert "3000 samples are too few" in only(
        training_set.check_training_set(few, tmp_path, 3, tmp_path / "cache")
    )
    (tmp_path / "test_y.npy").write_bytes(b"")
    message = only(training_set.check_training_set(values, tmp_path, 3, tmp_path / "cache"))
    assert message.startswith(f"fl_data_dir: {tmp_path}/test_y.npy is empty: correct the file")
    assert training_set.check_training_set(values | {"app": "mine"}, tmp_path, 3, tmp_path / "cache") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.npy" for name in data.FILES)


def test_paths_on_the_controller(tmp_path):
    message = only(checks.check_controller({}, {"fl_data_dir": "nowhere"}, tmp_path))
    assert message.startswith("fl_data_dir=nowhere is not a folder on this machine: type -e fl_data_dir=DIR")
    assert "trace=t is not a file" in only(checks.check_controller({"trace": "t"}, {}, tmp_path))
    assert "there is no fl_data_dir" in only(
        checks.check_controller({}, {"fl_data_source": "folder"}, tmp_path)
    )
    assert "grafana_archive=g.tar is not a file" in only(
        checks.check_controller({}, {"grafana_archive": "g.tar"}, tmp_path)
    )
    (tmp_path / "g.tar").touch()
    grafana = {"grafana_archive": "g.tar", "grafana_directory": "/srv/grafana"}
    assert "are both given: leave one out" in only(checks.check_controller({}, grafana, tmp_path))
    assert checks.check_controller({}, {"fl_data_dir": str(tmp_path)}, tmp_path) == []


def test_results_are_written_where_that_is_possible(tmp_path, monkeypatch):
    assert checks.check_results(tmp_path / "made" / "later") == []
    (tmp_path / "file").touch()
    assert only(checks.check_results(tmp_path / "file" / "results")) == (
        f"results cannot be written to {tmp_path}/file/results: {tmp_path}/file is no folder: "
        "type -e fl_results_dir=DIR with a folder that you may write to"
    )
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and writable(path, mode))
    assert f"results cannot be written to {tmp_path}/results: {tmp_path} is not writable" in only(
        checks.check_results(tmp_path / "results")
    )


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (200, []),
        (31, []),
        (12, ["ends on 2026-12-06, in 12 days: type ansible-playbook site.yml -e train=false to renew it"]),
        (-1, ["has ended on 2026-11-23: type ansible-playbook site.yml -e train=false to renew it"]),
    ],
)
def test_a_server_certificate_that_ends_soon_is_warned_of(tmp_path, days, words):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab server")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(days=99)).not_valid_after(NOW + timedelta(days=days))
    path = tmp_path / "server.crt"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    expected = [f"the server's certificate {text}" for text in words]
    assert certificates.warn_certificate(path, NOW) == expected
    assert certificates.warn_certificate(tmp_path / "none.crt", NOW) == []


def test_our_variables_given_for_another_app_are_warned_of():
    assert (
        "rounds do not apply to the app x" in checks.warn_foreign_app({"app": "x"}, ["rounds"], ["rounds"])[0]
    )
    assert checks.warn_foreign_app({"app": ""}, ["rounds"], ["rounds"]) == []


def test_findings_are_numbered_through_and_stand_by_machine():
    text = checks.render(
        [Finding("c", "type c", "two"), Finding("a", "type a"), Finding("d", "type d", "two")]
    )
    assert text.splitlines() == [
        "  1. a",
        "     -> type a",
        "two:",
        "  2. c",
        "     -> type c",
        "  3. d",
        "     -> type d",
    ]


def test_the_server_is_reached_by_ipv4_or_by_name():
    server = machine("srv", ["fl_server"], host="fd00::1", address="fd00::1")
    other = machine("c1", ["fl_clients"], host="192.0.2.2", address="192.0.2.2")
    assert "fd00::1 is an IPv6 address: set its fl_address to a name" in only(
        checks.check_addresses([server, other])
    )


def test_ports_that_are_taken_inside_the_servers_container_are_refused():
    message = only(checks.check_ports(machine(), "coldframe", {"fl_port": 9095, "prometheus_port": 9091}))
    assert "fl_port=9095 is a port that is used inside the server's container" in message
    assert "type -e fl_port=9195" in message


@pytest.mark.parametrize("name", ["data", "build", "bridge"])
def test_a_federation_is_not_named_like_what_lies_beside_it(name, tmp_path):
    assert "type -e fl_federation=lab" in only(checks.check_controller({}, {"fl_federation": name}, tmp_path))


@pytest.mark.parametrize(
    ("verb", "values", "words"),
    [
        ("run", {}, "run 7 is running on the same clients"),
        ("site", {"train": True}, "or type -e concurrent=true to train beside it, or -e train=false"),
        (
            "site",
            {"train": False, "rotate_keys": True},
            "run 7 is running, and rotate_keys=true would take its",
        ),
        ("teardown", {"purge": False}, "run 7 is running, and teardown.yml would end it"),
    ],
)
def test_what_would_harm_a_running_run_is_refused(verb, values, words):
    message = only(checks.check_runs(verb, values, ["7"], "-i lab.yml"))
    assert words in message
    assert "stop it with ansible-playbook run.yml -i lab.yml -e stop=7, or" in message
    assert "or add -e interrupt=true to end it" in message
    assert checks.check_runs(verb, values, [], "") == []
    assert checks.check_runs(verb, {**values, "interrupt": True}, ["7"], "") == []


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("run", {"concurrent": True}),
        ("run", {"collect": "5"}),
        ("run", {"stop": "7"}),
        ("site", {"train": False}),
        ("throttle", {}),
        ("status", {}),
    ],
)
def test_what_leaves_a_run_alone_is_not_refused(verb, values):
    assert checks.check_runs(verb, values, ["7"], "") == []
