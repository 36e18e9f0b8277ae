"""A Flower Grid that knows the clients by name, keeps order, polls fast and writes down what happens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from coldframe.recording import replies as contents
from coldframe.recording.app_errors import readable
from coldframe.recording.journal import Journal
from coldframe.recording.replies import BAD_REPLY, BadReply, Checked, Form, Rules, clean

FIRST_POLL, LAST_POLL = 0.1, 0.5  # seconds between two looks for replies; Flower's own grid waits 3
RESTART_CHECK = 5.0  # seconds between two looks for clients that restarted in the middle of a phase
EXPIRY_MARGIN = (
    5.0  # seconds after the time-out in which a message is still good: its reply may be on its way
)
GRACE = 30.0  # seconds that a run waits at its start for registered clients beyond the least number
NO_REPLY = -1  # our own failure code beside Flower's: the time was up


DEMANDING = Rules()


class ClientsMissing(RuntimeError):
    """Too few clients are connected; the message names those that are missing."""


@dataclass(frozen=True)
class Client:
    """A client as the federation knows it."""

    node_id: int
    name: str
    partition_id: int | None = None


@dataclass
class _Exchange:
    """What one phase sent to whom, and what came back."""

    phase: str
    sent: dict[int, Message]
    replies: dict[int, Message] = field(default_factory=dict)
    forms: dict[int, Form] = field(default_factory=dict)
    not_finite: int = 0


def read_roster(path: Path) -> dict[int, Client]:
    """Read `nodes.json`, which maps node ids to names and partition ids; no file means no roster."""
    try:
        nodes = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {
        int(node_id): Client(int(node_id), node["name"], int(node["partition_id"]))
        for node_id, node in nodes.items()
    }


class JournalingGrid(Grid):
    """Wraps Flower's grid.

    - Nodes are listed, and replies returned, in the order of partition ids, so that sampling with a seed and
      floating-point sums come out the same in every run. Nodes without a partition id come last, by node id.
    - Every phase, reply and failure goes into the journal as it happens.
    - Waiting for clients has an end, after which an error names the missing ones.
    - What a reply contains is checked before anybody uses it; a bad reply becomes an error of that client.

    Parameters
    ----------
    roster : dict[int, Client]
        The registered clients by node id; empty where Coldframe did not deploy them.
    required : int
        How many clients must be connected before nodes are listed.
    wait_timeout : float
        Seconds to wait for them.
    rules : Rules
        What is demanded of replies.
    """

    def __init__(
        self,
        grid: Grid,
        journal: Journal,
        roster: dict[int, Client],
        *,
        required: int = 1,
        wait_timeout: float = 300.0,
        rules: Rules = DEMANDING,
    ) -> None:
        self.round = 0
        self.failures = 0  # since the counter was last set to 0
        self.diverged = False  # in the last phase, all that came back was NaN or infinite
        self._rules = rules
        self._forms: dict[str, Form] = {}  # by phase, of the last round's replies
        self._grid = grid
        self._journal = journal
        self._clients = dict(roster)
        self._registered = len(roster)
        self._required = required
        self._wait_timeout = wait_timeout
        self._listed: list[int] | None = None

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._grid.get_nodes()

    def client(self, node_id: int) -> Client:
        """Return what is known of a node."""
        return self._clients.get(node_id) or Client(node_id, f"node-{node_id}")

    def get_node_ids(self) -> list[int]:
        """List the connected nodes in the order of partition ids, once there are enough of them.

        Until the next phase the list stays the same: strategies ask for it twice, first to compute how many
        nodes to sample, then to sample them, and would wait forever if a node went away in between.
        """
        if self._listed is None:
            self._listed = self.wait_for_clients(self._required, self._wait_timeout)
        return self._listed

    def wait_for_clients(self, minimum: int, timeout: float, grace: float = 0.0) -> list[int]:
        """Wait until enough clients are connected, and for all registered ones within the grace.

        Raises
        ------
        ClientsMissing
            After the timeout.
        """
        start = time.monotonic()
        told = 0.0
        while True:
            online = sorted(self._grid.get_node_ids(), key=self._order)
            waited = time.monotonic() - start
            if len(online) >= minimum and (len(online) >= self._registered or waited >= grace):
                return online
            missing = [client.name for client in self._clients.values() if client.node_id not in online]
            if len(online) < minimum and waited >= timeout:
                names = f" Missing: {', '.join(missing)}." if missing else ""
                raise ClientsMissing(
                    f"{len(online)} clients are connected after {timeout:.0f} s, and {minimum} are needed."
                    f"{names} Look at their logs, or lower min_available_clients, min_train_clients and "
                    "min_evaluate_clients, or raise wait_timeout."
                )
            if waited >= told + 5:
                self._journal.append("waiting", missing=missing, seconds=round(waited, 1))
                told = waited
            time.sleep(LAST_POLL)

    def _order(self, node_id: int) -> tuple[bool, int, int]:
        partition_id = self.client(node_id).partition_id
        return (partition_id is None, partition_id or 0, node_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and collect the replies, in the order of partition ids.

        Errors come back as replies, as they do from Flower's grid; a reply that has not come when the time is
        up is missing from the list. Both are failures in the journal.
        """
        self._listed = None
        messages = sorted(messages, key=lambda message: self._order(message.metadata.dst_node_id))
        if not messages:
            return []
        phase = messages[0].metadata.message_type.split(".")[0]
        exchange = _Exchange(phase, {message.metadata.dst_node_id: message for message in messages})
        if timeout is not None:
            for message in messages:
                # A task that hangs is ended when its message expires; then the client is free again.
                message.metadata.ttl = timeout + EXPIRY_MARGIN
        activated = self._activations()
        names = [self.client(message.metadata.dst_node_id).name for message in messages]
        self._journal.append("phase_started", round=self.round, phase=phase, clients=names)
        start = time.monotonic()
        message_ids = list(self._grid.push_messages(messages))
        if not message_ids:
            raise RuntimeError("the SuperLink did not take the messages: their payload is too large for it")
        # The map from message to node is ours: an error for a lost node names the SuperLink as its source.
        pending: dict[str, int] = {}
        for message, message_id in zip(messages, message_ids, strict=True):
            if not message_id:
                self._failed(phase, message.metadata.dst_node_id, NO_REPLY, "the message could not be sent")
            else:
                pending[message_id] = message.metadata.dst_node_id

        pause, next_check = FIRST_POLL, RESTART_CHECK
        while pending:
            arrived = list(self._grid.pull_messages(list(pending)))
            elapsed = time.monotonic() - start
            for reply in arrived:
                answered = pending.pop(reply.metadata.reply_to_message_id, None)
                if answered is None:
                    continue  # nobody asked for it
                self._take(exchange, answered, reply, elapsed)
            if timeout is not None and elapsed >= timeout:
                for node_id in pending.values():
                    self._failed(phase, node_id, NO_REPLY, f"no reply within {timeout:.0f} s")
                break
            if elapsed >= next_check:
                self._drop_restarted(phase, pending, activated)
                next_check = elapsed + RESTART_CHECK
            pause = FIRST_POLL if arrived else min(LAST_POLL, pause * 1.3)
            if pending:
                time.sleep(pause)
        self.diverged = exchange.not_finite == len(messages) >= min(2, max(1, self._registered))
        self._refuse_odd_ones(exchange)
        return [exchange.replies[node_id] for node_id in sorted(exchange.replies, key=self._order)]

    def _activations(self) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _drop_restarted(self, phase: str, pending: dict[str, int], activated: dict[int, str]) -> None:
        # The SuperLink reports a lost node only if somebody asks while it is away. A client that was back
        # sooner would be waited for until the timeout, though its work died with the process before.
        now = self._activations()
        for message_id, node_id in list(pending.items()):
            if node_id in now and now[node_id] != activated.get(node_id):
                del pending[message_id]
                reason = f"the client restarted while it was to {phase}"
                self._failed(phase, node_id, ErrorCode.NODE_UNAVAILABLE, reason)

    def _take(self, exchange: _Exchange, node_id: int, reply: Message, seconds: float) -> None:
        """Keep a reply and write it down; one that cannot be used is kept as an error."""
        exchange.replies[node_id] = reply
        if reply.has_error():
            reason = readable(reply.error.reason or "no reason given")
            self._refuse(exchange, node_id, reason, reply.error.code)
            return
        try:
            good = contents.check(reply, exchange.sent[node_id], self._rules)
        except BadReply as bad:
            exchange.not_finite += bad.not_finite
            self._refuse(exchange, node_id, str(bad))
            return
        exchange.forms[node_id] = good.form
        self._arrived(exchange, node_id, reply, seconds, good)

    def _refuse(self, exchange: _Exchange, node_id: int, reason: str, code: int = BAD_REPLY) -> None:
        """Write a failure down, and keep it in place of the reply: strategies log its reason."""
        self._failed(exchange.phase, node_id, code, reason)
        error = Error(code=code, reason=clean(reason))
        exchange.replies[node_id] = Message(error, reply_to=exchange.sent[node_id])

    def _refuse_odd_ones(self, exchange: _Exchange) -> None:
        """Refuse the replies that would end the run if a strategy got them with the others."""
        nodes = sorted(exchange.forms, key=self._order)
        if not (self._rules.like_sent and nodes):
            return
        forms = {node_id: exchange.forms[node_id] for node_id in nodes}
        odd = contents.odd_ones(forms, self._forms.get(exchange.phase))
        good = [node_id for node_id in nodes if node_id not in odd]
        self._forms[exchange.phase] = forms[good[0]]
        counted = any(contents.weight(exchange.replies[node_id]) for node_id in good)
        for node_id in nodes:
            if node_id in odd:
                self._refuse(exchange, node_id, "its metrics are not those of the other replies")
            elif not counted:
                self._refuse(exchange, node_id, "no reply of this phase counts any examples")

    def _arrived(
        self, exchange: _Exchange, node_id: int, reply: Message, seconds: float, good: Checked
    ) -> None:
        system = dict(good.system)
        partition_id = system.pop("partition_id", None)
        if node_id not in self._clients and isinstance(partition_id, int):
            self._clients[node_id] = Client(node_id, f"client-{partition_id}", partition_id)
        client = self.client(node_id)
        self._journal.append(
            "reply",
            round=self.round,
            phase=exchange.phase,
            client=client.name,
            partition_id=client.partition_id,
            node_id=str(node_id),
            seconds=round(seconds, 3),
            examples=good.examples,
            metrics=good.metrics,
            system=system,
            bytes_down=_payload(exchange.sent[node_id]),
            bytes_up=_payload(reply),
        )

    def _failed(self, phase: str, node_id: int, code: int, reason: str) -> None:
        self.failures += 1
        client = self.client(node_id)
        self._journal.append(
            "failure",
            round=self.round,
            phase=phase,
            client=client.name,
            partition_id=client.partition_id,
            node_id=str(node_id),
            code=code,
            reason=clean(reason),
        )


def _payload(message: Message) -> int:
    """Return the bytes of a message's arrays, which are all but a few hundred of what travels."""
    records = message.content.array_records.values() if message.has_content() else ()
    return sum(len(array.data) for record in records for array in record.values())
