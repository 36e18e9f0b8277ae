"""Three hosts: the server's machine, which holds no client, and two that hold two clients each."""

from __future__ import annotations

from typing import Any

import yaml

from tests.cluster.lab import Lab

MACHINES = ["server", "c1", "c2"]
CPU = 0.4  # four of them leave the machine that all hosts share a fifth of its two cores
CLIENTS = {"c1-0": "c1", "c1-1": "c1", "c2-0": "c2", "small": "c2"}  # and their machines
# c1 has a count of clients, c2 a list with a name and limits of their own.
LIST = [{}, {"name": "small", "memory": "900m"}]
EVERYBODY = {"min_train_clients": "4", "min_available_clients": "4"}


def write_inventory(lab: Lab, machines: list[str] = MACHINES, clients: int = 2, **of_c2: Any) -> None:
    """Write the inventory of the main job: so many clients on c1, and on c2 what is said of it."""
    lab.write_inventory(clients, machines, fl_client_cpu=CPU)
    inventory = yaml.safe_load(lab.inventory.read_text())
    inventory["fl_machines"]["hosts"]["c2"].update(of_c2 or {"fl_client_list": LIST})
    lab.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
