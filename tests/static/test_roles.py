"""Every role has one skeleton: described inputs, a table of contents, no look beyond its own machine."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.static.repository import ROLES, ROOT, load, task_files, tasks_in

# Variables of the inventory (docs/variables.md) that several roles share keep their one name.
SHARED = {"fl_federation", "fl_address", "fl_port", "fl_metrics_port"}
IMPORTS = {"ansible.builtin.import_tasks", "ansible.builtin.include_tasks"}
INCLUDES = {"ansible.builtin.include_tasks", "ansible.builtin.include_role"}
# What a task needs besides the module: no work can hide in these.
IMPORT_KEYWORDS = {"name", "when", "tags", "vars", "loop", "loop_control"}
DEFAULT_FILTER = re.compile(r"([\w.\[\]'\"]+)\s*\|\s*(?:default|d)\s*\(")

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def defaults(role: Path) -> dict[str, Any]:
    """Read the inputs of a role."""
    path = role / "defaults" / "main.yml"
    return (load(path) or {}) if path.exists() else {}


def described(role: Path) -> dict[str, dict[str, Any]]:
    """Read the description of a role's inputs."""
    return load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {}) or {}


def undefended(text: str) -> list[str]:
    """Find inputs that get a default where they are used: theirs belongs into defaults/main.yml.

    What a task registers is internal (`__role_x`), and may lack a field where that task was skipped.
    """
    return [name for name in DEFAULT_FILTER.findall(text) if not name.startswith("__")]


def test_there_are_roles() -> None:
    assert len(ROLES) >= 4


@each_role
def test_every_input_is_described_and_every_description_is_an_input(role: Path) -> None:
    assert set(defaults(role)) == set(described(role))


@each_role
def test_readme_is_made_of_the_argument_specification(role: Path) -> None:
    written = runpy.run_path(str(ROOT / "docs" / "roles.py"))["readme"](role)
    assert (role / "README.md").read_text(encoding="utf-8") == written, "type python docs/roles.py"


@each_role
def test_described_default_is_the_default(role: Path) -> None:
    values = defaults(role)
    wrong = {
        key: (option["default"], values.get(key))
        for key, option in described(role).items()
        if "default" in option and option["default"] != values.get(key)
    }
    assert not wrong, "argument_specs.yml and defaults/main.yml differ"


@each_role
def test_every_input_says_what_it_is(role: Path) -> None:
    assert [key for key, option in described(role).items() if not option.get("description")] == []
    text = (role / "defaults" / "main.yml").read_text(encoding="utf-8") if defaults(role) else ""
    assert not defaults(role) or text.lstrip("-\n").startswith("#"), "the first input has no comment"


@each_role
def test_inputs_bear_the_roles_name(role: Path) -> None:
    assert [key for key in defaults(role) if not key.startswith(role.name + "_") and key not in SHARED] == []


@each_role
def test_internals_bear_the_roles_name(role: Path) -> None:
    internals = {key for path in role.glob("vars/*.yml") for key in (load(path) or {})}
    assert [key for key in internals if not key.startswith(f"__{role.name}_")] == []
    registered = {
        task.keys["register"]
        for path in role.glob("tasks/*.yml")
        for task in tasks_in(path)
        if "register" in task.keys
    }
    assert [key for key in registered if not key.startswith(f"__{role.name}_")] == []


@each_role
def test_a_container_is_started_again_when_its_runtime_died(role: Path) -> None:
    for path in role.glob("tasks/*.yml"):
        for task in tasks_in(path):
            asked = task.keys.get("community.docker.docker_container")
            if asked and asked["state"] != "absent":
                assert task.keys["until"] == f"{task.keys['register']} is coldframe_settled", task


@each_role
def test_main_is_a_table_of_contents(role: Path) -> None:
    for task in tasks_in(role / "tasks" / "main.yml"):
        extra = set(task.keys) - IMPORTS - IMPORT_KEYWORDS
        assert not extra, f"{task} does more than import: {extra}"
        assert task.keys.get("name"), f"{task} of {role.name}"
        assert len(set(task.keys) & IMPORTS) == 1, task


@each_role
def test_every_imported_file_exists_and_every_file_is_imported(role: Path) -> None:
    tasks = role / "tasks"
    imported = {
        value if isinstance(value, str) else value["file"]
        for path in tasks.glob("*.yml")
        for task in tasks_in(path)
        for value in [
            task.keys.get("ansible.builtin.import_tasks", task.keys.get("ansible.builtin.include_tasks"))
        ]
        if value
    }
    entered = {
        task.keys[key].get("tasks_from", "main").removesuffix(".yml") + ".yml"
        for path in task_files()
        for task in tasks_in(path)
        for key in ("ansible.builtin.import_role", "ansible.builtin.include_role")
        if key in task.keys and task.keys[key]["name"] == role.name
    }
    existing = {path.name for path in tasks.glob("*.yml")} - {"main.yml"}
    assert (imported | entered) - {"main.yml"} == existing


@each_role
def test_role_looks_at_its_own_machine_only(role: Path) -> None:
    for path in [
        *role.glob("tasks/*.yml"),
        *role.glob("handlers/*.yml"),
        *role.glob("templates/*"),
        *role.glob("vars/*"),
    ]:
        found = re.findall(r"\b(?:groups|hostvars)\b", without_comments(path))
        assert not found, (
            f"{path.relative_to(ROOT)} reads {found[0]}: compute it in group_vars or the roster filter"
        )


@each_role
def test_inputs_have_no_second_default(role: Path) -> None:
    for path in [*role.glob("tasks/*.yml"), *role.glob("handlers/*.yml")]:
        assert undefended(without_comments(path)) == [], path.relative_to(ROOT)


@each_role
def test_task_names_say_which_file_they_are_of(role: Path) -> None:
    for path in role.glob("tasks/*.yml"):
        if path.name == "main.yml":
            continue
        title = path.stem.replace("_", " ").capitalize() + " | "
        for task in tasks_in(path):
            assert str(task.keys.get("name", "")).startswith(title), (
                f"{task}: names here begin with {title!r}"
            )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{{ fl_port | default(9092) }}", ["fl_port"]),
        ("{{ fl_thing['a'] | d(1) }}", ["fl_thing['a']"]),
        ("{{ __role_pull.rc | default(1) }}", []),
        ("{{ fl_port }}", []),
    ],
)
def test_second_defaults_are_found(text: str, found: list[str]) -> None:
    assert undefended(text) == found


def without_comments(path: Path) -> str:
    """Read a file without its lines of comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def test_what_travels_through_a_command_arrives_as_it_was_typed() -> None:
    """Unless told not to, Ansible expands `$X` and `~` in arguments: a path or a reason may hold them."""
    commands = [
        (str(task), task.keys["ansible.builtin.command"])
        for path in task_files()
        for task in tasks_in(path)
        if "{{" in str(task.keys.get("ansible.builtin.command", ""))
    ]
    assert commands
    expanding = [
        name
        for name, words in commands
        if not isinstance(words, dict) or words.get("expand_argument_vars") is not False
    ]
    assert expanding == []


def test_clients_trust_no_authority_that_signs_for_the_monitoring() -> None:
    """The authority of the clients signs the server's certificate, and no other."""
    tasks = ROOT / "roles" / "fl_pki" / "tasks"
    found = {
        path.stem: task["vars"]["__fl_pki_certificate"]["authority"]
        for path in sorted(tasks.glob("*.yml"))
        for task in load(path)
        if "__fl_pki_certificate" in task.get("vars", {})
    }
    clients = "{{ fl_pki_controller_directory }}"
    assert found == {
        "machine": f"{clients}/monitoring",
        "metrics": f"{clients}/monitoring",
        "server": clients,
    }
    gateway = (ROOT / "roles" / "fl_gateway" / "templates" / "nginx.conf.j2").read_text(encoding="utf-8")
    training, metrics = gateway.split("listen {{ fl_gateway_metrics_port }}")
    assert "pki/server.crt" in training and "metrics.crt" not in training
    assert "metrics/metrics.crt" in metrics and "pki/" not in metrics


def test_no_condition_of_an_include_reads_what_the_include_sets() -> None:
    """A condition is evaluated with the variables that its own task gives to what it includes, and not with
    those that hold around it."""
    shadowed = [
        (str(task), name)
        for path in task_files()
        for task in tasks_in(path)
        if INCLUDES & set(task.keys)
        for name in task.keys.get("vars", {})
        if re.search(rf"\b{name}\b", str(task.keys.get("when", "")))
    ]
    assert shadowed == []
