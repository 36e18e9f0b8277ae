"""Asks a machine's agent to change, undo, measure or tell its clients' limits: one call for all of them."""

from __future__ import annotations

from ansible.module_utils.agent_request import (
    ARGUMENTS,
    REQUIRED_IF,
    ask,
    build,
    conclude,
    patience,
    unanswered,
)
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: client_limits
short_description: Changes the limits of a machine's clients while they run
description:
  - A thin client of the agent that owns the limits of a machine's clients. The agent changes them all at
    once, and returns what the kernel held before and holds now.
  - Needs nothing but Python on the machine.
options:
  socket:
    description: The agent's socket.
    type: path
    required: true
  action:
    description:
      - C(set) gives I(limits), C(undo) returns I(clients) to their baseline, C(trace) replays I(trace),
        C(scenario) stages I(scenario), or ends it, C(prove) measures for I(seconds) what I(clients) use,
        C(status) tells of all clients, C(events) what has happened I(since).
    type: str
    choices: [set, undo, trace, scenario, prove, status, events]
    default: status
  limits:
    description: >-
      By client, the limits to give: C(cpu) in cores, C(memory) in bytes, C(pids), C(down) and C(up) in
      bit/s, C(delay) and C(jitter) in seconds, C(loss) in percent. What is not named stays.
    type: dict
    default: {}
  clients:
    description: Names of clients.
    type: list
    elements: str
    default: []
  stamp:
    description: >-
      When the request began, the same on all machines: of two that run at once the later wins everywhere.
      Needed to change anything.
    type: float
  duration:
    description: Seconds after which the limits go back to what they were, without any controller.
    type: float
  seconds:
    description: How long to measure.
    type: float
  load:
    description: Have the clients use all the CPU that they may while it is measured.
    type: bool
    default: false
  trace:
    description: >-
      C(name), C(rows) by client, C(start) (unix time), C(length) (seconds), C(speed) and C(loop).
    type: dict
    default: {}
  scenario:
    description: >-
      C(run), the id of the run that it is for, C(name), C(entries) as coldframe/agent/scenario.py has them,
      C(rounds) and C(quiet). Without entries the one that is staged for this run ends.
    type: dict
    default: {}
  wait:
    description: >-
      For C(status), seconds within which the agent has to answer and the kernel to hold all limits; the
      answer is the last one.
    type: float
    default: 0
  since:
    description: A time as ISO 8601 has it.
    type: str
  force:
    description: Go below what a client uses now, which may kill it.
    type: bool
    default: false
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Half a core for one client, for a minute
  client_limits:
    socket: /var/lib/coldframe/coldframe/agent/agent.sock
    action: set
    limits: {node1-0: {cpu: 0.5}}
    stamp: "{{ now().timestamp() }}"
    duration: 60
  become: true
"""

RETURN = r"""
clients:
  description: >-
    By client. For C(set) and C(undo): C(before), C(desired) and C(verified) limits (the first and last read
    from the kernel, None where the client does not run), C(holds), C(changed), C(superseded) (a request that
    began later had come first), C(revert_at). For C(prove): C(cpu), C(throttled_share), C(down), C(up) as
    measured, and C(desired). For C(status): C(state), C(desired), C(verified), C(holds),
    C(problem) (why they do not), C(use), C(revert_at).
  type: dict
  returned: success
events:
  description: >-
    Changes of limits, restarts and kills for want of memory, in the order of time: C(time), C(client),
    C(cause), and for changes C(requested), C(verified), C(holds), C(seconds).
  type: list
  elements: dict
  returned: for C(events)
"""


def main() -> None:
    """Ask, and return the answer."""
    module = AnsibleModule(ARGUMENTS, required_if=REQUIRED_IF, supports_check_mode=True)
    params = module.params
    try:
        answer = ask(
            params["socket"], build(params, module.check_mode), patience(params), params["wait"] or 0
        )
    except (OSError, ValueError) as error:
        module.fail_json(msg=unanswered(params["socket"], error))
    result = conclude(answer, params, module._diff)
    (module.fail_json if result.pop("failed", False) else module.exit_json)(**result)


if __name__ == "__main__":
    main()
