"""What run.yml -e resume asks of the server, and what it refuses before that."""

from __future__ import annotations

from typing import Any

import pytest

from coldframe.controller.resume import check_resume, resumption
from coldframe.controller.settings import cast


def asked(**extra: Any) -> dict[str, Any]:
    values, findings = cast("run", extra)
    assert findings == []
    return resumption(values, extra)


def refused(verb: str = "run", **extra: Any) -> list[str]:
    values, findings = cast(verb, extra)
    return [*map(str, findings), *map(str, check_resume(verb, values, extra))]


def test_only_what_was_typed_is_compared() -> None:
    assert asked(resume="auto") == {"typed": [], "changed": False}
    found = asked(
        resume="7", rounds="9", strategy_args={"eta": 0.1}, fl_strategy="fedadam", run_name="on", wait=False
    )
    assert found["typed"] == [
        ["rounds", "num-server-rounds", 9],
        ["fl_strategy", "strategy", "fedadam"],
        ["strategy_args", "strategy-args", '{"eta": 0.1}'],
        ["run_name", "", "on"],
    ]
    assert asked(resume="7", resume_changed="true", round_deadline=60) == {
        "typed": [["round_deadline", "", 60.0]],
        "changed": True,
    }


def test_settings_of_another_app_are_compared_by_their_own_names() -> None:
    found = asked(resume="7", app="my/app", run_config={"lr": 0.1})
    assert found["typed"] == [["lr", "lr", 0.1]]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            {"resume_changed": True},
            "resume_changed is given without resume: type -e resume=RUN_ID too, or auto",
        ),
        (
            {"resume": "7", "scenario": "s.yml"},
            "scenario cannot be given to a run that is resumed: leave it out",
        ),
        ({"resume": "last"}, r"resume=last does not have the form \d+|auto: type -e resume=RUN_ID"),
        ({"resume": "7", "follow": "7"}, "follow and resume are given together: type -e resume=7 first"),
    ],
)
def test_what_cannot_be_given_together_is_refused(extra: dict[str, Any], words: str) -> None:
    (finding,) = refused(**extra)
    assert words in finding


def test_site_yml_resumes_nothing() -> None:
    (finding,) = refused("site", resume="7")
    assert finding == "site.yml resumes no run: type ansible-playbook run.yml -e resume=7"


def test_what_fits_is_not_refused() -> None:
    assert refused(resume="auto", app="my/app", run_config={"a": 1}, wait=False, interrupt=True) == []
    assert refused(rounds=3) == []
