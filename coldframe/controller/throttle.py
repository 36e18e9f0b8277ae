"""What throttle.yml shall do: which clients, which limits for each of them, and why not."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from coldframe.controller.checks import Machine
from coldframe.controller.profiles import on_machine, profile_limits, speed_of
from coldframe.controller.settings import Finding, nearest, typed
from coldframe.controller.trace_file import Trace, read_trace
from coldframe.limits import CPU_FLOOR, LIMITS, MEMORY_FLOOR
from coldframe.units import format_size

START_DELAY = 5.0  # seconds


def choose(
    values: Mapping[str, Any], roster: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Finding]]:
    """The clients that are meant: those that the pattern matches, of them a share drawn with the seed."""
    patterns = [part.strip() for part in values["clients"].split(",")]
    chosen = [client for client in roster if any(fnmatchcase(client["name"], part) for part in patterns)]
    if not chosen:
        names = [client["name"] for client in roster]
        near = nearest(values["clients"], names)
        shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
        remedy = f"type {typed('clients', near)}" if near else f"type {typed('clients', repr('*'))}"
        return [], [Finding(f"clients={values['clients']} matches none of {shown or 'no clients'}", remedy)]
    count = max(1, round(values["fraction"] * len(chosen)))
    drawn = random.Random(values["seed"]).sample(sorted(client["name"] for client in chosen), count)
    return [client for client in chosen if client["name"] in drawn], []


def check_words(values: Mapping[str, Any]) -> list[Finding]:
    """Findings about variables that do not go together."""
    given = [key for key in LIMITS if values[key] is not None] + (["profile"] if values["profile"] else [])
    findings = []
    if not given and not values["undo"] and not values["trace"] and values["prove"] is None:
        findings.append(
            Finding(
                "nothing to do: throttle.yml was given no limit",
                f"type {typed('cpu', '0.5')} (or memory, pids, down, up, delay, profile, trace, undo=true, "
                "prove=10s)",
            )
        )
    if values["undo"] and (given or values["trace"]):
        other = ", ".join(given or ["trace"])
        findings.append(Finding(f"undo and {other} are both given", f"leave {other} out, or undo"))
    if values["trace"] and given:
        findings.append(
            Finding(
                f"trace and {', '.join(given)} are both given",
                f"leave {', '.join(given)} out: the trace says it",
            )
        )
    if values["duration"] is not None and not given:
        findings.append(Finding("duration is given without a limit", "leave it out, or type -e cpu=0.5 too"))
    if values["load"] and values["prove"] is None:
        findings.append(Finding("load=true is given without prove", "type -e prove=10s too, or leave it out"))
    if values["jitter"] and not values["delay"] and not values["profile"]:
        findings.append(Finding("jitter is given without a delay to vary", "type -e delay=50ms too"))
    return findings


def limits_for(
    values: Mapping[str, Any], machine: Machine, profiles: Mapping[str, Any], reference: float
) -> dict[str, Any]:
    """The limits that are asked for, as they are on a machine: a value given beats the profile's."""
    limits = profile_limits(values["profile"], profiles) if values["profile"] else {}
    limits = on_machine(limits, reference, speed_of(machine.facts))
    return limits | {key: values[key] for key in LIMITS if values[key] is not None}


def check_limits(
    limits: Mapping[str, Any], machine: Machine, force: bool, profile: str | None
) -> list[Finding]:
    """Findings about limits that this machine cannot give, or that no client would survive."""
    cores = (machine.facts or {})["cpus"]
    findings = []
    cpu, memory = limits.get("cpu"), limits.get("memory")
    why = f" (profile {profile} on this machine)" if profile else ""
    if cpu is not None and cpu > cores:
        findings.append(
            Finding(
                f"cpu={cpu:g}{why} is more than the machine's {cores} cores",
                f"type {typed('cpu', f'{cores:g}')} or less",
                machine.name,
            )
        )
    if cpu is not None and cpu < CPU_FLOOR:
        findings.append(
            Finding(
                f"cpu={cpu:g}{why} is less than a client needs to answer the server",
                f"type {typed('cpu', str(CPU_FLOOR))} or more",
                machine.name,
            )
        )
    if memory is not None and memory < MEMORY_FLOOR and not force:
        findings.append(
            Finding(
                f"memory={memory >> 20}m{why} is below the {format_size(MEMORY_FLOOR)} that training needs, "
                "and the kernel would kill the client",
                f"type {typed('memory', f'{MEMORY_FLOOR >> 20}m')}, or -e force=true to do it all the same",
            )
        )
    return findings


def plan(
    values: Mapping[str, Any],
    roster: Sequence[Mapping[str, Any]],
    machines: Iterable[Machine],
    profiles: Mapping[str, Any],
    reference: float,
    base: Path,
) -> tuple[dict[str, dict[str, Any]], list[Finding], list[str]]:
    """What to ask of each machine's agent.

    Parameters
    ----------
    values : mapping
        The typed variables of throttle.yml.
    reference : float
        Training steps per second of a reference core, which the profiles' cpu counts.
    base : Path
        The directory that a trace's path begins from.

    Returns
    -------
    requests : dict
        By machine: ``action`` (set, undo, trace, or empty where nothing changes), ``clients``, and ``limits``
        or a ``trace``.
    findings, warnings : lists
    """
    findings = check_words(values)
    chosen, found = choose(values, roster)
    findings += found
    if values["profile"]:
        try:
            profile_limits(values["profile"], profiles)
        except ValueError as error:
            problem, _, remedy = str(error).partition(": ")
            findings.append(Finding(problem, remedy))
    trace: Trace | None = None
    if values["trace"] and chosen:
        try:
            trace = read_trace(base / values["trace"], [client["name"] for client in chosen])
        except ValueError as error:
            problem, _, remedy = str(error).rpartition(": ")
            findings.append(Finding(problem, remedy))
    if findings:
        return {}, findings, []
    # All agents begin at the same full second, soon enough to wait for and late enough to reach them all.
    start = math.ceil(time.time() + START_DELAY)
    requests: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for machine in machines:
        names = [client["name"] for client in chosen if client["machine"] == machine.name]
        rows = {name: trace.rows[name] for name in names if name in trace.rows} if trace else {}
        if not names or (trace and not rows):
            continue
        if values["undo"]:
            requests[machine.name] = {"action": "undo", "clients": names}
        elif trace:
            requests[machine.name] = replay(values, rows, start, trace.length)
            for name in rows:
                findings += _check_rows(rows[name], machine, values["force"])
        else:
            limits = limits_for(values, machine, profiles, reference)
            found = check_limits(limits, machine, values["force"], values["profile"])
            findings += [finding for finding in found if finding not in findings]
            warnings += _warn_uncalibrated(values["profile"], limits, machine)
            requests[machine.name] = {
                "action": "set" if limits else "",
                "clients": names,
                "limits": dict.fromkeys(names, limits),
            }
    return requests, findings, warnings


def replay(
    values: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]], start: float, length: float
) -> dict[str, Any]:
    """The request that replays a trace, `rows` by client."""
    trace = {"name": values["trace"], "rows": rows, "start": start, "length": length}
    trace |= {"speed": values["trace_speed"], "loop": values["trace_loop"]}
    return {"action": "trace", "clients": list(rows), "trace": trace}


def _warn_uncalibrated(profile: str | None, limits: Mapping[str, Any], machine: Machine) -> list[str]:
    if not profile or "cpu" not in limits or speed_of(machine.facts):
        return []
    return [
        f"{machine.name} is not calibrated, so profile {profile} counts its cores as reference cores: "
        "type ansible-playbook calibrate.yml"
    ]


def _check_rows(rows: Sequence[Mapping[str, Any]], machine: Machine, force: bool) -> list[Finding]:
    for row in rows:
        for finding in check_limits(row, machine, force, None):
            return [
                Finding(
                    f"second {row['seconds']:g} of the trace: {finding.problem}",
                    "correct the trace",
                    machine.name,
                )
            ]
    return []
