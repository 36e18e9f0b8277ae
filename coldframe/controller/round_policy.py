"""Whether a run's round_deadline, round_goal, round_minimum and replay can work, before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldframe.controller.settings import EARLIER, POLICY, RUN, Finding
from fl import arguments

LOCAL = "local"  # differential privacy that each client adds by itself: it needs no other client


def check_policy(values: Mapping[str, Any], clients: int | None) -> list[Finding]:
    """Findings about the policy of a round, in a federation of so many clients (None: it is not known)."""
    deadline, goal, minimum = (values.get(name) for name in POLICY)
    if any(values[name] for name in EARLIER) or not values.get("train", True):
        return []
    if not values["app"] and values["fl_strategy"] in arguments.ASYNCHRONOUS:
        return _of_asynchronous(values)
    if values["replay"] and not values["app"]:
        strategy = values["fl_strategy"]
        problem = f"replay repeats an order of arrival, and the model of {strategy} does not depend on that"
        return [Finding(problem, "leave it out: the same seed makes the same model")]
    if not deadline:
        return [
            Finding(f"{name}={values[name]} has no deadline", "type -e round_deadline=auto too, or seconds")
            for name in POLICY[1:]
            if values[name]
        ]
    findings = []
    if goal and goal > 1 and minimum and goal < minimum:
        problem = f"round_goal={goal} ends rounds with fewer replies than round_minimum={minimum}"
        findings.append(Finding(problem, f"type -e round_goal={minimum}"))
    return findings if values["app"] else findings + _of_our_app(values, clients)


def _of_asynchronous(values: Mapping[str, Any]) -> list[Finding]:
    """Findings about a strategy that waits for no client: there is nothing to end, and nothing private."""
    strategy = values["fl_strategy"]
    findings = [
        Finding(problem.text, f"leave one of them out, or type -e fl_dp={LOCAL}")
        for problem in arguments.judge_asynchronous(strategy, values["fl_dp"])
    ]
    if given := [name for name in POLICY if values[name] != RUN[name].default]:
        shown = ", ".join(f"{name}={values[name]}" for name in given)
        problem = f"{shown}: {strategy} waits for no client, so a round of it cannot leave one behind"
        findings.append(Finding(problem, f"leave {'it' if len(given) == 1 else 'them'} out"))
    return findings


def _of_our_app(values: Mapping[str, Any], clients: int | None) -> list[Finding]:
    deadline, _, minimum = (values[name] for name in POLICY)
    findings = []
    if values["fl_dp"] not in ("", LOCAL):
        problem = (
            f"round_deadline leaves clients behind, and the accounting of fl_dp={values['fl_dp']} needs the"
            " replies of all that were sampled"
        )
        findings.append(Finding(problem, "leave one of them out"))
    if isinstance(deadline, float) and deadline >= values["round_timeout"]:
        problem = f"round_deadline={deadline:g} is not less than round_timeout={values['round_timeout']:g}"
        findings.append(Finding(problem, f"type -e round_timeout={2 * deadline:g} too"))
    asked = values["min_train_clients"]
    sampled = None if clients is None else max(int(clients * values["fraction_train"]), asked)
    if minimum and sampled is not None and minimum > sampled:
        problem = f"round_minimum={minimum} is more than the {sampled} clients of a round"
        findings.append(Finding(problem, f"type -e round_minimum={sampled}"))
    strategy, args = values["fl_strategy"], values["strategy_args"]
    if not arguments.judge("", arguments.STRATEGIES[strategy], args):
        need, least = arguments.replies_needed(strategy, args), minimum or asked
        if least < need:
            problem = f"{strategy} needs {need} replies, and a round with a deadline may have {least}"
            findings.append(Finding(problem, f"type -e round_minimum={need}"))
    return findings
