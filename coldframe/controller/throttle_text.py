"""The answers of the agents to throttle.yml, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from coldframe.controller.roster import coldframe_status_table
from coldframe.machine.agent_request import refusal
from coldframe.units import RATE_UNITS, format_size

SLACK = 1.03  # of a limit: a measurement that is within it holds
NEAR = 0.9  # of a limit: what uses less was not held back by it


def text_of(key: str, value: Any) -> str:
    """A limit for people."""
    if key == "online":
        return "yes" if value else "no"
    if value is None:
        return "none"
    if key == "memory":
        return format_size(value)
    if key in ("down", "up"):
        unit = next(unit for unit, size in reversed(RATE_UNITS.items()) if value >= size or size == 1)
        return f"{value / RATE_UNITS[unit]:.4g} {unit}"
    if key in ("delay", "jitter"):
        return f"{value * 1000:.4g} ms"
    return f"{value:.4g} %" if key == "loss" else f"{value:.4g}"


def verdict(answer: Mapping[str, Any], key: str) -> str:
    """What became of one limit of one client."""
    if not answer["running"]:
        return "holds from its start"
    if answer.get("superseded"):
        return "a later throttle won"
    return "holds" if answer["holds"] else "DOES NOT HOLD"


def throttle_rows(answers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per client and limit that is asked for or has changed."""
    rows = []
    for name, answer in sorted(answers.items()):
        before, after = answer.get("before") or {}, answer.get("verified") or {}
        asked = answer["asked"]
        for key in asked:
            rows.append(
                {
                    "client": name,
                    "limit": key,
                    "before": text_of(key, before[key]) if key in before else "-",
                    "asked": text_of(key, asked[key]),
                    "kernel": text_of(key, after[key]) if key in after else "-",
                    "verdict": verdict(answer, key),
                }
            )
    return rows


def coldframe_refusal(requests: Mapping[str, Any], hostvars: Mapping[str, Any]) -> str:
    """Why it cannot be done, as one message for all machines; nothing if it can.

    Parameters
    ----------
    requests : mapping
        What was asked of each machine; its ``coldframe_asked`` holds the answer of client_limits.
    """
    refused: dict[str, list[str]] = {}
    for machine in requests:
        answer = hostvars[machine].get("coldframe_asked") or {}
        refused |= answer.get("refused") or ({machine: [answer["msg"]]} if "msg" in answer else {})
    return refusal(refused) if refused else ""


def coldframe_throttle_text(
    requests: Mapping[str, Mapping[str, Any]], hostvars: Mapping[str, Any], check: bool = False
) -> list[str]:
    """The limits before, asked for, and as the kernel says, for people; of a trace, when it begins. Nothing
    where only a measurement was asked for.

    Parameters
    ----------
    requests : mapping
        What was asked of each machine; its ``coldframe_throttled`` holds the answer of client_limits.
    """
    if traces := {machine: request["trace"] for machine, request in requests.items() if "trace" in request}:
        return trace_text(traces, hostvars, check)
    if not any(request["action"] for request in requests.values()):
        return []
    answers: dict[str, Any] = {}
    for machine, request in requests.items():
        found = (hostvars[machine].get("coldframe_throttled") or {}).get("clients") or {}
        requested = request.get("limits") or {}
        for name, answer in found.items():
            before, wanted = answer.get("before") or {}, answer.get("desired") or {}
            keys = list(
                requested.get(name) or [key for key in wanted if key in before and before[key] != wanted[key]]
            )
            answers[name] = {**answer, "asked": {key: wanted[key] for key in keys}}
    rows = throttle_rows(answers)
    if check:
        rows = [{**row, "verdict": "not changed: --check"} for row in rows]
    lines = coldframe_status_table(rows).splitlines() or ["Every client has its baseline already."]
    ends = [answer["revert_at"] for answer in answers.values() if answer.get("revert_at")]
    if ends and not check:
        when = datetime.fromtimestamp(max(ends)).strftime("%H:%M:%S")
        lines += [
            "",
            f"They go back by themselves at {when} (this controller's clock), whatever becomes of it.",
        ]
    return lines


def trace_text(traces: Mapping[str, Any], hostvars: Mapping[str, Any], check: bool) -> list[str]:
    """When a trace begins, how long it takes, and where it does not since something later has come first."""
    trace = next(iter(traces.values()))
    if check:
        return [f"{trace['name']} can be replayed. Nothing was changed: --check"]
    lost = [
        name
        for machine in traces
        for name, answer in hostvars[machine]["coldframe_throttled"]["clients"].items()
        if answer["superseded"]
    ]
    if lost:
        return [f"A later trace or undo won: {trace['name']} is not replayed for {', '.join(lost)}."]
    when = datetime.fromtimestamp(trace["start"]).strftime("%H:%M:%S")
    seconds = round(trace["length"] / trace["speed"], 1)
    again = ", again and again" if trace["loop"] else ""
    return [
        f"The agents replay {trace['name']} from {when} on, by the clock, for {seconds} s{again};",
        "every step is an event (events.jsonl). To end it: ansible-playbook throttle.yml -e undo=true",
    ]


def judge(measured: float, asked: float | None, busy: bool) -> str:
    """Whether a measured use proves a limit."""
    if asked is None:
        return "no limit"
    if measured > asked * SLACK:
        return "EXCEEDED"
    return "proven" if busy else "not reached"


def coldframe_proof_text(
    machines: Iterable[str], hostvars: Mapping[str, Any], run: Mapping[str, Any]
) -> list[str]:
    """What the clients used over the time of the proof, beside what they are limited to; idle ones, how to
    load them."""
    rows = []
    for machine in machines:
        for name, proof in ((hostvars[machine].get("coldframe_proof") or {}).get("clients") or {}).items():
            desired = proof["desired"]
            cpu = desired["cpu"]
            if "problem" in proof:
                asked = {f"{way}_asked": text_of(way, desired[way]) for way in ("cpu", "down", "up")}
                verdicts = {f"{way}_verdict": proof["problem"] for way in ("cpu", "down", "up")}
                rows.append((name, {"client": name, **asked, **verdicts}))
                continue
            row = {
                "client": name,
                "cpu_asked": text_of("cpu", cpu),
                "cpu_used": f"{proof['cpu']:.4f}",
                "of_it": f"{proof['cpu'] / cpu:.1%}" if cpu else "-",
                "throttled": f"{proof['throttled_share']:.0%}",
                "cpu_verdict": judge(proof["cpu"], cpu, bool(cpu) and proof["cpu"] > NEAR * cpu),
            }
            for way in ("down", "up"):
                row[f"{way}_asked"] = text_of(way, desired[way])
                row[f"{way}_measured"] = text_of(way, proof[way])
                reached = bool(desired[way]) and proof[way] > NEAR * desired[way]
                row[f"{way}_verdict"] = judge(proof[way], desired[way], reached)
            rows.append((name, row))
    lines = coldframe_status_table([row for _, row in sorted(rows, key=lambda item: item[0])]).splitlines()
    idle = [name for name, row in rows if row["cpu_verdict"] == "not reached"]
    if idle and not run["load"]:
        which = f" -e clients={','.join(sorted(idle))}" if len(idle) < len(rows) else ""
        lines += [
            "",
            "Clients that want no more CPU prove nothing. To have them use all that they may meanwhile:",
            f"  ansible-playbook throttle.yml -e prove={run['prove']:g}s -e load=true{which}",
        ]
    return lines


def coldframe_speeds(machines: Iterable[Mapping[str, Any]], reference: float) -> list[dict[str, Any]]:
    """A row per machine: its speed as calibrate.yml has measured it."""
    speeds = [
        (vars_["inventory_hostname"], json.loads(vars_["coldframe_calibration"]["stdout_lines"][-1]))
        for vars_ in machines
    ]
    return [
        {
            "machine": name,
            "steps_per_second": round(found["steps_per_second"], 2),
            "reference_cores": round(found["steps_per_second"] / reference, 2),
        }
        for name, found in speeds
    ]


def coldframe_events(machines: Iterable[str], hostvars: Mapping[str, Any]) -> str:
    """The events of all machines as lines of JSON, in the order of time, each with its machine.

    Parameters
    ----------
    machines : iterable of str
        Inventory names; ``hostvars`` of each may hold ``coldframe_events``, the agent's answer.
    """
    events = [
        {**event, "machine": machine}
        for machine in machines
        for event in (hostvars[machine].get("coldframe_events") or {}).get("events") or []
    ]
    return "".join(json.dumps(event) + "\n" for event in sorted(events, key=lambda event: event["time"]))


def coldframe_silent(machines: Iterable[str], hostvars: Mapping[str, Any], gone: Iterable[str] = ()) -> str:
    """The machines whose agents have not told their events, with commas.

    Parameters
    ----------
    machines, hostvars
        As `coldframe_events` takes them.
    gone : iterable of str
        Machines that have dropped out of the play: what they have told was about an earlier run.
    """
    told = {name for name in machines if "events" in (hostvars[name].get("coldframe_events") or {})}
    return ",".join(name for name in machines if name not in told - set(gone))
