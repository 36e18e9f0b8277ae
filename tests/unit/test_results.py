"""The results folder says what the journal says, also of runs that failed, were cut off or left none."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import plots, records, results, terminal
from coldframe.recording import task_log

PNG = b"\x89PNG\r\n\x1a\n"
NAMES = ["lab-0", "lab-1", "lab-2"]
SUMMARY_KEYS = {
    *("run_id", "run_name", "status", "error", "rounds", "clients", "strategy", "dataset", "partitioner"),
    *("seed", "accuracy", "loss", "wall_seconds", "round_seconds", "model_sha256", "oversubscribed"),
    *("started", "finished", "versions", "failures", "concurrent_with", "experiment"),
    *("scenario", "assertions"),
    *("strategy_args", "dp", "dp_args", "partitioner_args", "oversubscribed_because"),
    *(
        "round_deadline",
        "round_goal",
        "round_minimum",
        "round_late",
        "policy",
        "late",
        "folded",
        "updates_jain",
        "updates",
    ),
    *("resumed", "resumed_from", "interrupted_seconds", "resumed_at"),
}


@pytest.fixture(autouse=True)
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes seconds, the rendering of pictures, where a test is not about them.

    Those of the report are looked at in test_report.py and test_report_sizes.py.
    """
    monkeypatch.setattr(plots, "svg", lambda _figure, _name: "<svg/>")
    if request.node.get_closest_marker("renders") is None:
        monkeypatch.setattr(plots, "save", lambda _figure, path: path.write_bytes(b""))


def make_events(
    rounds: int = 3, *, start: float = 1_700_000_000.0, run_id: str = "71", end: str | None = "completed"
) -> list[dict[str, Any]]:
    """Make the journal of a run in which lab-1 fails to train in round 2; each round takes 20 s."""
    clients = [{"name": name, "partition_id": i, "node_id": 900 + i} for i, name in enumerate(NAMES)]
    events: list[dict[str, Any]] = [
        {
            "time": start,
            "event": "run_started",
            "run_id": run_id,
            "run_name": "pilot",
            "rounds": 3,
            "strategy": "fedprox",
            "strategy_args": {"proximal_mu": 0.1},
            "dataset": "mnist",
            "partitioner": "dirichlet",
            "partitioner_args": {"alpha": 0.5},
            "seed": 7,
            "config": {"learning-rate": 0.01, "strategy": "fedprox"},
            "clients": clients,
            "versions": {"flwr": "1.42.0"},
            "oversubscribed": True,
            "histogram": {str(i): [100 * (i + 1), 50, 0, 7] for i in range(3)},
        },
        {
            "time": start + 1,
            "event": "round",
            "round": 0,
            "accuracy": 0.1,
            "loss": 2.3,
            "seconds": 1.0,
            "phases": {"server_evaluate": 1.0},
            "clients": 0,
            "failures": 0,
        },
    ]
    for number in range(1, rounds + 1):
        now = start + 1 + 20 * number
        for i, name in enumerate(NAMES):
            who = {"time": now - 5, "round": number, "client": name, "partition_id": i, "node_id": 900 + i}
            if (number, name) == (2, "lab-1"):
                why = {"event": "failure", "phase": "train", "code": 5, "reason": "node unavailable"}
                events.append(who | why)
                continue
            system = {"cpu_limit": 0.5, "threads": 1, "train_seconds": 10.0 + i, "memory_peak": 300_000_000}
            reply = {"event": "reply", "seconds": 12.0 + i, "examples": 157, "bytes_down": 5, "bytes_up": 6}
            events.append(
                who | reply | {"phase": "train", "metrics": {"train_loss": 1 / number}, "system": system}
            )
            events.append(who | reply | {"phase": "evaluate", "metrics": {"accuracy": 0.8}, "system": {}})
        events.append(
            {
                "time": now,
                "event": "round",
                "round": number,
                "accuracy": 0.9 + number / 100,
                "loss": 0.3 / number,
                "client_accuracy": 0.8,
                "client_loss": 0.5,
                "train_loss": 1 / number,
                "seconds": 20.0,
                "phases": {"train": 15.0, "evaluate": 3.0, "server_evaluate": 1.5},
                "clients": 3 - (number == 2),
                "failures": int(number == 2),
            }
        )
    if end == "completed":
        saved = {"event": "model_saved", "path": "model.pt", "sha256": "ab" * 32, "bytes": 4}
        events.append({"time": start + 1 + 20 * rounds + 1} | saved)
    if end is not None:
        error = "" if end == "completed" else "round 3: no client replied"
        done = {"event": "run_finished", "status": end, "error": error}
        events.append({"time": start + 1 + 20 * rounds + 2} | done)
    return events


def write_journal(folder: Path, events: list[dict[str, Any]], tail: str = "") -> Path:
    """Write a run's folder as it is fetched from a server."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "journal.jsonl").write_text(text + tail, encoding="utf-8")
    return folder


def collect(source: Path, folder: Path, *more: str) -> dict[str, Any]:
    """Run the command; give the summary that it wrote."""
    assert results.main([str(source), "--results", str(folder), *more]) == 0
    return dict(json.loads((folder / "latest" / "summary.json").read_text(encoding="utf-8")))


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV table."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_completed_run_is_summed_up(tmp_path: Path) -> None:
    summary = collect(write_journal(tmp_path / "run", make_events()), tmp_path / "out")
    assert set(summary) == SUMMARY_KEYS
    failures = summary.pop("failures")
    assert summary == {
        "run_id": "71",
        "run_name": "pilot",
        "status": "completed",
        "error": None,
        "rounds": 3,
        "clients": 3,
        "strategy": "fedprox",
        "strategy_args": {"proximal_mu": 0.1},
        "dp": None,
        "dp_args": None,
        "scenario": None,
        "assertions": None,
        "dataset": "mnist",
        "partitioner": "dirichlet",
        "partitioner_args": {"alpha": 0.5},
        "seed": 7,
        "accuracy": 0.93,
        "loss": pytest.approx(0.1),
        "wall_seconds": 63.0,
        "round_seconds": [20.0, 20.0, 20.0],
        "model_sha256": "ab" * 32,
        **dict.fromkeys(("round_deadline", "round_goal", "round_minimum", "round_late", "policy")),
        **dict.fromkeys(("late", "folded"), 0),
        "updates_jain": pytest.approx((3 + 2 + 3) ** 2 / (3 * (9 + 4 + 9))),
        "updates": None,
        **{"resumed": 0, "resumed_from": None, "interrupted_seconds": None, "resumed_at": None},
        "oversubscribed": True,
        "oversubscribed_because": [],
        "concurrent_with": None,
        "experiment": None,
        "started": "2023-11-14T22:13:20.000+00:00",
        "finished": "2023-11-14T22:14:23.000+00:00",
        "versions": {"flwr": "1.42.0"},
    }
    assert failures == [
        {"round": 2, "phase": "train", "client": "lab-1", "code": 5, "reason": "node unavailable"}
    ]


def test_rounds_table_has_a_row_per_round_with_its_phases(tmp_path: Path) -> None:
    collect(write_journal(tmp_path / "run", make_events()), tmp_path / "out")
    table = rows(tmp_path / "out" / "latest" / "rounds.csv")
    assert [row["round"] for row in table] == ["0", "1", "2", "3"]
    assert table[0]["train_seconds"] == "" and table[2]["train_seconds"] == "15.0"
    assert (table[2]["clients"], table[2]["failures"]) == ("2", "1")


def test_clients_table_has_a_row_per_client_round_and_phase(tmp_path: Path) -> None:
    collect(write_journal(tmp_path / "run", make_events()), tmp_path / "out")
    table = rows(tmp_path / "out" / "latest" / "clients.csv")
    keys = [(row["round"], row["phase"], row["client"]) for row in table]
    assert len(keys) == len(set(keys)) == 17  # 3 rounds of 3 clients, two phases; one failed before phase 2
    assert keys[:6] == [("1", phase, name) for phase in ("train", "evaluate") for name in NAMES]
    failed = [row for row in table if row["status"] == "failed"]
    assert [(row["round"], row["client"], row["code"], row["seconds"]) for row in failed] == [
        ("2", "lab-1", "5", "")
    ]
    first = table[0]
    assert (first["cpu_limit"], first["train_seconds"], first["metric_train_loss"]) == ("0.5", "10.0", "1.0")
    assert first["metric_accuracy"] == "" and table[3]["metric_accuracy"] == "0.8"


@pytest.mark.renders
def test_pictures_are_drawn(tmp_path: Path) -> None:
    collect(write_journal(tmp_path / "run", make_events()), tmp_path / "out")
    for name in ("rounds.png", "clients.png", "partitions.png"):
        assert (tmp_path / "out" / "latest" / name).read_bytes().startswith(PNG), name


@pytest.mark.renders
def test_many_clients_are_drawn_as_a_map(tmp_path: Path) -> None:
    events = make_events()
    more = [
        event | {"client": f"far-{i}", "partition_id": i}
        for event in events
        if event.get("client") == "lab-1"
        for i in range(3, 20)
    ]
    collect(write_journal(tmp_path / "run", events + more), tmp_path / "many")
    collect(write_journal(tmp_path / "run", events), tmp_path / "few")
    heights = [
        int.from_bytes((tmp_path / out / "latest" / "clients.png").read_bytes()[20:24], "big")
        for out in ("few", "many")
    ]
    assert heights[1] > heights[0]


def test_files_of_the_run_are_copied(tmp_path: Path) -> None:
    events = make_events()
    start = events[0]["time"]
    source = write_journal(tmp_path / "run", events)
    (source / "model.pt").write_bytes(b"torch")
    (source / "logs" / "c1").mkdir(parents=True)
    (source / "logs" / "c1" / "coldframe-c1-0.log").write_text("hello\n", encoding="utf-8")
    given = {
        "inventory": '{"all": 1}\n',
        "versions": '{"docker": "26.1", "flwr": "0"}',
        "events": "".join(
            f'{{"time": {moment}, "client": "lab-0", "cause": "oom"}}\n'
            for moment in (1.0, start + 5, start + 1e6)
        ),
        "record": '{"app": "a/b", "started": "2020-01-01T00:00:00+00:00", "concurrent_with": ["72"]}',
    }
    options = []
    for option, text in given.items():
        (tmp_path / option).write_text(text, encoding="utf-8")
        options += [f"--{option}", str(tmp_path / option)]
    out = tmp_path / "out" / "latest"
    summary = collect(source, tmp_path / "out", *options)
    assert (out / "model.pt").read_bytes() == b"torch"
    assert (out / "logs" / "c1" / "coldframe-c1-0.log").read_text(encoding="utf-8") == "hello\n"
    assert (out / "superlink.json").read_text(encoding="utf-8") == given["record"]
    assert summary["started"].startswith("2023-11-14"), "the journal knows better than SuperLink's record"
    assert summary["concurrent_with"] == ["72"], "the journal knows of no other run"
    assert "beside run 72" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "journal.jsonl").read_bytes() == (source / "journal.jsonl").read_bytes()
    assert json.loads((out / "inventory.json").read_text(encoding="utf-8")) == {"all": 1}
    # Only the changes of limits that fall into the run's time.
    assert (out / "events.jsonl").read_text(encoding="utf-8") == given["events"].splitlines(keepends=True)[1]
    # What the run itself recorded outdoes what the controller thinks.
    assert summary["versions"] == {"docker": "26.1", "flwr": "1.42.0"}
    assert json.loads((out / "versions.json").read_text(encoding="utf-8")) == summary["versions"]


def test_what_an_app_printed_is_found_by_server_and_client(tmp_path: Path) -> None:
    source = tmp_path / "run"
    (source / "logs" / "m1").mkdir(parents=True)
    (source / "logs" / "serverapp.log").write_text("\x1b[92mINFO\x1b[0m :\tround 1\x07\n", encoding="utf-8")
    log = [
        "1Z node",
        f"2Z {task_log.BEGIN.format(77)}",
        "3Z loss \x1b[2J0.3",
        f"4Z {task_log.END}",
        f"5Z {task_log.BEGIN.format(78)}",
        "6Z of another run",
    ]
    (source / "logs" / "m1" / "lab-m1-0.log").write_text("\n".join(log), encoding="utf-8")
    (source / "logs" / "m1" / "lab-m1-1.log").write_text("1Z node\n", encoding="utf-8")
    results.write_logs(source / "logs", tmp_path / "logs", "77", "lab")
    assert (tmp_path / "logs" / "serverapp.log").read_text(encoding="utf-8") == "INFO :\tround 1\n"
    assert (tmp_path / "logs" / "m1-0.log").read_text(encoding="utf-8") == (
        f"2Z {task_log.BEGIN.format(77)}\n3Z loss [2J0.3\n"
    )
    assert not (tmp_path / "logs" / "m1-1.log").exists()
    assert (tmp_path / "logs" / "m1" / "lab-m1-1.log").exists()


def test_config_of_the_journal_is_written_where_there_is_no_note(tmp_path: Path) -> None:
    collect(write_journal(tmp_path / "run", make_events()), tmp_path / "out")
    text = (tmp_path / "out" / "latest" / "config.yml").read_text(encoding="utf-8")
    assert text == 'learning-rate: 0.01\nstrategy: "fedprox"\n'


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    events = make_events(rounds=1, end=None)
    source = write_journal(tmp_path / "run", events, tail='{"time": 1700000050, "event": "rou')
    summary = collect(source, tmp_path / "out")
    assert (summary["rounds"], summary["status"]) == (1, "failed")


def test_server_that_died_leaves_a_failed_run_with_its_reason(tmp_path: Path) -> None:
    source = write_journal(tmp_path / "run", make_events(rounds=2, end=None))
    cut_off = collect(source, tmp_path / "a")
    assert (cut_off["status"], cut_off["error"]) == ("failed", results.CUT_OFF)
    told = collect(source, tmp_path / "b", "--status", "failed", "--error", "the ServerApp was killed")
    assert (told["status"], told["error"]) == ("failed", "the ServerApp was killed")
    assert (told["rounds"], told["accuracy"], told["model_sha256"]) == (2, 0.92, None)


def test_journal_that_goes_on_after_a_torn_line_is_read_to_its_end(tmp_path: Path) -> None:
    before, after = make_events(rounds=1, end=None), make_events(rounds=2, end="failed")[-1:]
    source = write_journal(tmp_path / "run", before, tail='{"time": 17\n' + json.dumps(after[0]) + "\n")
    summary = collect(source, tmp_path / "out")
    assert (summary["status"], summary["error"]) == ("failed", "round 3: no client replied")


def test_failure_in_the_journal_outdoes_a_completed_task(tmp_path: Path) -> None:
    source = write_journal(tmp_path / "run", make_events(end="failed"))
    summary = collect(source, tmp_path / "out", "--status", "completed")
    assert (summary["status"], summary["error"]) == ("failed", "round 3: no client replied")


def test_run_that_goes_on_has_no_end(tmp_path: Path) -> None:
    source = write_journal(tmp_path / "run", make_events(rounds=1, end=None))
    summary = collect(source, tmp_path / "out", "--status", "running")
    assert (summary["status"], summary["finished"], summary["rounds"]) == ("running", None, 1)


def test_run_without_rounds(tmp_path: Path) -> None:
    source = write_journal(tmp_path / "run", [make_events()[0], make_events(end="failed")[-1]])
    summary = collect(source, tmp_path / "out")
    assert (summary["rounds"], summary["round_seconds"], summary["accuracy"]) == (0, [], None)
    assert (tmp_path / "out" / "latest" / "rounds.csv").read_text(encoding="utf-8") == ""
    assert (tmp_path / "out" / "latest" / "partitions.png").exists()
    assert not (tmp_path / "out" / "latest" / "rounds.png").exists()


@pytest.mark.renders
def test_run_without_a_round_but_with_replies_is_drawn(tmp_path: Path) -> None:
    events = [event for event in make_events(end="failed") if event["event"] != "round"]
    collect(write_journal(tmp_path / "run", events), tmp_path / "out")
    assert (tmp_path / "out" / "latest" / "clients.png").read_bytes().startswith(PNG)


def test_foreign_app_without_a_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "versions.json").write_text('{"flwr": "1.42.0"}', encoding="utf-8")
    options = ("--run-id", "99", "--status", "completed", "--versions", str(tmp_path / "versions.json"))
    summary = collect(tmp_path / "run", tmp_path / "out", *options)
    known = {"run_id": "99", "status": "completed", "versions": {"flwr": "1.42.0"}}
    known |= {"round_seconds": [], "failures": [], "oversubscribed_because": []}
    assert summary == dict.fromkeys(SUMMARY_KEYS) | known
    assert "Run 99: completed" in capsys.readouterr().out


def test_foreign_app_takes_its_times_and_its_folder_from_superlinks_record(tmp_path: Path) -> None:
    """Fetched twice it has one folder, as a run of our own has."""
    (tmp_path / "run").mkdir()
    record = {"app": "somebody/app", "started": "2026-11-24T10:00:00Z", "finished": "2026-11-24T10:01:30Z"}
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    options = ("--run-id", "99", "--status", "completed", "--record", str(tmp_path / "record.json"))
    for _ in range(2):
        summary = collect(tmp_path / "run", tmp_path / "out", *options)
    assert summary["wall_seconds"] == 90.0
    assert summary["finished"] == "2026-11-24T10:01:30.000+00:00"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"latest", "20261124-100000-99"}


def test_diverged_loss_stays_null(tmp_path: Path) -> None:
    events = make_events()
    events[-3]["loss"] = None  # the journal's word for a NaN
    summary = collect(write_journal(tmp_path / "run", events), tmp_path / "out")
    assert summary["loss"] is None and summary["accuracy"] == 0.93


def test_folder_bears_the_start_and_the_name_of_the_run(tmp_path: Path) -> None:
    events = make_events()
    collect(write_journal(tmp_path / "run", events), tmp_path / "out")
    events[0]["run_name"] = "a/b: 50 %"
    collect(write_journal(tmp_path / "run", events), tmp_path / "out")
    events[0]["run_name"] = ""
    collect(write_journal(tmp_path / "run", events), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"latest"}
    assert names == {f"20231114-221320-{name}" for name in ("pilot", "a-b-50-", "71")}


def test_latest_points_to_the_run_that_started_last(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    old = write_journal(tmp_path / "old", make_events())
    new = write_journal(tmp_path / "new", make_events(start=1_700_009_000.0))
    collect(old, folder)
    assert (folder / "latest").readlink() == Path("20231114-221320-pilot")
    collect(new, folder)
    assert (folder / "latest").readlink() == Path("20231115-004320-pilot")
    collect(old, folder)  # fetching an earlier run again makes it no newer, and no second folder
    assert (folder / "latest").readlink() == Path("20231115-004320-pilot")
    assert len(list(folder.iterdir())) == 3


def test_latest_that_points_nowhere_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "latest").symlink_to("gone")
    assert collect(write_journal(tmp_path / "run", make_events()), tmp_path / "results")["run_id"] == "71"


def test_latest_that_is_a_folder_is_refused_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "latest").mkdir(parents=True)
    source = write_journal(tmp_path / "run", make_events())
    assert results.main([str(source), "--results", str(tmp_path / "out")]) == 1
    assert "latest is no symbolic link: move it away" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["latest"]


def test_purge_removes_the_results_of_one_federation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    for number, federation in enumerate(("mine", "theirs", "mine")):
        (tmp_path / "inventory.json").write_text(json.dumps({"federation": federation}), encoding="utf-8")
        source = write_journal(tmp_path / "run", make_events(start=1_700_000_000.0 + 60 * number))
        collect(source, folder, "--inventory", str(tmp_path / "inventory.json"))
    (folder / "notes").mkdir()
    (folder / "notes" / "inventory.json").write_text('{"federation": "mine"}', encoding="utf-8")
    capsys.readouterr()
    assert results.main(["--purge", "mine", "--results", str(folder)]) == 0
    gone = [folder / "20231114-221320-pilot", folder / "20231114-221520-pilot"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in gone]
    kept = "20231114-221420-pilot"
    assert sorted(path.name for path in folder.iterdir()) == [kept, "latest", "notes"]
    assert (folder / "latest").readlink() == Path(kept)
    assert results.main(["--purge", "mine", "--results", str(folder)]) == 0
    assert capsys.readouterr().out == ""
    assert results.main(["--purge", "theirs", "--results", str(folder)]) == 0
    assert [path.name for path in folder.iterdir()] == ["notes"], "a link to nothing was left"


@pytest.mark.parametrize("inventory", ['{"federation": "mi', "[]", "null", "\\x00"])
def test_results_whose_inventory_is_torn_are_nobodys(tmp_path: Path, inventory: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inventory.json").write_text(inventory, encoding="utf-8")
    (tmp_path / "a" / "summary.json").write_text("{}", encoding="utf-8")
    assert records.folders_of(tmp_path, "mine") == records.folders_of(tmp_path, "None") == []


def test_purge_without_any_results_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--purge", "mine", "--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out == ""


def test_missing_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        results.main([str(tmp_path / "nowhere"), "--results", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert "is no folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(name="environment")
def activated_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a virtual environment that holds only `ansible-playbook`, and put it on PATH."""
    folder = tmp_path / "clone" / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "ansible-playbook").touch(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.usefixtures("environment")
def test_closing_words_say_what_happened_and_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(write_journal(tmp_path / "run", make_events()), tmp_path / "out")
    said = capsys.readouterr().out
    for words in (
        "Run 71 (pilot): completed",
        "rounds      3 of 3, 3 clients",
        "accuracy    0.9300",
        "loss        0.1000",
        "wall time   1 min 03 s",
        "failures    lab-1: train of round 2 (node unavailable)",
        f"results     {tmp_path / 'out'}/20231114-221320-pilot/",
        "ansible-playbook run.yml    ",
        "   the same again, on the standing federation",
        "ansible-playbook status.yml ",
        "make down ",
    ):
        assert words in said


def test_next_commands_can_be_typed_where_the_environment_is_not_activated(
    monkeypatch: pytest.MonkeyPatch, environment: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", str(environment / "python"))
    monkeypatch.chdir(environment.parents[1])
    assert terminal.ansible_playbook() == ".venv/bin/ansible-playbook"
    monkeypatch.chdir("/usr")
    assert terminal.ansible_playbook() == str(environment / "ansible-playbook")


@pytest.mark.usefixtures("environment")
def test_next_commands_repeat_the_users_inventory_and_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_journal(tmp_path / "run", make_events(end="failed"))
    typed = ("--verb-arguments=-i inventory/lab.yml", "--run-arguments=-e max_samples=900 -e rounds=3")
    collect(source, tmp_path / "out", *typed)
    said = capsys.readouterr().out
    assert "because     round 3: no client replied" in said
    assert "ansible-playbook run.yml -i inventory/lab.yml -e max_samples=900 -e rounds=3 " in said
    assert "ansible-playbook teardown.yml -i inventory/lab.yml " in said
    assert "make down" not in said


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(8.44, "8.4 s"), (59.97, "1 min 00 s"), (192.4, "3 min 12 s"), (7500.0, "2 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert records.duration(seconds) == words


def test_links_in_what_was_fetched_are_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_text("secret")
    source = write_journal(tmp_path / "run", make_events())
    (source / "model.pt").unlink(missing_ok=True)
    (source / "model.pt").symlink_to(secret)
    collect(source, tmp_path / "results")
    assert not list((tmp_path / "results").glob("*/model.pt"))
    (source / "journal.jsonl").unlink()
    (source / "journal.jsonl").symlink_to(secret)
    assert results.main([str(source), "--results", str(tmp_path / "results")]) == 1
    assert "is a symbolic link" in capsys.readouterr().err


def test_files_of_a_serverapp_are_in_the_results_and_what_is_left_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "12", tmp_path / "results"
    (source / "written" / "deep").mkdir(parents=True)
    (source / "written" / "final_model.npz").write_bytes(b"x")
    (source / "written" / "deep" / "results.json").write_text("{}")
    (source / "written" / "model.pt").write_bytes(b"torch")
    manifest = {"files": {"final_model.npz": 1}, "left_out": {"huge.bin": "9.00 GB: too much"}}
    (source / "written.json").write_text(json.dumps(manifest))
    for machine, client in (("c1", "c1-0"), ("c2", "c2-0")):
        (source / "files" / machine / "clients" / client).mkdir(parents=True)
        (source / "files" / machine / "clients" / client / "state.npz").write_text(client)
    (source / "files" / "c2" / "clients" / "c2-0" / "link").symlink_to("/etc/passwd")
    (source / "files" / "c1" / "left_out.json").write_text(json.dumps({"c1-0": {"pipe": "no regular file"}}))
    assert results.main([str(source), "--results", str(out), "--status", "completed"]) == 0
    found = out / "latest" / "files"
    assert (found / "server" / "deep" / "results.json").read_text() == "{}"
    assert (out / "latest" / "model.pt").read_bytes() == b"torch", "beside the model that was recorded"
    assert not (found / "server" / "model.pt").exists()
    left_out = {"server": manifest["left_out"], "c1-0": {"pipe": "no regular file"}}
    assert json.loads((found / "left_out.json").read_text()) == left_out
    assert [(found / client / "state.npz").read_text() for client in ("c1-0", "c2-0")] == ["c1-0", "c2-0"]
    assert (found / "c2-0" / "link").is_symlink(), "never what it points to"
    words = capsys.readouterr().out
    assert "files       2 of the ServerApp, 2 of the ClientApps" in words
    assert "left out    server: huge.bin: 9.00 GB" in words
