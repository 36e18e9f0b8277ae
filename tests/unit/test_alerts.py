"""Prometheus' own tool finds rules and alerts right, and each of them has a test that it passes.

Both tools, that of the Prometheus which is deployed (Debian's, 2.x) and that of a 3.x.
"""

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


TOOLS = Path(os.environ.get("COLDFRAME_CACHE", Path.home() / ".cache" / "coldframe")) / "tools"


def promtool(version: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool, which `make setup-dev` puts into the cache."""
    program = TOOLS / "prometheus-3" / "promtool" if version == "3.x" else TOOLS / "promtool"
    if version == "3.x" and not program.exists():
        pytest.skip("Prometheus 3 is not tested: scripts/prometheus3.sh says why")
    found = program if program.exists() else shutil.which("promtool")
    return subprocess.run([str(found), *arguments], capture_output=True, text=True, check=False)


each_version = pytest.mark.parametrize("version", ["2.x", "3.x"])


def names(path: Path, key: str) -> list[str]:
    groups = yaml.safe_load(path.read_text())["groups"]
    return [rule[key] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("path", sorted(RULES.glob("*.yml")), ids=lambda path: path.stem)
@each_version
def test_rules_are_rules(path: Path, version: str) -> None:
    done = promtool(version, "check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
@each_version
def test_alert_fires_when_it_should_and_not_before(path: Path, version: str) -> None:
    done = promtool(version, "test", "rules", str(path))
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
    # Rounded, since 2.x and 3.x differ in the last of a rate's digits.
    asked = [case["expr"] for group in content["tests"] for case in group["promql_expr_test"]]
    checked = {expr.removeprefix("round(").removesuffix(", 1e-6)") for expr in asked}
    assert checked == set(names(RULES / "recording.yml", "record"))


@each_version
def test_a_wrong_expectation_is_found(tmp_path: Path, version: str) -> None:
    """The tool's verdict is not always yes."""
    text = next(path for path in TESTS if path.stem == "clock_off").read_text()
    rules = str(RULES)
    planted = text.replace("../../../roles/prometheus/files/rules", rules).replace("'3+15x20'", "'1+15x20'")
    (tmp_path / "test.yml").write_text(planted)
    assert promtool(version, "test", "rules", str(tmp_path / "test.yml")).returncode != 0
