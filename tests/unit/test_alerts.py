"""Prometheus' own tool finds rules and alerts right, and each of them has a test that it passes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "roles" / "prometheus" / "files" / "rules"
TESTS = sorted((ROOT / "tests" / "unit" / "alerts").glob("*.yml"))


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool, which scripts/setup.sh --dev puts into the cache where the machine has none."""
    cache = Path(os.environ.get("COLDFRAME_CACHE", Path.home() / ".cache" / "coldframe"))
    program = shutil.which("promtool") or str(cache / "tools" / "promtool")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def names(path: Path, key: str) -> list[str]:
    groups = yaml.safe_load(path.read_text())["groups"]
    return [rule[key] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("path", sorted(RULES.glob("*.yml")), ids=lambda path: path.stem)
def test_rules_are_rules(path: Path) -> None:
    done = promtool("check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alert_fires_when_it_should_and_not_before(path: Path) -> None:
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_seen_silent_and_firing() -> None:
    seen: dict[str, set[bool]] = {}
    for path in TESTS:
        for group in yaml.safe_load(path.read_text())["tests"]:
            for case in group.get("alert_rule_test", []):
                seen.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert seen == {name: {True, False} for name in names(RULES / "alerts.yml", "alert")}


def test_each_recorded_series_has_its_value_checked() -> None:
    content = yaml.safe_load((ROOT / "tests" / "unit" / "alerts" / "recording.yml").read_text())
    checked = {case["expr"] for group in content["tests"] for case in group["promql_expr_test"]}
    assert checked == set(names(RULES / "recording.yml", "record"))


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    """The tool's verdict is not always yes."""
    text = next(path for path in TESTS if path.stem == "clock_off").read_text()
    rules = str(RULES)
    planted = text.replace("../../../roles/prometheus/files/rules", rules).replace("'3+15x20'", "'1+15x20'")
    (tmp_path / "test.yml").write_text(planted)
    assert promtool("test", "rules", str(tmp_path / "test.yml")).returncode != 0
