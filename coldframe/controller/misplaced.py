"""One line of help for what is often typed in a form or a place where it does not work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coldframe.controller.settings import PARTITIONER_ARGUMENTS, VERBS, Finding, typed
from fl import arguments

# Ansible's name for the words of an -e that belong to no variable.
WORDS = "_raw_params"
# Which variable takes the arguments of what.
_ARGUMENTS = (
    ("partitioner_args", "partitioner", PARTITIONER_ARGUMENTS),
    ("strategy_args", "fl_strategy", arguments.STRATEGIES),
    ("dp_args", "fl_dp", arguments.PRIVACY),
)


def misplaced(verb: str, extra: Mapping[str, Any]) -> tuple[list[Finding], set[str]]:
    """Findings about what was typed, and the names of ``-e`` that need no other.

    Parameters
    ----------
    extra : mapping
        The variables of ``-e``.
    """
    findings, about = [], set()
    if WORDS in extra:
        finding, name = _cut(extra)
        findings.append(finding)
        about |= {WORDS, name}
    for name in extra:
        if name not in VERBS[verb] and (argument := _argument(verb, name, extra)):
            findings.append(argument)
            about.add(name)
    return findings, about


def _cut(extra: Mapping[str, Any]) -> tuple[Finding, str]:
    """Say how to type a value with blanks: Ansible cuts it unless all of it is JSON."""
    words = str(extra[WORDS])
    for name, value in extra.items():
        whole = f"{value} {words}"
        if not (isinstance(value, str) and value.startswith(("{", "["))):
            continue
        try:
            json.loads(whole)
        except ValueError:
            continue
        return Finding(f"Ansible cuts {name}={whole} at its blanks", f"type {typed(name, whole)}"), name
    remedy = """no blanks around =, and a value with blanks in quotes of its own: -e 'name="a b"'"""
    return Finding(f"{words!r} of -e belongs to no variable", remedy), WORDS


def _argument(verb: str, name: str, extra: Mapping[str, Any]) -> Finding | None:
    """Say where an argument of a partitioner, strategy or privacy wrapper is typed."""
    for variable, chooser, table in _ARGUMENTS:
        owners = [owner for owner, arguments in table.items() if name in arguments]
        if not owners or variable not in VERBS[verb]:
            continue
        chosen = extra.get(chooser)
        choice = "" if chosen in owners else f"-e {chooser}={owners[0]} "
        try:
            value = json.loads(str(extra[name]))
        except ValueError:
            value = extra[name]
        what = f"{name} is an argument of {chooser} {' or '.join(owners)}"
        return Finding(what, f"type {choice}{typed(variable, json.dumps({name: value}))}")
    return None
