"""Checks everything that a verb needs, and reports every finding at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.errors import AnsiblePromptNoninteractive
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from coldframe.controller import (
    app,
    check_app_data,
    checks,
    commands,
    deployment,
    description,
    experiment_plan,
    preflight,
    purge,
)
from coldframe.controller.preflight import Call, Preflight
from coldframe.controller.records import folders_of
from coldframe.controller.resume import resumption
from coldframe.controller.roster import run_config
from coldframe.controller.settings import VERBS

display = Display()

UP_TO_DATE = "Up to date; nothing to deploy (-e redeploy=true re-checks)."


class ActionModule(ActionBase):
    """Gathers what the checks need; returns what they find."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check, show the warnings, and fail with all findings; else return what the playbooks need."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _spec, args = self.validate_argument_spec(
            {"verb": {"type": "str", "required": True, "choices": sorted(VERBS)}}
        )
        it = preflight.run(
            Call(
                verb=args["verb"],
                extra={str(name): value for name, value in load_extra_vars(self._loader).items()},
                groups=task_vars["groups"],
                hostvars=task_vars["hostvars"],
                limited=bool(context.CLIARGS.get("subset")),
                base=Path.cwd(),
            )
        )
        # Ansible's own warnings stay with the result, unseen where hosts that are "ok" are not displayed.
        for warning in it.warnings:
            text = commands.complete(f"[WARNING]: {warning}", {**it.stood.typed, **it.call.extra})
            display.display(text, color=C.COLOR_WARN, stderr=True)
        check = bool(self._task.check_mode)
        refusal = "" if it.findings else _consent(it, check)
        deployed = {}
        if it.deploys and it.server and not it.findings:
            deployed = deployment.plan(it, check)
        if it.experiment and not it.findings:
            deployed["experiment"] = experiment_plan.plan(it, it.results)
        if it.findings:
            text = f"{checks.render(it.findings)}\n\nNothing was changed."
            refusal = commands.complete(text, {**it.stood.typed, **it.call.extra})
        if refusal:
            return {**result, "failed": True, "changed": False, "msg": refusal}
        if deployed.get("standing"):
            display.display(UP_TO_DATE)
        return {**result, "changed": False, **deployed, **_answer(it)}


def _answer(it: Preflight) -> dict[str, Any]:
    """What the playbooks get."""
    return {
        "run": it.values,
        "run_config": run_config(it.values) if it.deploys else {},
        "resumption": resumption(it.values, it.call.extra) if it.values.get("resume") else {},
        "fab": it.packed.get("path", ""),
        "app_data": check_app_data.folder_of(it.values, it.call.base),
        "roster": deployment.shown(it),
        "oversubscribed": it.oversubscribed,
        "requests": it.requests,
        "scenario": it.scenarios.get("", {}),
        "staged": {
            machine.name: staged["run"]
            for machine in it.answered
            if (staged := ((machine.facts or {}).get("agent") or {}).get("scenario"))
        },
        "going": it.going,
        "checkout": {**deployment.checkout(), **app.commit(it.packed)} if it.deploys else {},
        "verb_arguments": it.verb_arguments,
        "site_arguments": it.site_arguments,
        "run_arguments": " ".join(commands.of_the_run(it.call.extra)),
        "to_set": description.to_set(it.asked, it.machines, it.usual),
        "stood": dict(it.stood.typed),
        "stamp": time.time(),
        "warned": it.warnings,
    }


def _consent(it: Preflight, check: bool) -> str:
    """Name what purge=true deletes, and ask for a yes; why it is refused, or nothing."""
    if not it.values.get("purge") or it.values["yes"] or check or not it.server:
        return ""
    federation = str(it.variable("coldframe_federation"))
    lost = purge.losses(
        federation,
        folders_of(it.results, federation),
        [machine.name for machine in it.answered],
        Path(str(it.variable("coldframe_state"))),
        it.path("coldframe_controller_state"),
    )
    lines = "\n".join(lost)
    try:
        answer = display.prompt_until(f"{lines}\nType yes to delete all of it: ")
    except AnsiblePromptNoninteractive:
        more = " -e interrupt=true" if it.values["interrupt"] else ""
        return f"{lines}\n\nTo delete all of it, type {purge.COMMAND}{more}\n\nNothing was changed."
    return "" if answer.strip() == b"yes" else "It was not answered with yes. Nothing was changed."
