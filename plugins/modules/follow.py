"""Documentation of the `follow` action, which runs on the controller (plugins/action/follow.py)."""

from __future__ import annotations

DOCUMENTATION = r"""
module: follow
short_description: Run a long command detached on the target and show its lines live
description:
  - Runs a command in a session of its own on the target, and shows each line it writes while it runs.
  - The command survives a lost connection and the end of C(ansible-playbook); a connection that comes back
    within two minutes is taken up again.
  - Lines that start with the byte 0x1e and go on with JSON such as C({"done":2,"total":5,"text":"..."}) are
    drawn as a progress bar on a terminal, and dropped elsewhere.
  - A line that is a JSON object is an answer for the playbook: it is in C(stdout_lines), and is not shown.
  - Works with any connection and with C(become); environment variables come from the task's C(environment).
options:
  cmd:
    description: The command. A string is given to C(/bin/sh -c), a list is run as it is, without expansions.
    type: raw
    required: true
  chdir:
    description: Directory on the target to run in.
    type: str
    default: "."
  creates:
    description: A path on the target; the command is not run if it exists.
    type: str
    default: ""
  label:
    description: Put before each line shown, to tell machines apart.
    type: str
    default: ""
  changed:
    description: What the task reports as changed once the command has run.
    type: bool
    default: true
  hint:
    description: A line that is shown once the command runs, such as how to end it.
    type: str
    default: ""
  quiet:
    description: Show the progress bar and no lines.
    type: bool
    default: false
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Train | Follow the run
  follow:
    cmd: [docker, exec, coldframe-server, python3, -m, coldframe.server.control, follow, "{{ run_id }}"]
    label: "{{ inventory_hostname }}"
  become: true
"""

RETURN = r"""
rc:
  description: Exit code of the command; the task fails unless it is 0.
  type: int
  returned: always, but in check mode
stdout_lines:
  description: All lines of its standard output and standard error, without progress bar updates.
  type: list
  elements: str
  returned: success
msg:
  description: On failure the exit code and the last 20 lines.
  type: str
  returned: failure
"""
