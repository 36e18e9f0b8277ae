"""The documents say what is: a test runs each of their commands, and their tables agree with the code."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldframe.controller.roster import build_roster
from coldframe.controller.settings import INVENTORY, RUN, RUN_CONFIG_KEYS, SETTINGS, VERBS
from fl.data import SPECS
from fl.partition import DEFAULTS
from fl.strategy import ELSEWHERE, LOCAL, PRIVACY, STRATEGIES
from tests.static.repository import ROOT, files

README = ROOT / "README.md"
DOCUMENTS = {
    path: path.read_text(encoding="utf-8")
    for path in [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
EVERYTHING = "\n".join(DOCUMENTS.values())
LARGEST = 12_000  # bytes of the README
SHOWN_ONLY = {"text", "mermaid"}  # languages of blocks that are no commands
EXAMPLE = ROOT / "inventory" / "ssh.example.yml"
REFERENCE = re.compile(r"<!-- test: (.+?) -->")
SILENT = {"cd", "."}  # commands that prove nothing by themselves


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, its language, and the tests named in the comment before it."""

    place: str
    language: str
    text: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return self.place


def blocks(document: str, text: str) -> list[Block]:
    """Find the fenced blocks of a document."""
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) % 2 == 0, "a fence is not closed"
    found = []
    for begin, end in zip(fences[::2], fences[1::2], strict=True):
        named = REFERENCE.fullmatch(lines[begin - 1])
        tests = tuple(re.split(r",\s*", named[1])) if named else ()
        content = "\n".join(lines[begin + 1 : end])
        found.append(Block(f"{document}:{begin + 1}", lines[begin][3:].strip(), content, tests))
    return found


def words(command: list[str]) -> set[str]:
    """Give the words that a test which runs the command must hold: targets, playbooks, variables.

    Values are the reader's, and a test may scale them down.
    """
    program, *rest = command
    if program in SILENT:
        return set()
    found = {"-i"} & set(rest) if program == "ansible-playbook" else set()
    if program not in ("make", "ansible-playbook"):
        found.add(program)
    arguments = iter(rest)
    for argument in arguments:
        if argument == "-i":
            next(arguments)
        elif argument in ("-e", "--extra-vars"):
            given = next(arguments)
            found |= set(json.loads(given)) if given.startswith("{") else {given.split("=")[0]}
        elif not argument.startswith("-"):
            found.add(argument.split("=")[0])
    return found


def commands(block: Block) -> list[list[str]]:
    """Split a block into its commands."""
    joined = block.text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def missing_words(block: Block, source: str) -> set[str]:
    """Give the words of a block's commands that a test's source lacks."""
    wanted = {word for command in commands(block) for word in words(command)}
    return {word for word in wanted if not re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", source)}


def names_of_tests(path: Path) -> set[str]:
    """Name the tests of a file, as pytest would."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


RUN_BY_TESTS = [
    block
    for path, text in DOCUMENTS.items()
    for block in blocks(str(path.relative_to(ROOT)), text)
    if block.language not in SHOWN_ONLY and path.name != "testing.md"  # its commands are those of developers
]
each_block = pytest.mark.parametrize("block", RUN_BY_TESTS, ids=str)


def test_readme_is_short_and_leads_to_every_document() -> None:
    text = DOCUMENTS[README]
    assert len(text.encode()) <= LARGEST
    documents = {str(path.relative_to(ROOT)) for path in DOCUMENTS if path != README}
    assert documents - set(re.findall(r"\]\(([^)]+)\)", text)) == set()


def test_there_are_blocks() -> None:
    assert len(RUN_BY_TESTS) >= 20
    assert {block.language for block in RUN_BY_TESTS} <= {"bash", "yaml"}


@each_block
def test_block_names_a_test_that_exists(block: Block) -> None:
    assert block.tests, "no comment <!-- test: file::name --> in the line before the block"
    for reference in block.tests:
        file, _, name = reference.partition("::")
        assert (ROOT / file).is_file(), reference
        assert not name or name in names_of_tests(ROOT / file), reference
        assert name or file == ".ci/run", f"{reference} names no test"


@pytest.mark.parametrize("block", [block for block in RUN_BY_TESTS if block.language == "bash"], ids=str)
def test_named_tests_hold_the_words_of_the_block(block: Block) -> None:
    source = "\n".join((ROOT / name.split("::")[0]).read_text(encoding="utf-8") for name in block.tests)
    assert missing_words(block, source) == set()


def test_words_of_commands_are_found() -> None:
    block = Block(
        "a.md:1",
        "bash",
        "cd somewhere\nmake up CLIENTS=3  # few\n"
        'ansible-playbook -i lab.yml run.yml -e rounds=3 \\\n  -e \'{"strategy_args": {"mu": 1}}\' --check',
        (),
    )
    everything = 'run("up", "CLIENTS=1"); play("-i", "x", "run.yml", rounds=1, strategy_args={})'
    assert missing_words(block, everything) == set()
    lacking = 'run("upper", "CLIENTS=1"); play("run.yml", rounds=1)'
    assert missing_words(block, lacking) == {"up", "-i", "strategy_args"}


def test_blocks_are_found_with_their_tests() -> None:
    found = blocks("a.md", "a\n<!-- test: t.py::a, t.py::b -->\n```bash\nmake up\n```\n\n```text\nb\n```\n")
    assert found == [
        Block("a.md:3", "bash", "make up", ("t.py::a", "t.py::b")),
        Block("a.md:7", "text", "b", ()),
    ]


def test_named_playbooks_exist() -> None:
    named = set(re.findall(r"ansible-playbook (?:-i \S+ )?(\w+\.yml)", EVERYTHING))
    verbs = {path.name for path in ROOT.glob("*.yml")}
    assert verbs == named, "verbs that no document shows, or the other way round"
    assert verbs == table("verb").keys()


def test_named_targets_of_make_exist() -> None:
    code = "\n".join([*re.findall(r"`([^`\n]+)`", EVERYTHING), *(block.text for block in RUN_BY_TESTS)])
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {"up", "down", "test", "hosts"} <= named
    assert named - targets == set()


def anchors(path: Path) -> set[str]:
    """Give the anchors of a document's headings; the empty one is the document."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {"", *(re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", DOCUMENTS[path])
    for link in (link for link in links if not link.startswith("https://")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_files_named_in_the_architecture_exist() -> None:
    text = DOCUMENTS[ROOT / "docs" / "architecture.md"]
    named = [name for name in re.findall(r"`([\w/.-]+)`", text) if "/" in name and not name.startswith("/")]
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def table(heading: str) -> dict[str, list[str]]:
    """Read a table of a document by the first cell of its heading: plain first cell -> the other cells."""
    found = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", EVERYTHING, re.M)
    assert found, f"no table with the heading {heading}"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    return {cells[0].strip("`"): cells[1:] for cells in lines}


def test_variables_of_a_run_are_all_there_with_their_defaults() -> None:
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    config = manifest["tool"]["flwr"]["app"]["config"]
    documented = {name: cells[0].strip("`") for name, cells in table("variable").items()}
    defaults = {name: config[key] for name, key in RUN_CONFIG_KEYS.items()}
    defaults |= {name: RUN[name].default for name in SETTINGS}
    assert documented == {
        name: str(value).lower() if isinstance(value, bool) else str(value) or "none"
        for name, value in defaults.items()
    }


def test_every_variable_that_can_be_typed_is_described() -> None:
    named = {name for pair in re.findall(r"-e (\w+)=|`(\w+)[`=:]", EVERYTHING) for name in pair}
    assert {name for table in (*VERBS.values(), INVENTORY) for name in table} - named == set()


def test_variables_of_the_inventory_are_read_by_the_code() -> None:
    suffixes = (".py", ".yml", ".j2")
    folders = [ROOT / name for name in ("plugins", "group_vars", "playbooks", "roles")]
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in files()
        if path.suffix in suffixes and any(path.is_relative_to(folder) for folder in folders)
    )
    named = table("variable of the inventory")
    assert "fl_client_count" in named
    assert [name for name in named if not re.search(rf"\b{name}\b", code)] == []


def test_partitioners_are_all_there_with_their_arguments() -> None:
    documented = {name: cells[0] for name, cells in table("partitioner").items()}
    expected = {
        name: ", ".join(f"`{key}` {value}" for key, value in args.items()) for name, args in DEFAULTS.items()
    }
    assert documented == expected


def test_strategies_and_datasets_are_all_there() -> None:
    code = set(re.findall(r"`([^`\n]+)`", EVERYTHING))
    assert {*STRATEGIES, *ELSEWHERE, *PRIVACY, LOCAL, *SPECS} - code == set()


def test_example_inventory_is_the_file_and_makes_the_clients_named_here() -> None:
    shown = [block for block in RUN_BY_TESTS if block.language == "yaml"]
    assert [yaml.safe_load(block.text) for block in shown] == [
        yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    ]
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(EXAMPLE), "--list"]
    listed = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert listed["fl_server"]["hosts"] == ["desk"]
    hostvars: dict[str, dict[str, Any]] = {
        machine: {**variables, "ansible_facts": {"processor_nproc": 4}}
        for machine, variables in listed["_meta"]["hostvars"].items()
    }
    roster = build_roster(listed["fl_clients"]["hosts"], hostvars)
    named = re.search(r"This makes the clients (.+)\. Then", DOCUMENTS[README])
    assert named
    assert [client["name"] for client in roster] == re.findall(r"`([^`]+)`", named[1])
    assert [client["cpu"] for client in roster] == [0.5, 0.5, 0.5, 0.5, 0.25, 1.5]


def test_old_names_are_all_in_the_table() -> None:
    before = " ".join(table("before"))
    for name in (
        *("run_fl.sh", "docker compose up --scale client=", "manager.py"),
        *("--server-address", "--num-rounds", "--fraction-fit", "--fraction-evaluate", "--min-fit-clients"),
        *("--min-evaluate-clients", "--min-available-clients"),
        *("--batch-size", "--local-epochs", "--learning-rate", "--momentum"),
    ):
        assert name in before
