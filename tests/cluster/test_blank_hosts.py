"""What is refused, or only shown, on hosts that have seen no deployment: nothing is changed there.

Each test says which machine it hurts.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from tests.cluster.lab import Lab, sh

WRONG = {
    "rounds": "abc",
    "fl_strategy": "fedfoo",
    "roundz": "3",
    "min_train_clients": "9",
    "fl_data_dir": "/nowhere/mnist",
    "fl_port": "9555",
}


def test_all_that_is_wrong_is_named_at_once_and_nothing_changes(lab: Lab) -> None:
    """Variables; and it hurts c1, whose /var/lib/coldframe is a small disk for the time of the test, and the
    server's machine, where something listens on the port that is asked for."""
    blank = not lab.deployed
    lab.on_machine("mkdir -p /var/lib/coldframe && mount -t tmpfs -o size=50m tmpfs /var/lib/coldframe")
    lab.on_server("systemd-run --unit=squatter python3 -m http.server 9555")
    try:
        lab.wait_for("the squatter", lambda: "9555" in lab.on_server("ss -ltn"))
        play = lab.play("site.yml", **WRONG)
    finally:
        lab.on_server("systemctl stop squatter")
        lab.on_machine("umount /var/lib/coldframe && rmdir --ignore-fail-on-non-empty /var/lib/coldframe")
    assert play.code != 0
    for message in (
        "rounds=abc is not a whole number ≥ 1 -> type -e rounds=5",
        "fl_strategy=fedfoo is not known (one of fedavg,",
        "unknown variable 'roundz' for site.yml -> did you mean 'rounds'?",
        "min_train_clients=9 is more than the 4 clients",
        "fl_data_dir=/nowhere/mnist is not a folder on this machine",
        "are free on /var/lib/coldframe",
        "port 9555 is in use by python3",
        "type -e fl_port=9655",
        "Nothing was changed.",
    ):
        assert message in " ".join(play.output.split()), message
    assert set(play.changed.values()) == {0}
    for host in lab.hosts if blank else ():
        assert sh(host, "ls -A /var/lib/coldframe 2>/dev/null | wc -l").strip() == "0"


# An environment of its own, since what is in the variables is not heeded by a Python that runs isolated.
ODD_PYTHON = """
packages=$(python3 -c 'import sys; print("/opt/odd/lib/python%d.%d/site-packages" % sys.version_info[:2])')
mkdir -p /opt/odd/bin $packages
ln -s /usr/bin/python3 /opt/odd/bin/python3
echo home = /usr/bin >/opt/odd/pyvenv.cfg
echo import odd >$packages/odd.pth
cat >$packages/odd.py <<'END'
import os, time
clock, system = time.time, os.uname()
time.time = lambda: clock() + 600
os.uname = lambda: os.uname_result((*system[:4], "aarch64"))
END
"""


def test_machines_that_will_not_do_are_named_with_cause_and_remedy(lab: Lab, tmp_path: Path) -> None:
    """All at once: no answer, the wrong key, one machine twice, too little memory, a clock that is 10 minutes
    fast, another architecture.

    All hosts have this machine's clock and processor: that of c2 is wrong for its Python alone, and all that
    Ansible runs there is told by that.
    """
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    gone = lab.server.address.rpartition(".")[0] + ".199"
    inventory = yaml.safe_load(lab.inventory.read_text())
    machines = inventory["fl_machines"]
    machines["hosts"]["c1"]["ansible_ssh_private_key_file"] = str(tmp_path / "key")
    machines["hosts"]["c1"]["ansible_ssh_args"] = "-o ControlMaster=no"  # not by a connection that is open
    machines["hosts"]["c2"]["ansible_python_interpreter"] = "/opt/odd/bin/python3"
    sh(lab.hosts["c2"], ODD_PYTHON)
    machines["hosts"]["gone"] = {"ansible_host": gone}
    machines["hosts"]["twin"] = {"ansible_host": lab.server.address}
    del machines["hosts"]["server"]["fl_client_count"]
    machines["hosts"]["server"]["fl_client_list"] = [{"memory": "900g"}]
    machines["children"]["fl_clients"]["hosts"] |= {"gone": None, "twin": None}
    wrong = Lab(lab.hosts, tmp_path)
    wrong.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
    play = wrong.play("site.yml")
    sh(lab.hosts["c2"], "rm -r /opt/odd")
    assert play.code != 0
    user = machines["vars"]["ansible_user"]
    for words in (
        "machine gone did not answer",
        f"check that this works: ssh {user}@{gone}",
        "machine c1 did not answer",
        "Permission denied",
        f"check that this works: ssh {user}@{lab.machine.address}",
        f"machines server and twin have the same address {lab.server.address}",
        "server and twin are the same machine",
        "its client may use 900 GB and the server 700 MB, and the machine has",
        "give it fewer clients (fl_client_count)",
        "c2: ",
        "the clock is 600 s ahead of the controller's -> set it, e.g. with sudo apt-get install chrony",
        "it is arm64, and server, which builds the image, is amd64 -> remove it from the inventory",
        "Nothing was changed.",
    ):
        assert words in " ".join(play.output.split()), words
    assert set(play.changed.values()) == {0}


def test_check_mode_shows_a_deployment_and_changes_nothing(lab: Lab) -> None:
    """--check --diff on hosts that have seen none: it passes, says what would change, and leaves no trace."""
    if lab.deployed:
        lab.must("teardown.yml", purge="true", yes="true")
        lab.deployed.clear()
    play = lab.must("site.yml", "--check", "--diff", fl_monitoring="true")
    assert max(play.changed.values()) > 0
    for host in lab.hosts:
        assert sh(host, "ls -A /var/lib/coldframe 2>/dev/null | wc -l").strip() == "0"
        assert sh(host, "docker ps --all --quiet 2>/dev/null | wc -l").strip() == "0"
    assert not (lab.directory / "state" / "coldframe" / "coldframe").exists()
