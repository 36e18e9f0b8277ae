"""The federation that the tests of lane A share: a server, and four clients on three machines."""

from __future__ import annotations

from typing import Any

import yaml

from tests.cluster.lab import Lab, sh

FEDERATION = "coldframe"
PORT = 9092  # fl_port; the others follow it
MACHINES = ["server", "c1", "c2"]
CPU = 0.4  # four of them leave the machine that all hosts share a fifth of its two cores
SCRAPE = "2s"  # tests see changes sooner than with the usual 5s
CLIENTS = {
    "server-0": "server",
    "c1-0": "c1",
    "c1-1": "c1",
    "small": "c2",
}  # and their machines
# c1 has a count of clients, c2 a list of one with a name and limits of its own.
COUNTS = {"server": 1, "c1": 2}
LIST = [{"name": "small", "memory": "900m"}]
EVERYBODY = {"min_train_clients": str(len(CLIENTS)), "min_available_clients": str(len(CLIENTS))}


def write_inventory(
    lab: Lab,
    machines: list[str] = MACHINES,
    counts: dict[str, int] = COUNTS,
    of_c2: dict[str, Any] | None = None,
    **variables: Any,
) -> None:
    """Write the inventory of the federation.

    Parameters
    ----------
    machines
        The hosts, in the inventory's order; all of them hold clients.
    counts
        Clients by machine; one that is not named has what `of_c2` says.
    of_c2
        Variables of c2, in the place of its list of clients.
    variables
        For all machines.
    """
    usual = {"fl_client_cpu": CPU, "prometheus_scrape_interval": SCRAPE}
    lab.write_inventory(1, machines, **{**usual, **variables})
    inventory = yaml.safe_load(lab.inventory.read_text())
    every = inventory["fl_machines"]
    every["children"]["fl_clients"]["hosts"] = dict.fromkeys(machines)
    for machine, count in counts.items():
        every["hosts"][machine]["fl_client_count"] = count
    if "c2" in machines:
        every["hosts"]["c2"].update(of_c2 or {"fl_client_list": LIST})
    lab.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))


def containers(lab: Lab) -> dict[str, str]:
    """Of every running container of all hosts, by host and name: which it is, and since when it runs."""
    ask = "docker ps -q | xargs -r docker inspect -f '{{.Name}} {{.Id}} {{.State.Pid}} {{.State.StartedAt}}'"
    lines = [(host.name, line) for host in lab.hosts for line in sh(host, ask).splitlines()]
    return {f"{host}{line.split()[0]}": line for host, line in lines}


def turned_away(lab: Lab, key: str) -> bool:
    """Whether the gateway refuses a SuperNode on c1 that has the federation's authority and this key."""
    image = lab.container(lab.machine, f"{FEDERATION}-c1-0")["Config"]["Image"]
    output = lab.on_machine(
        f"timeout 20 docker run --rm --volume {key}:/key:ro"
        f" --volume /var/lib/coldframe/{FEDERATION}/ca:/ca:ro {image}"
        f" flower-supernode --superlink {lab.server.address}:{PORT} --root-certificates /ca/ca.crt"
        " --auth-supernode-private-key /key --max-retries 1 --node-config partition-id=0 2>&1",
        check=False,
    )
    assert "SuperNode" in output, output
    return "Failed to activate SuperNode" in output
