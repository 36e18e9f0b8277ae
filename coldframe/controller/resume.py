"""What run.yml -e resume=RUN_ID asks of the server, which compares it with the run that is to be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldframe.controller.roster import flatten, run_config
from coldframe.controller.settings import EARLIER, RUN, RUN_CONFIG_KEYS, SETTINGS, Finding

# Of run.yml with resume: how it is called, and what the server compares.
CALL = (*EARLIER, "resume_changed", "wait", "concurrent", "interrupt", "app", "app_data")
COMPARED = (*RUN_CONFIG_KEYS, *SETTINGS, "run_config")


def check_resume(verb: str, values: Mapping[str, Any], extra: Mapping[str, Any]) -> list[Finding]:
    """Findings about what cannot be given together with resume, or without it."""
    if values.get("resume_changed") and not values.get("resume"):
        return [Finding("resume_changed is given without resume", "type -e resume=RUN_ID too, or auto")]
    if not values.get("resume"):
        return []
    if verb == "site":
        return [
            Finding("site.yml resumes no run", f"type ansible-playbook run.yml -e resume={values['resume']}")
        ]
    others = [name for name in extra if name in RUN and name not in (*CALL, *COMPARED)]
    return [Finding(f"{name} cannot be given to a run that is resumed", "leave it out") for name in others]


def resumption(values: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the server is asked: what was typed for the new run, and whether it may differ.

    Returns
    -------
    dict
        `typed`: name, key of the app's config (empty for what the app does not get), value; `changed`.
    """
    config = run_config({**values, "app": ""})
    typed = [[name, key, config[key]] for name, key in RUN_CONFIG_KEYS.items() if name in extra]
    typed += [[name, "", values[name]] for name in SETTINGS if name in extra]
    given = flatten(values.get("run_config") or {}) if "run_config" in extra else {}
    typed += [[key, key, value] for key, value in given.items()]
    return {"typed": typed, "changed": values["resume_changed"]}
