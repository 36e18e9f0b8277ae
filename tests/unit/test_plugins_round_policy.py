"""A deadline, goal or minimum of a round that cannot work is refused, with what to type instead."""

from __future__ import annotations

from typing import Any

import pytest

from coldframe.controller.round_policy import NOT_FOLDING, check_policy
from coldframe.controller.settings import STRATEGIES, cast
from fl.arguments import ASYNCHRONOUS

DP = {"fl_dp": "server-fixed", "dp_args": {"noise_multiplier": 0.1, "clipping_norm": 10}}
LOCAL = {
    "fl_dp": "local",
    "dp_args": {"clipping_norm": 10, "sensitivity": 1.0, "epsilon": 1.0, "delta": 1e-5},
}
KRUM = {"fl_strategy": "krum", "strategy_args": {"num_malicious_nodes": 1}}


def findings(clients: int | None = 10, verb: str = "run", **given: Any) -> list[str]:
    values, wrong = cast(verb, given)
    assert wrong == []
    return [str(finding) for finding in check_policy(values, clients)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"round_goal": "0.75"},
            "round_goal=0.75 has no deadline: type -e round_deadline=auto too, or seconds",
        ),
        (
            {"round_minimum": 3},
            "round_minimum=3 has no deadline: type -e round_deadline=auto too, or seconds",
        ),
        (
            {"round_deadline": 60, "round_goal": 3, "round_minimum": 5},
            "round_goal=3 ends rounds with fewer replies than round_minimum=5: type -e round_goal=5",
        ),
        (
            {"round_deadline": 60, **DP},
            "round_deadline leaves clients behind, and the accounting of fl_dp=server-fixed needs the replies"
            " of all that were sampled: leave one of them out",
        ),
        (
            {"round_deadline": "10m"},
            "round_deadline=600 is not less than round_timeout=600: type -e round_timeout=1200 too",
        ),
        (
            {"round_deadline": 60, "round_minimum": 6, "fraction_train": 0.5},
            "round_minimum=6 is more than the 5 clients of a round: type -e round_minimum=5",
        ),
        (
            {"round_deadline": 60, **KRUM},
            "krum needs 5 replies, and a round with a deadline may have 2: type -e round_minimum=5",
        ),
        (
            {"round_deadline": 60, "round_minimum": 6, "fl_strategy": "bulyan", "min_train_clients": 7}
            | {"strategy_args": {"num_malicious_nodes": 1}},
            "bulyan needs 7 replies, and a round with a deadline may have 6: type -e round_minimum=7",
        ),
        (
            {"round_deadline": 60, "round_work": 60},
            "round_work=60 leaves no time for messages before round_deadline=60: type -e round_work=48",
        ),
        (
            {"round_work": "10m"},
            "round_work=600 leaves no time for messages before round_timeout=600: type -e round_work=480",
        ),
        (
            {"round_work": 45, **DP},
            "fl_dp=server-fixed computes its noise for equal shares, and partial work makes them unequal:"
            " leave round_work or fl_dp out",
        ),
        (
            {"round_late": "fold"},
            "round_late=fold has no deadline: type -e round_deadline=auto too, or seconds",
        ),
        (
            {"round_deadline": 60, "round_late": "fold", "fl_strategy": "fedmedian"},
            "fedmedian takes no late work: a median has no weights, so old work would count as much as new:"
            " leave round_late out, or type -e fl_strategy=fedavg",
        ),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], message: str) -> None:
    assert findings(**given) == [message]


@pytest.mark.parametrize("name", ["fedbuff", "fedasync"])
def test_a_strategy_that_waits_for_nobody_has_neither_deadlines_nor_noise_on_the_server(name: str) -> None:
    assert findings(fl_strategy=name) == findings(fl_strategy=name, **LOCAL) == []
    assert findings(fl_strategy=name, replay="17") == []
    assert findings(fl_strategy=name, **DP) == [
        f"strategy {name} uses each update as it comes, and the accounting of dp=server-fixed counts on"
        " rounds of a fixed number of clients: leave one of them out, or type -e fl_dp=local"
    ]
    why = f"{name} waits for no client, so a round of it cannot leave one behind"
    assert findings(fl_strategy=name, round_deadline="auto") == [f"round_deadline=auto: {why}: leave it out"]
    assert findings(fl_strategy=name, round_goal="0.75", round_minimum=3) == [
        f"round_goal=0.75, round_minimum=3: {why}: leave them out"
    ]
    assert findings(fl_strategy=name, round_deadline=60, app="path/to/app") == [], "it has its own strategy"


def test_only_what_depends_on_the_order_of_arrival_is_replayed() -> None:
    assert findings(replay="17") == [
        "replay repeats an order of arrival, and the model of fedavg does not depend on that: leave it out:"
        " the same seed makes the same model"
    ]
    assert findings(replay="17", app="path/to/app") == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        KRUM,
        DP,
        {"round_deadline": ""},
        {"round_deadline": "auto", "round_goal": "0.75", "round_minimum": "2"},
        {"round_deadline": "90s", "round_goal": 8},
        {"round_deadline": 60, **LOCAL},
        {"round_deadline": 60, "round_minimum": 5, **KRUM},
        {"round_goal": 3, "collect": "1"},
        {"round_late": "drop"},
        {"round_work": 45},
        {"round_work": "45s", "round_deadline": 60, "round_late": "fold"},
        {"round_work": 45, "round_deadline": "auto", **LOCAL},
        {"round_deadline": 60, "round_late": "fold", **LOCAL},
    ],
)
def test_what_can_work_is_not(given: dict[str, Any]) -> None:
    assert findings(**given) == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_weighted_averages_take_late_work_and_each_refusal_has_a_reason(name: str) -> None:
    found = findings(round_deadline=60, round_late="fold", round_minimum=5, fl_strategy=name)
    takes = name in ("fedavg", "fedavgm", "fedprox", "fedadagrad", "fedadam", "fedyogi")
    assert (found == []) == takes
    if name in ASYNCHRONOUS:
        assert f"{name} waits for no client" in found[0]
    elif not takes:
        assert found[0].startswith(f"{name} takes no late work: {NOT_FOLDING[name]}")
    assert findings(app="x", round_deadline=60, round_late="fold", fl_strategy=name) == []


def test_of_another_app_only_the_options_themselves_are_judged() -> None:
    assert findings(app="x", round_deadline=6000, round_minimum=99) == []
    assert len(findings(app="x", round_goal=0.5)) == 1
    assert findings(None, "site", train=False, round_goal=0.5) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"round_deadline": "soon"}, "is not auto or a duration in seconds > 0: type -e round_deadline=60"),
        ({"round_deadline": 0}, "is not auto or a duration in seconds > 0: type -e round_deadline=60"),
        ({"round_goal": 1.5}, "is not a share up to 1, or a whole number, > 0: type -e round_goal=0.75"),
        ({"round_goal": 0}, "is not a share up to 1, or a whole number, > 0: type -e round_goal=0.75"),
        ({"round_late": "keep"}, "round_late=keep"),
        ({"round_minimum": 0}, "is not a whole number ≥ 1: type -e round_minimum=2"),
    ],
)
def test_values_have_a_range(given: dict[str, Any], message: str) -> None:
    (finding,) = cast("run", given)[1]
    assert message in str(finding)


def test_values_are_typed_once() -> None:
    given = {"round_deadline": " Auto ", "round_goal": "8", "round_minimum": "2"}
    values, _ = cast("run", given)
    assert [values[name] for name in given] == ["auto", 8, 2]
    assert cast("run", {"round_deadline": "2m", "round_goal": ".5"})[0].items() >= {
        ("round_deadline", 120.0),
        ("round_goal", 0.5),
    }
