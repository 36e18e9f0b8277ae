"""Whether what a run demands of its rounds can work (round_deadline and the like), before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldframe.controller.settings import EARLIER, POLICY, RUN, Finding
from coldframe.recording.settings import FOLD
from fl import arguments

# Strategies that take late work, and why others cannot: by name what `recording.fold` says of classes.
FOLDING = ("fedavg", "fedavgm", "fedprox", "fedadagrad", "fedadam", "fedyogi")
MALICIOUS = "a client could send what it likes as late work, which is compared with that of another model"
NOT_FOLDING = {
    "fedmedian": "a median has no weights, so old work would count as much as new",
    "fedtrimmedavg": "a trimmed mean has no weights, so old work would count as much as new",
    "krum": MALICIOUS,
    "multikrum": MALICIOUS,
    "bulyan": MALICIOUS,
    "qfedavg": "it weighs work with the loss of the present model, and that of late work is another's",
}
LOCAL = "local"  # differential privacy that each client adds by itself: it needs no other client


def check_policy(values: Mapping[str, Any], clients: int | None) -> list[Finding]:
    """Findings about the policy of a round, in a federation of so many clients (None: it is not known)."""
    deadline, goal, minimum, late = (values.get(name) for name in POLICY)
    if any(values[name] for name in EARLIER) or not values.get("train", True):
        return []
    if not values["app"] and values["fl_strategy"] in arguments.ASYNCHRONOUS:
        return _of_asynchronous(values)
    if values["replay"] and not values["app"]:
        strategy = values["fl_strategy"]
        problem = f"replay repeats an order of arrival, and the model of {strategy} does not depend on that"
        return [Finding(problem, "leave it out: the same seed makes the same model")]
    work = [] if values["app"] else _check_work(values)
    if not deadline:
        return work + [
            Finding(f"{name}={value} has no deadline", "type -e round_deadline=auto too, or seconds")
            for name, value in (
                ("round_goal", goal),
                ("round_minimum", minimum),
                ("round_late", late == FOLD and FOLD),
            )
            if value
        ]
    findings = work
    if goal and goal > 1 and minimum and goal < minimum:
        problem = f"round_goal={goal} ends rounds with fewer replies than round_minimum={minimum}"
        findings.append(Finding(problem, f"type -e round_goal={minimum}"))
    return findings if values["app"] else findings + _of_our_app(values, clients)


def _check_work(values: Mapping[str, Any]) -> list[Finding]:
    """Findings about how long our app's clients may work in a round."""
    seconds, deadline = values["round_work"], values["round_deadline"]
    findings = [
        Finding(it.text, it.hint)
        for it in arguments.judge_work(seconds, values["fl_dp"], values["fl_strategy"])
    ]
    ends = {"round_timeout": values["round_timeout"]}
    if isinstance(deadline, float):
        ends["round_deadline"] = deadline
    name, end = min(ends.items(), key=lambda item: item[1])
    if seconds >= end:
        problem = f"round_work={seconds:g} leaves no time for messages before {name}={end:g}"
        findings.append(Finding(problem, f"type -e round_work={0.8 * end:g}"))
    return findings


def _of_asynchronous(values: Mapping[str, Any]) -> list[Finding]:
    """Findings about a strategy that waits for no client: there is nothing to end, and nothing private."""
    strategy = values["fl_strategy"]
    findings = [
        Finding(problem.text, f"leave one of them out, or type -e fl_dp={LOCAL}")
        for problem in arguments.judge_asynchronous(strategy, values["fl_dp"])
    ]
    findings += [
        Finding(problem.text, problem.hint)
        for problem in arguments.judge_work(values["round_work"], values["fl_dp"], strategy)
    ]
    if given := [name for name in POLICY if values[name] != RUN[name].default]:
        shown = ", ".join(f"{name}={values[name]}" for name in given)
        problem = f"{shown}: {strategy} waits for no client, so a round of it cannot leave one behind"
        findings.append(Finding(problem, f"leave {'it' if len(given) == 1 else 'them'} out"))
    return findings


def _of_our_app(values: Mapping[str, Any], clients: int | None) -> list[Finding]:
    deadline, _, minimum, late = (values[name] for name in POLICY)
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
    if late == FOLD and strategy not in FOLDING:
        problem = f"{strategy} takes no late work: {NOT_FOLDING[strategy]}"
        findings.append(Finding(problem, f"leave round_late out, or type -e fl_strategy={FOLDING[0]}"))
    if not arguments.judge("", arguments.STRATEGIES[strategy], args):
        need, least = arguments.replies_needed(strategy, args), minimum or asked
        if least < need:
            problem = f"{strategy} needs {need} replies, and a round with a deadline may have {least}"
            findings.append(Finding(problem, f"type -e round_minimum={need}"))
    return findings
