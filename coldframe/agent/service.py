"""The agent of a machine: the one writer of its clients' limits, and it says whether the kernel holds them.

It answers one request per connection, a line of JSON each way, on a unix socket, and keeps what is asked
for in files: so limits outlive a restart of container, engine, machine and agent, end when their time is
over, and need no controller.
"""

from __future__ import annotations

import io
import json
import math
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from coldframe import limits
from coldframe.agent import links, scenario
from coldframe.agent.engine import Engine, EngineError
from coldframe.agent.reconciler import (
    REFUSALS,
    TICK,
    Client,
    Keeper,
    cores,
    is_shaped,
    said,
    say,
    without_network,
    write_json,
)

BURN = "while :; do :; done"
RESTARTS, PAUSE = 5, 0.5  # how often, and after how many seconds, a client that has just ended is looked for


class Agent(Keeper):
    """Answers requests; each is carried out as a whole before the next one's turn."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scenario = scenario.Scenario(self)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request; ``error`` in it says why nothing was done."""
        actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "set": self.set,
            "undo": self.undo,
            "trace": self.trace,
            "scenario": self.stage,
            "status": self.status,
            "prove": self.prove,
            "events": self.events,
        }
        action = actions.get(str(request.get("do")))
        if action is None:
            return {"error": f"the agent knows {', '.join(actions)}, not {request.get('do')}"}
        try:
            return action(request)
        except (EngineError, OSError) as error:
            self.stale = True
            return {"error": str(error)}

    def _chosen(self, names: Iterable[str]) -> list[Client]:
        self.refresh()
        unknown = [name for name in names if name not in self.clients]
        if unknown:
            raise EngineError(
                f"no client of this machine is called {', '.join(unknown)}: "
                "type ansible-playbook site.yml -e train=false"
            )
        return [self.clients[name] for name in names]

    def set(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give limits to clients: ``limits`` by client, ``stamp``, and as they are wanted ``duration``,
        ``force``, ``check`` (say what would change, and change nothing)."""
        begin = time.monotonic()
        stamp, check = float(request["stamp"]), bool(request.get("check"))
        until = time.time() + request["duration"] if request.get("duration") else None
        with self.lock:
            chosen = self._chosen(request["limits"])
            netem = any(item.get(key) for item in request["limits"].values() for key in limits.NETEM)
            has_netem = not netem or links.has_netem()
            refused = {}
            for client in chosen:
                wanted = request["limits"][client.name]
                found = limits.refusals(
                    wanted, self.use(client), cores(), has_netem, bool(request.get("force"))
                ) + self._played(client, wanted)
                if found:
                    refused[client.name] = found
            if refused:
                return {"refused": refused}

            def asked(client: Client) -> limits.Asked:
                if limits.concurrent(stamp, client.undone):
                    return client.asked
                return limits.ask(client.asked, request["limits"][client.name], stamp, until)

            answer = self._change(chosen, asked, str(request.get("cause", "throttle")), check, begin)
            for client in chosen:
                seen = [client.undone, *(entry["stamp"] for entry in client.asked.values())]
                late = any(limits.concurrent(stamp, other) for other in seen)
                answer["clients"][client.name]["superseded"] = late and not check
            return answer

    def _played(self, client: Client, wanted: limits.Limits) -> list[str]:
        """Say which of the limits a trace or a scenario would override: they would not hold."""
        rows = self.replay.rows.get(client.name, []) if self.replay else []
        if keys := sorted(self.scenario.lays(client.name) & set(wanted)):
            return [
                f"the scenario of the running run sets its {' and '.join(keys)} now: wait, or type "
                f"-e undo=true -e clients={client.name} first"
            ]
        keys = sorted({key for row in rows for key in row} & set(wanted))
        if not keys:
            return []
        return [
            f"the trace {self.trace_name} sets its {' and '.join(keys)} until it ends: wait, or type "
            f"-e undo=true -e clients={client.name} first"
        ]

    def undo(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return ``clients`` to their baseline."""
        begin, stamp = time.monotonic(), float(request["stamp"])
        with self.lock:
            chosen = self._chosen(request["clients"])
            check = bool(request.get("check"))
            if not check:
                for client in chosen:
                    client.undone = max(client.undone, stamp)
                self.scenario.release(client.name for client in chosen)
                if self.replay and not limits.concurrent(stamp, self.trace_stamp):
                    self._take_from_trace([client.name for client in chosen])
            return self._change(chosen, lambda client: limits.undo(client.asked, stamp), "undo", check, begin)

    def _change(
        self,
        chosen: list[Client],
        asked: Callable[[Client], limits.Asked],
        cause: str,
        check: bool,
        begin: float,
    ) -> dict[str, Any]:
        def change(client: Client) -> dict[str, Any]:
            started = time.monotonic()
            new, old = asked(client), client.asked
            after = limits.desired(client.identity["baseline"], new, client.over)
            network = client.shaped or is_shaped(after) or is_shaped(client.desired)

            def left(held: limits.Limits | None) -> limits.Limits:
                return limits.differences(after if network else without_network(after), held or {})

            before = self.read(client, network)
            answer: dict[str, Any] = {"before": before, "desired": after, "running": client.running}
            wrong = left(before) if before else {}
            answer["changed"] = bool(wrong) or values(new) != values(old)
            if check:
                return answer | {"verified": before, "holds": not wrong}
            problem = None
            try:
                client.asked = new
                verified = self.apply(client, network, before)
                client.shaped = network and (is_shaped(after) or bool(verified and left(verified)))
                self._save(client)
            except REFUSALS as error:
                problem = said(error)
                client.asked = old  # as a whole or not at all
                try:
                    verified = self.apply(client, network)
                except REFUSALS:
                    verified = self.read(client, network)
                client.shaped = network
                self._keep(client)
            if answer["changed"]:
                requested = wrong or {key: entry["value"] for key, entry in new.items()}
                self.event(client, cause, requested, verified, started, problem)
            client.failed, client.problem, client.cause = None, None, "drift"
            problem = problem or (self.no_group(client) if verified is None else None)
            holds = verified is not None and not left(verified)
            answer |= {"verified": verified, "holds": holds, "revert_at": limits.next_expiry(client.asked)}
            return (
                answer | ({"problem": problem} if problem else {}) | {"seconds": time.monotonic() - started}
            )

        results = dict(zip((c.name for c in chosen), self.pool.map(change, chosen), strict=True))
        for _ in range(0 if check else RESTARTS):
            # Between two looks at the engine a client may have been started anew: its process is another one.
            lost = [c for c in chosen if results[c.name]["running"] and results[c.name]["verified"] is None]
            if not lost:
                break
            time.sleep(PAUSE)
            self.stale = True
            self.refresh()
            for client, again in zip(lost, self.pool.map(change, lost), strict=True):
                first = results[client.name]
                kept = {"before": first["before"], "changed": first["changed"] or again["changed"]}
                results[client.name] = again | kept
        self.wake.set()
        return {"clients": results, "seconds": time.monotonic() - begin}

    def stage(self, request: dict[str, Any]) -> dict[str, Any]:
        """Stage the scenario of a run, or end it; see `scenario.Scenario.stage`."""
        with self.lock:
            self._chosen(name for entry in request["entries"] for name in entry["clients"])
            return self.scenario.stage(request, time.time())

    def trace(self, request: dict[str, Any]) -> dict[str, Any]:
        """Replay ``rows`` (by client) from the unix time ``start``; see `replay.Replay`."""
        with self.lock:
            chosen = self._chosen(request["rows"])
            stamp = float(request["stamp"])
            netem = any(
                row.get(key) for rows in request["rows"].values() for row in rows for key in limits.NETEM
            )
            has_netem = not netem or links.has_netem()
            refused = {}
            for client in chosen:
                use = self.use(client)
                found = [
                    f"second {row['seconds']:g}: {text}"
                    for row in request["rows"][client.name]
                    for text in limits.refusals(row, use, cores(), has_netem, bool(request.get("force")))
                ]
                if found:
                    refused[client.name] = found[:1]
            others = sorted(set(self.replay.rows) - set(request["rows"])) if self.replay else []
            if others:
                refused |= {
                    client.name: [
                        f"the trace {self.trace_name} is being played for {', '.join(others)} on this "
                        "machine: put both into one file, or type -e undo=true first"
                    ]
                    for client in chosen
                }
            if refused:
                return {"refused": refused}
            late = any(
                limits.concurrent(stamp, seen) for seen in (self.trace_stamp, *(c.undone for c in chosen))
            )
            if not request.get("check") and not late:
                kept = {key: request[key] for key in ("rows", "start", "length", "speed", "loop", "name")}
                self._end_trace()
                write_json(self.own / "trace.json", {**kept, "stamp": stamp})
                self._load_trace()
                self.wake.set()
            return {
                "clients": {
                    client.name: {
                        "changed": not late,
                        "running": client.running,
                        "superseded": late and not request.get("check"),
                    }
                    for client in chosen
                }
            }

    def status(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say of every client who it is, what is asked for, what the kernel holds, and what it uses."""
        with self.lock:
            self.refresh()
            chosen = list(self.clients.values())
            read = self.pool.map(self.read, chosen)
            clients = {
                client.name: {
                    "state": client.identity,
                    "desired": client.desired,
                    "verified": verified,
                    "holds": verified is not None and not limits.differences(client.desired, verified),
                    "problem": client.problem or self.no_group(client),
                    "revert_at": limits.next_expiry(client.asked),
                    "use": self.use(client),
                }
                for client, verified in zip(chosen, read, strict=True)
            }
            trace = {"name": self.trace_name, "start": self.replay.start} if self.replay else None
            staged = self.scenario.status()
            return {"clients": clients, "trace": trace, "scenario": staged, "cores": cores()}

    def events(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what has happened since the time ``since`` (as ISO 8601 has it)."""
        since = datetime.fromisoformat(request["since"]).timestamp()
        events = []
        for path in (self.own / "events.jsonl", self.root / "events.jsonl"):
            with path.open(errors="replace") if path.exists() else io.StringIO() as lines:
                for line in lines:
                    try:
                        event = json.loads(line)
                    except ValueError:
                        continue  # torn by a power cut
                    if event["time"] >= since:
                        events.append(event)
        return {"clients": {}, "events": events}

    def prove(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure over ``seconds`` what ``clients`` use, from the kernel's counters."""
        with self.lock:
            chosen = self._chosen(request["clients"])
            desired = {client.name: client.desired for client in chosen}
        if request.get("load"):
            self._burn(chosen, float(request["seconds"]))
        first = {client.name: self._sample(client) for client in chosen}
        time.sleep(float(request["seconds"]))
        proofs: dict[str, dict[str, Any]] = {}
        for client in chosen:
            before, after = first[client.name], self._sample(client)
            if before is None or after is None:
                proofs[client.name] = {"problem": "does not run"}
            elif before["pid"] != after["pid"]:
                proofs[client.name] = {"problem": "restarted meanwhile"}
            else:
                proofs[client.name] = measured(before, after)
            proofs[client.name]["desired"] = desired[client.name]
        return {"clients": proofs}

    def _burn(self, chosen: list[Client], seconds: float) -> None:
        """Have clients use all the CPU that their limits allow, by processes of their own containers.

        They end by themselves, also where the agent ends first.
        """
        for client in chosen:
            with self.lock:
                container, cpu = client.container, client.desired["cpu"]
            if container is None or not container.pid:
                continue  # the proof says that it does not run
            for _ in range(min(cores(), math.ceil(cpu or 1))):
                duration = str(math.ceil(seconds) + 1)
                self.engine.execute(container.id, ["timeout", "-s", "KILL", duration, "sh", "-c", BURN])

    def _sample(self, client: Client) -> dict[str, float] | None:
        with self.lock:
            self.refresh()
            group, container = self.group(client), client.container
            if group is None or container is None:
                return None
            try:
                received, sent = links.counters(self.device(client))
            except (links.LinkError, OSError):
                self.stale = True
                return None
        moment, used = time.monotonic(), group.cpu_usage_seconds()
        periods, throttled = group.cpu_periods()
        if used is None:
            return None
        return {
            "pid": container.pid,
            "time": moment,
            "cpu": used,
            "periods": periods,
            "throttled": throttled,
            "received": received,
            "sent": sent,
        }


def measured(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return the use between two samples: cores, share of throttled periods, bit/s.

    >>> zero = {"pid": 7, "time": 0, "cpu": 0, "periods": 0, "throttled": 0, "received": 0, "sent": 0}
    >>> measured(zero, {**zero, "time": 10, "cpu": 1})["cpu"]
    0.1
    """
    delta = {key: after[key] - before[key] for key in before}
    seconds = delta["time"]
    return {
        "seconds": seconds,
        "cpu": delta["cpu"] / seconds,
        "throttled_share": delta["throttled"] / delta["periods"] if delta["periods"] else 0.0,
        "down": delta["received"] * 8 / seconds,
        "up": delta["sent"] * 8 / seconds,
    }


def values(asked: limits.Asked) -> dict[str, Any]:
    """Return value and end of each limit that is asked for."""
    return {key: (entry["value"], entry["until"]) for key, entry in asked.items()}


class Server(socketserver.ThreadingUnixStreamServer):
    """The socket: a thread per request, so that a long proof keeps nobody waiting."""

    daemon_threads = True

    def __init__(self, path: Path, agent: Agent) -> None:
        path.unlink(missing_ok=True)
        super().__init__(str(path), Handler)
        path.chmod(0o600)
        self.agent = agent


class Handler(socketserver.StreamRequestHandler):
    """One request: a line of JSON, answered by a line of JSON."""

    def handle(self) -> None:
        """Read, act, answer."""
        assert isinstance(self.server, Server)
        line = self.rfile.readline()
        if not line:
            return  # somebody looked whether the socket is there
        try:
            answer = self.server.agent.answer(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            answer = {"error": f"the request cannot be read: {type(error).__name__} {error}"}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


def listen(agent: Agent) -> None:
    """Follow the engine's events, for ever."""
    while True:
        agent.stale = True
        agent.wake.set()
        try:
            for _ in agent.engine.events():
                agent.stale = True
                agent.wake.set()
        except EngineError as error:
            say(str(error))
        time.sleep(TICK)


def tell(agent: Agent) -> None:
    """Keep the engine told, for ever: by a thread of its own, since that takes it a while."""
    while True:
        agent.tell(time.monotonic())
        time.sleep(TICK)


def play(agent: Agent) -> None:
    """Play the scenario that is staged, for ever; while there is none, sleep."""
    while True:
        agent.scenario.awake.wait()
        try:
            agent.scenario.poll(time.time())
        except (EngineError, OSError) as error:
            say(f"the scenario: {error}")
        time.sleep(scenario.POLL)


def main(arguments: list[str]) -> int:
    """Run the agent of the federation whose directory and name are given, until SIGTERM."""
    root, federation, tree = Path(arguments[0]), arguments[1], Path(arguments[2])
    agent = Agent(root, Engine(federation), tree)
    stop = threading.Event()
    server = Server(root / "agent" / "agent.sock", agent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for work in (listen, tell, play):
        threading.Thread(target=work, args=(agent,), daemon=True).start()

    def end(*_: Any) -> None:
        stop.set()
        agent.wake.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    say(f"looks after the clients of federation {federation}")
    agent.keep(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
