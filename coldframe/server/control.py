"""Speaks to the SuperLink's Control API from inside the server container: nodes and runs.

One process per verb instead of one `flwr` call per node: a call of that command takes seconds, most of
them imports.
The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.common.serde import fab_to_proto, user_config_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from coldframe import cgroups
from coldframe.flower import database
from coldframe.flower.version import runtime
from coldframe.recording import checkpoint, settings
from coldframe.recording.app_errors import FLWR_PREFIX
from coldframe.recording.journal import Tail, reaches, read_journal
from coldframe.recording.roster import read_roster
from coldframe.server.container import SUPERLINK, SUPERLINK_CERTIFICATE
from coldframe.server.resume import Asked, Refused, choose, judge, note_of
from coldframe.server.retention import COLLECTED, PRUNED, prune, thin

ASK_SECONDS = 2.0  # how often the SuperLink is asked whether a run has ended that its journal does not end
MOST_RUNS = 1000  # that are listed; flwr lists 20 unless told otherwise
PATIENCE = 120.0  # seconds without an answer of the SuperLink before a run is no longer followed
BAR = "\x1e"  # a line that starts with it carries a progress bar's state as JSON


def connect() -> ControlHttpClient:
    """Return a client of the Control API on the container's loopback, over TLS."""
    return ControlHttpClient.from_server_address(
        server_address=SUPERLINK,
        insecure=False,
        root_certificates=SUPERLINK_CERTIFICATE.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )


def state_directory() -> Path:
    """Return the directory that outlives the server container."""
    return Path(os.environ.get("COLDFRAME_STATE", "/state"))


def register(client: ControlHttpClient, clients: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the SuperLink's list of nodes that of ``clients`` and write ``nodes.json``.

    Parameters
    ----------
    clients : list of dict
        ``name``, ``machine``, ``partition_id``, ``public_key`` (OpenSSH line) of every client of the
        federation.
    """
    wanted: dict[bytes, dict[str, Any]] = {}
    for item in clients:
        key = serialization.load_ssh_public_key(item["public_key"].encode())
        wanted[public_key_to_bytes(key)] = item  # type: ignore[arg-type]
    known = {
        node.public_key: node.node_id
        for node in client.ListNodes(ListNodesRequest()).nodes_info
        if node.status != "unregistered"
    }
    added, removed = [], []
    for key_bytes, node_id in list(known.items()):
        if key_bytes not in wanted:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
            removed.append(node_id)
            del known[key_bytes]
    for key_bytes, item in wanted.items():
        if key_bytes not in known:
            try:
                database.delete_unregistered_node(state_directory() / database.NAME, key_bytes)
            except database.SchemaError as error:
                print(f"a client that was removed once may be refused: {error}", file=sys.stderr)
            response = client.RegisterNode(RegisterNodeRequest(public_key=key_bytes, name=item["name"]))
            known[key_bytes] = response.node_id
            added.append(item["name"])
    nodes = {str(known[key_bytes]): item for key_bytes, item in wanted.items()}
    path = state_directory() / "nodes.json"
    text = json.dumps(nodes, indent=1, sort_keys=True)
    changed = not path.exists() or path.read_text() != text
    if changed:
        part = path.with_suffix(".part")
        part.write_text(text)
        part.rename(path)
    return {
        "changed": bool(added or removed or changed),
        "added": added,
        "removed": [str(n) for n in removed],
    }


def submit(
    client: ControlHttpClient,
    fab_file: Path,
    run_config: dict[str, Any],
    keep: int,
    others: str,
    note: str = "",
    series: int | None = None,
    prepare: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Start a run of the app in ``fab_file`` with the keys of ``run_config`` overridden.

    Parameters
    ----------
    keep : int
        The files of collected runs beyond so many of the newest are removed.
    others : str
        What becomes of running runs: the new one is started ``beside`` them, they ``end`` before, or
        it is refused (``refuse``).
    note : str
        Kept beside the run's journal: what whoever collects it has to know, and the settings of the run that
        its app does not get.
    series : int, optional
        The series of runs that it belongs to: clients keep what a ClientApp has in its state within one.
    prepare : callable, optional
        Called with the run's id before its ServerApp may begin.
    """
    runs = list_runs(client)
    going = [run["run_id"] for run in runs if run["status"] != "finished"]
    if going and others == "refuse":
        raise SystemExit(
            f"run {', '.join(going)} is running on the same clients: wait for its end, stop it with "
            f"-e stop={going[0]}, or type -e concurrent=true to train beside it"
        )
    if others == "end":
        for run_id in going:
            client.StopRun(StopRunRequest(run_id=int(run_id)))
    content = fab_file.read_bytes()
    with settings.submitting(state_directory()):
        response = client.StartRun(
            StartRunRequest(
                fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})),
                override_config=user_config_to_proto(run_config),
                series_id=series,
            )
        )
        if not response.HasField("run_id"):
            raise SystemExit(
                "the SuperLink refused the run; its log says why: docker logs <federation>-server"
            )
        try:
            if prepare:
                prepare(str(response.run_id))
            if note:
                settings.write(state_directory(), str(response.run_id), note)
        except OSError:
            client.StopRun(StopRunRequest(run_id=response.run_id))
            raise
    try:
        pruned = prune(state_directory() / "runs", keep)
        ended = [run for run in runs if run["status"] == "finished"]
        ended.sort(key=lambda run: run["experiment"] is not None)  # nobody resumes those: they go first
        thin([state_directory() / "runs" / run["run_id"] / checkpoint.FOLDER for run in ended])
    except OSError as error:  # the run is on its way all the same
        print(f"the files of old runs could not be removed: {error}", file=sys.stderr)
        pruned = []
    return {"run_id": str(response.run_id), "pruned": pruned}


def resume(client: ControlHttpClient, wanted: str, keep: int, others: str, asked: Asked) -> dict[str, Any]:
    """Start a run that goes on from the last checkpoint of one that has not completed.

    Parameters
    ----------
    wanted : str
        The id of that run, or `auto`: the newest that has failed.
    keep, others
        As of `submit`.
    """
    state = state_directory()
    try:
        run_id, found = choose(list_runs(client), wanted, state)
        earlier = client.ListRuns(ListRunsRequest(run_id=int(run_id))).run_dict[int(run_id)]
        fab = Path(asked.fab or state / "apps" / f"{earlier.fab_hash[:16]}.fab")
        noted = settings.note_of(state, run_id)
        clients = read_roster(state / "nodes.json").values()
        judge(run_id, found, noted, earlier.fab_hash, fab, clients, asked)
    except Refused as refused:
        raise SystemExit(str(refused)) from None
    config = user_config_from_proto(earlier.override_config)
    config |= {key: value for _, key, value in asked.typed if key}
    submitted = submit(
        client,
        fab,
        config,
        keep,
        others,
        json.dumps(note_of(run_id, earlier.pending_at, noted, asked)),
        earlier.series_id or None,
        lambda later: checkpoint.hand_over(state / "runs", run_id, later, found),
    )
    return {**submitted, "resumed_from": run_id, "round": found.round}


def progress(run_id: str) -> dict[str, Any]:
    """Return how far a run is, as its journal says: the last round, of how many, and the last accuracy; each
    None where the journal does not tell."""
    events = read_journal(state_directory() / "runs" / run_id / "journal.jsonl")
    plans = [event["rounds"] for event in events if event["event"] in ("run_started", "plan")]
    rounds = next((known for known in reversed(plans) if known is not None), None)
    ended = [event for event in reversed(events) if event["event"] == "round"]
    told = (event["accuracy"] for event in ended if event.get("accuracy") is not None)
    return {
        "round": ended[0]["round"] if ended else None,
        "rounds": rounds,
        "accuracy": next(told, None),
    }


def list_runs(client: ControlHttpClient, run_id: str | None = None) -> list[dict[str, Any]]:
    """Return what the SuperLink knows of all runs, newest first, or of one; of a running one its progress."""
    request = ListRunsRequest(limit=MOST_RUNS) if run_id is None else ListRunsRequest(run_id=int(run_id))
    runs = [
        {
            "run_id": str(run.run_id),
            "status": run.status.status,
            "sub_status": run.status.sub_status,
            "details": run.status.details.removeprefix(FLWR_PREFIX),
            "app": run.fab_id,
            "fab_hash": run.fab_hash,
            "submitted": run.pending_at,
            "started": run.running_at,
            "finished": run.finished_at,
            "bytes_sent": run.bytes_sent,
            "bytes_received": run.bytes_recv,
            "pruned": (state_directory() / "runs" / str(run.run_id) / PRUNED).exists(),
            # By run.yml: no note comes with a run of Flower's own command.
            "noted": (state_directory() / "runs" / str(run.run_id) / settings.NOTE).exists(),
            "collected": (state_directory() / "runs" / str(run.run_id) / COLLECTED).exists(),
            "experiment": settings.experiment_of(state_directory(), str(run.run_id)),
            "checkpoint": offered(state_directory(), str(run.run_id)),
            # Of a run that was resumed, the first part.
            "began": settings.began(state_directory(), str(run.run_id)) or run.pending_at,
            **(progress(str(run.run_id)) if run.status.status == "running" else {}),
        }
        for run in client.ListRuns(request).run_dict.values()
    ]
    return sorted(runs, key=lambda run: run["submitted"], reverse=True)


def offered(state: Path, run_id: str) -> int | None:
    """Return the round after which a run may go on; None where it cannot, its model has diverged, or it
    belongs to an experiment."""
    run = state / "runs" / run_id
    rounds = checkpoint.rounds_of(run)
    if not rounds or checkpoint.diverged(run) or settings.experiment_of(state, run_id):
        return None
    return rounds[0]


def concurrent_with(run: dict[str, Any], runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the ids of the other runs that were running at any time at which a run was."""

    def span(item: dict[str, Any]) -> tuple[datetime, datetime] | None:
        if not item["started"]:
            return None
        ended = (
            datetime.fromisoformat(item["finished"]) if item["finished"] else datetime.max.replace(tzinfo=UTC)
        )
        return datetime.fromisoformat(item["started"]), ended

    own = span(run)
    return sorted(
        other["run_id"]
        for other in runs
        if own
        and other["run_id"] != run["run_id"]
        and (its := span(other))
        and its[0] < own[1]
        and own[0] < its[1]
    )


def known_runs(client: ControlHttpClient) -> list[dict[str, Any]]:
    """Return all runs that the SuperLink knows, each with the others that ran at the same time."""
    runs = list_runs(client)
    return [{**run, "concurrent_with": concurrent_with(run, runs)} for run in runs]


def list_nodes(client: ControlHttpClient) -> list[dict[str, Any]]:
    """Return the registered nodes with the names and partitions of ``nodes.json``."""
    path = state_directory() / "nodes.json"
    names = json.loads(path.read_text()) if path.exists() else {}
    return [
        {"node_id": str(node.node_id), "status": node.status, **names.get(str(node.node_id), {})}
        for node in client.ListNodes(ListNodesRequest()).nodes_info
        if node.status != "unregistered"
    ]


def memory(group: cgroups.Cgroup) -> dict[str, int | None]:
    """Return the memory limit of the server's container and its use, in bytes, as the kernel says."""
    return {"memory_limit": group.memory_limit(), "memory_used": group.working_set()}


def round_line(event: dict[str, Any], rounds: int | None) -> str:
    """Return the line that is shown for a round; an app may not have told how many there will be."""
    number = event["round"]
    parts = [f"round {number}" if rounds is None else f"round {number}/{rounds}"]
    if event.get("accuracy") is not None:
        parts.append(f"accuracy {event['accuracy']:.4f}")
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.4f}")
    if number > 0:
        parts.append(f"{event['seconds']:.1f} s")
        parts.append(f"{event['clients']} client{'' if event['clients'] == 1 else 's'}")
        if event.get("failures"):
            parts.append(f"{event['failures']} failed")
        if event.get("late"):
            parts.append(f"{event['late']} late")
        if event.get("folded"):
            parts.append(f"{event['folded']} folded in")
        if event.get("updates") is not None:
            parts.append(f"{event['updates']} updates")
        if event.get("discarded"):
            parts.append(f"{event['discarded']} discarded")
        if event.get("void"):
            parts.append("void: too few replies")
    else:
        parts.append("before training")
    return "  ".join(parts)


class Follower:
    """Turn the events of a journal into lines for a person, each once."""

    def __init__(self, path: Path, until: Mapping[str, float] | None = None) -> None:
        self.journal = Tail(path)
        self.until = until or {}
        self.rounds: int | None = None
        self.ended = False
        self.round = 0
        self.replies = 0
        self.expected = 0
        self.updates = 0  # of the round, that an asynchronous strategy used
        self.begin: float | None = None  # unix time
        self.unkept = False  # it was said what checkpoints do not hold
        self.reached = ""  # which figure of which round is what the run is to be ended at

    def over(self) -> str:
        """Say why the run is to be ended now; nothing as long as it is not."""
        if self.ended or self.begin is None:
            return ""
        if "seconds" in self.until and time.time() - self.begin >= self.until["seconds"]:
            return f"{self.until['seconds']:g} s have passed"
        return self.reached

    def lines(self) -> list[str]:
        """Return what is new since the last call."""
        lines = []
        while fresh := self.journal.new():
            lines += [line for event in fresh if "event" in event for line in self.describe(event)]
        return lines

    def describe(self, event: dict[str, Any]) -> list[str]:
        """Return the lines of one event; bar updates start with BAR."""
        kind = event["event"]
        if kind == "run_started":
            self.rounds, self.begin = event["rounds"], float(event["time"])
            told = f"run {event['run_id']}: "
            words = [event["strategy"], event["dataset"] and f"on {event['dataset']}"]
            words.append(event["partitioner"] and f"({event['partitioner']})")
            if known := " ".join(filter(None, words)):
                told += f"{known}, "
            planned = "" if self.rounds is None else f", {self.rounds} rounds"
            return [f"{told}{len(event['clients'])} clients{planned}"]
        if kind == "plan":
            self.rounds = self.rounds if event["rounds"] is None else event["rounds"]
            words = [f"strategy {event['strategy']}"] if event["strategy"] else []
            words += [] if self.rounds is None else [f"{self.rounds} rounds"]
            return [", ".join(words)] if words else []
        if kind in WORDS:
            return [words for words in [WORDS[kind](event)] if words]
        if kind == "phase_started":
            self.replies, self.expected = 0, len(event["clients"])
            return [self.bar(f"{place(event)}{event['phase']} 0/{self.expected}")]
        if kind == "phase_extended":
            self.expected += len(event["clients"])
        if kind == "checkpoint" and event["unkept"] and not self.unkept:
            self.unkept = True
            names = ", ".join(event["unkept"])
            return [f"no checkpoint holds {names}: a run that is resumed begins with new ones"]
        if kind in ("reply", "failure", "late"):
            self.replies += 1
            lines = [self.bar(f"{place(event)}{event['phase']} {self.replies}/{self.expected}")]
            if kind == "failure":
                what = f"{event['client']} failed to {event['phase']}: {event['reason']}"
                lines.insert(0, f"{place(event)}{what}")
            return lines
        if kind == "update":
            self.updates += not event["reason"]
            return [self.bar(f"{place(event)}{self.updates} updates")]
        if kind == "round":
            self.updates = 0
            self.round = event["round"]
            if self.round > 0 and not self.reached and (key := reaches(event, self.until)):
                self.reached = f"{key} {event[key]:.4f} in round {self.round}"
            return [round_line(event, self.rounds), self.bar(f"round {self.round} done")]
        self.ended = self.ended or kind == "run_finished"
        return []

    def bar(self, text: str) -> str:
        """Return a progress-bar line: rounds done, and within the round the replies."""
        return BAR + json.dumps(
            {"done": self.round, "total": max(self.rounds or self.round, 1), "text": text}
        )


def place(event: dict[str, Any]) -> str:
    """Return the words for an event's round, if it has one."""
    return "" if event["round"] is None else f"round {event['round']}: "


def waiting_words(event: dict[str, Any]) -> str:
    """Say which clients a run waits for."""
    return f"waiting for {', '.join(event['missing'])} ({event['seconds']:.0f} s)"


def policy_words(event: dict[str, Any]) -> str:
    """Say what of a round's policy is not applied; nothing where all is."""
    if not event["applied"]:
        return f"round_deadline is not applied: {event['reason']}"
    if event.get("late_reason"):
        return f"round_late={event['late']} is not applied: {event['late_reason']}"
    return ""


def resume_words(event: dict[str, Any]) -> str:
    """Say from where a run goes on."""
    return f"resumed from run {event['resumed_from']} after round {event['round']}"


def checkpoint_failed_words(event: dict[str, Any]) -> str:
    """Say that a run could not be resumed after a round."""
    return f"no checkpoint of round {event['round']}: {event['reason']}"


def not_folded_words(event: dict[str, Any]) -> str:
    """Say why a late reply is in no model."""
    return f"{place(event)}the late reply of {event['client']} cannot be used: {event['reason']}"


# Events of which a line is printed, and nothing more.
WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "waiting": waiting_words,
    "policy": policy_words,
    "resume": resume_words,
    "checkpoint_failed": checkpoint_failed_words,
    "not_folded": not_folded_words,
}


def follow(
    client: ControlHttpClient, run_id: str, poll: float = 0.2, until: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Print a line per round as it happens, until the run has ended; return its status.

    A SuperLink that does not answer, as on a machine that is too busy, is asked again: the run goes on.

    Parameters
    ----------
    until : mapping, optional
        What ends the run early: ``accuracy`` or ``loss`` of a round, or ``seconds`` after its begin.

    Raises
    ------
    SystemExit
        If nobody knows the run, or the SuperLink has not answered for PATIENCE seconds.
    """
    follower = Follower(state_directory() / "runs" / run_id / "journal.jsonl", until)
    begin = answered = time.monotonic()
    asked, told, status, ended = 0.0, False, "", False

    def show() -> None:
        for line in follower.lines():
            print(line, flush=True)

    while True:
        show()
        why = "" if ended else follower.over()
        if why or follower.ended or status != "running" or time.monotonic() - asked >= ASK_SECONDS:
            asked = time.monotonic()
            try:
                if why:
                    client.StopRun(StopRunRequest(run_id=int(run_id)))
                    ended = True
                    print(f"{why}: the run is stopped, as the experiment has it", flush=True)
                status = status_of(client, run_id)
                if status == "finished":
                    show()
                    run = list_runs(client, run_id)[0]
                    return {**run, "concurrent_with": concurrent_with(run, list_runs(client))}
                answered = time.monotonic()
            except httpx.HTTPError as error:
                if time.monotonic() - answered > PATIENCE:
                    raise SystemExit(
                        f"the SuperLink has not answered for {PATIENCE:.0f} s: {error}"
                    ) from None
        if status != "running" and not told and time.monotonic() - begin > 10.0:
            told = True
            print("the ServerApp has not started yet", flush=True)
        time.sleep(poll)


def status_of(client: ControlHttpClient, run_id: str) -> str:
    """Return the status of a run: pending, starting, running or finished."""
    try:
        found = client.ListRuns(ListRunsRequest(run_id=int(run_id))).run_dict
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            raise SystemExit(
                f"run {run_id} is not known here: type ansible-playbook status.yml to see the runs"
            ) from None
        raise
    return str(found[int(run_id)].status.status)


def main() -> int:
    """Run one command; JSON is the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("register").add_argument("clients", type=Path, help="JSON file: the list of clients")
    submit_parser = commands.add_parser("submit")
    submit_parser.add_argument("fab", type=Path)
    submit_parser.add_argument("run_config", help="JSON object; a note of the run comes on standard input")
    resume_parser = commands.add_parser("resume")
    resume_parser.add_argument("run_id", help="or auto; what was typed comes on standard input as JSON")
    for words in (submit_parser, resume_parser):
        words.add_argument("--keep", type=int, required=True, help="runs that keep their files")
        words.add_argument("--others", choices=("beside", "end", "refuse"), required=True)
    commands.add_parser("stop").add_argument("run_id")
    follow_parser = commands.add_parser("follow")
    follow_parser.add_argument("run_id")
    follow_parser.add_argument("--until", type=json.loads, help="JSON object: accuracy, loss or seconds")
    commands.add_parser("runs")
    commands.add_parser("nodes")
    commands.add_parser("status")
    arguments = parser.parse_args()

    client = connect()
    try:
        result: Any
        if arguments.command == "register":
            result = register(client, json.loads(arguments.clients.read_text()))
        elif arguments.command == "submit":
            config = json.loads(arguments.run_config)
            note = sys.stdin.read()
            result = submit(client, arguments.fab, config, arguments.keep, arguments.others, note)
        elif arguments.command == "resume":
            asked = Asked(**json.loads(sys.stdin.read() or "{}"))
            result = resume(client, arguments.run_id, arguments.keep, arguments.others, asked)
        elif arguments.command == "follow":
            if (found := runtime()).reason:
                print(f"runtime: {found}", flush=True)
            result = follow(client, arguments.run_id, until=arguments.until)
        elif arguments.command == "stop":
            result = {"stopped": client.StopRun(StopRunRequest(run_id=int(arguments.run_id))).success}
        elif arguments.command == "runs":
            result = known_runs(client)
        else:
            result = {"runtime": str(runtime()), "nodes": list_nodes(client)}
            if arguments.command == "status":
                result |= {"runs": known_runs(client), **memory(cgroups.own())}
    finally:
        client.close()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
