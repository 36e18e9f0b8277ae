"""Notes on a machine what a deployment has left there: the next one sees by it that all of it stands."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.standing import ASIDE, RECORD, look, read_record

DOCUMENTATION = r"""
module: deployed
short_description: Notes what a deployment has left on a machine
description:
  - Writes C(deployed.json) below I(root), with digests of what a deployment writes there, of a data set, and
    the federation's containers. C(machine_facts) returns it beside what is found later.
options:
  root:
    description: The federation's directory on the machine.
    type: path
    required: true
  federation:
    description: Its name; empty on the controller, which has no containers.
    type: str
    default: ""
  data:
    description: The data set's directory; empty where the deployment has brought none.
    type: str
    default: ""
  images:
    description: Images that a deployment uses where it finds them.
    type: list
    elements: str
    default: []
  plan:
    description: Digest of all that the deployment was made from.
    type: str
    required: true
  data_plan:
    description: Digest of what the data set was made from.
    type: str
    default: ""
  description:
    description: What was deployed - clients, limits, ports - for the verbs that follow it.
    type: dict
    default: {}
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Note what was deployed
  deployed:
    root: /var/lib/coldframe/coldframe
    federation: coldframe
    data: /var/lib/coldframe/coldframe/data/mnist
    plan: "{{ coldframe_plan.deployment }}"
  become: true
"""

RETURN = r""" # """


def main() -> None:
    """Write the note, if it differs."""
    module = AnsibleModule(
        {
            "root": {"type": "path", "required": True},
            "federation": {"type": "str", "default": ""},
            "data": {"type": "str", "default": ""},
            "images": {"type": "list", "elements": "str", "default": []},
            "plan": {"type": "str", "required": True},
            "data_plan": {"type": "str", "default": ""},
            "description": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    root = Path(given["root"])
    data = Path(given["data"]) if given["data"] else None
    note = {
        **look(root, given["federation"], data, given["images"]),
        "plan": given["plan"],
        "data_plan": given["data_plan"],
        "description": given["description"],
    }
    noted = read_record(root)
    if data is None:  # what an earlier one brought stands all the same
        note |= {key: noted[key] for key in ("data", "data_plan") if key in noted}
    if noted != note and not module.check_mode:
        part = root / f".{RECORD}.{os.getpid()}"
        part.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        part.chmod(0o644)
        part.replace(root / RECORD)
    # Another plan that came to the same is no change; whether data came, its own task has said.
    module.exit_json(changed=any(noted.get(key) != value for key, value in note.items() if key not in ASIDE))


if __name__ == "__main__":
    main()
