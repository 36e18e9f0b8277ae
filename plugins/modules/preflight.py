"""Documentation of the `preflight` action, which runs on the controller (plugins/action/preflight.py)."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Check everything that a verb needs, and print every finding at once
description:
  - Checks the verb's variables (from C(-e) and from the inventory), the shape of the inventory, paths on the
    controller, and what the module C(machine_facts) has registered for each machine as C(machine_facts).
  - Fails with all findings together, each with what to type instead. Changes nothing.
  - How much is checked depends on the verb. C(site) checks all; C(run) not what only a deployment needs;
    C(status) and C(teardown) go on with machines that do not answer. C(compare) and C(export) look at no
    machine.
  - Every verb but C(site) follows the description of the last deployment, which is on the machines; C(run)
    and C(throttle) refuse what contradicts it.
options:
  verb:
    description: Whose variables are known.
    type: str
    required: true
    choices: [calibrate, compare, connect, experiment, export, run, site, status, teardown, throttle]
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Preflight | Check everything
  preflight:
    verb: site
  register: coldframe_preflight
"""

RETURN = r"""
run:
  description: Every variable of the verb, typed; defaults where none was given.
  type: dict
  returned: success
run_config:
  description: The same as the run config of the Flower app.
  type: dict
  returned: success
experiment:
  description: >-
    For experiment.yml: C(lines) that tell the plan, C(runs) that are left, each with C(run), C(run_config),
    C(limits), C(scenario) and C(note), C(folder), and C(about), which the comparison reads.
  type: dict
  returned: for C(experiment)
scenario:
  description: >-
    What becomes of the run's scenario: C(name), C(text), C(entries), and C(machines), what each agent gets.
    Empty where the run has none.
  type: dict
  returned: success
staged:
  description: The machines whose agents have a scenario staged, each with the id of its run.
  type: dict
  returned: success
fab:
  description: The packed app of the user's; empty where our own is to run, which is packed later.
  type: str
  returned: success
app_data:
  description: The folder of data for an app of the user's, as an absolute path; empty where there is none.
  type: str
  returned: success
roster:
  description: The clients, without partition ids, which are given at the server's machine.
  type: list
  elements: dict
  returned: success
description:
  description: For site.yml, what it deploys; the module C(deployed) notes it on the machines.
  type: dict
  returned: success
to_set:
  description: Settings of the deployment that the call itself lacks, as C(machine), C(name), C(value).
  type: list
  elements: dict
  returned: success
checkout:
  description: The commit of this checkout, and whether it is clean; both None where there is no git. The same
    of an app of the user's as C(app_commit) and C(app_clean).
  type: dict
  returned: success
verb_arguments:
  description: What to type with every other verb, to address the same federation.
  type: str
  returned: success
site_arguments:
  description: What to type with site.yml, to deploy the same again.
  type: str
  returned: success
oversubscribed:
  description: Whether some machine's clients may use more than its cores.
  type: bool
  returned: success
data_folder:
  description: The folder that the data set is taken from, as an absolute path; empty where there is none.
  type: str
  returned: for site and run
requests:
  description: For throttle.yml, what to ask of each machine's agent.
  type: dict
  returned: success
going:
  description: Ids of the federation's runs that have not ended.
  type: list
  elements: str
  returned: success
stamp:
  description: When the verb began (unix time); of two that run at once the later wins on all machines.
  type: float
  returned: success
warned:
  description: The warnings that were shown, of what may work but should be known.
  type: list
  elements: str
  returned: success
"""
