"""Makes the network of a federation on a machine, where it is missing."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.engine import Engine, EngineError, Unreachable

DOCUMENTATION = r"""
module: federation_network
short_description: The network of a federation on a machine
description:
  - A bridge network with the federation's name and the label C(coldframe.federation). One of that name is
    left as it is.
  - Needs nothing but Python on the machine, and takes a third of the time of C(docker_network).
options:
  socket:
    description: The socket of the engine's API.
    type: path
    default: /var/run/docker.sock
  federation:
    description: The federation's name.
    type: str
    required: true
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Network
  federation_network:
    federation: coldframe
  become: true
"""

RETURN = r""" # """


def main() -> None:
    """Make the network, if there is none."""
    module = AnsibleModule(
        {
            "socket": {"type": "path", "default": "/var/run/docker.sock"},
            "federation": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    federation, engine = module.params["federation"], Engine(module.params["socket"])
    again = "then ansible-playbook site.yml -e train=false"
    there = False
    try:
        there = bool(engine.network_id(federation))
        if not there and not module.check_mode:
            engine.create_network(federation)
    except Unreachable as error:
        if not module.check_mode:  # on a blank machine there is no engine yet
            module.fail_json(
                msg=f"no engine answers at {engine.path} ({error}): type systemctl status docker on the "
                f"machine, {again}"
            )
    except EngineError as error:
        module.fail_json(
            msg=f"the engine did not make the network {federation} ({error}): type docker network ls on the "
            f"machine, {again}"
        )
    module.exit_json(changed=not there)


if __name__ == "__main__":
    main()
