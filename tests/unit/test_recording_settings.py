"""The settings of a run reach what records it, however early its ServerApp starts."""

import json
import threading
from pathlib import Path

from coldframe.recording import settings
from coldframe.recording.settings import Settings


def test_a_run_that_nobody_has_noted_has_the_defaults(tmp_path: Path) -> None:
    assert settings.read(tmp_path, "7") == Settings(None, None, 300.0)
    with settings.submitting(tmp_path):
        settings.write(tmp_path, "7", json.dumps({"clients": []}))
    assert settings.read(tmp_path, "7") == Settings(), "the note of an older controller"


def test_who_starts_before_the_note_is_written_waits_for_it(tmp_path: Path) -> None:
    found: list[Settings] = []
    with settings.submitting(tmp_path):
        early = threading.Thread(target=lambda: found.append(settings.read(tmp_path, "7")))
        early.start()
        early.join(0.2)
        assert early.is_alive() and not found
        given = {"run_name": "pilot", "oversubscribed": True, "wait_timeout": 12.5}
        settings.write(tmp_path, "7", json.dumps({"settings": given}))
    early.join(5)
    assert found == [Settings("pilot", True, 12.5)]


def test_a_policy_that_was_not_asked_for_is_none(tmp_path: Path) -> None:
    for given, expected in (
        ({"round_deadline": "", "round_goal": "", "round_minimum": ""}, Settings()),
        (
            {"round_deadline": "auto", "round_goal": 0.5, "round_minimum": 3, "round_late": "fold"},
            Settings(round_deadline="auto", round_goal=0.5, round_minimum=3, round_late="fold"),
        ),
    ):
        settings.write(tmp_path, "7", json.dumps({"settings": given}))
        (tmp_path / settings.LOCK).touch()
        assert settings.read(tmp_path, "7") == expected
