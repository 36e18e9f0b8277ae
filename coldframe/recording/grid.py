"""The grid beneath an app: flwr's, with clients by name and in order; all messages are written down."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import DEFAULT_TTL, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from coldframe.recording import replies as contents
from coldframe.recording.flower import SYSTEM_RECORD
from coldframe.recording.policy import LeftBehind, Policy, Terms
from coldframe.recording.replies import BAD_REPLY, BadReply, Form, Rules, clean
from coldframe.recording.rounds import Pending, Recorder
from coldframe.recording.task_note import phase_of

UNHELD_SECONDS = 0.5  # how often a server that does not hold a question is asked it
RESTART_CHECK = 5.0  # seconds between two looks for clients that restarted while they were to reply
FRESH_SECONDS = 1.0  # how old the list of clients may be when messages are sent
GRACE = 30.0  # seconds that the first question for clients waits for all that are registered
LISTED_SECONDS = 0.5  # a strategy that asks twice for the clients gets the same ones
SAY_SECONDS = 5.0  # how often it is written down whom the run waits for
# Seconds after a time-out in which a message is still good: its reply may be on its way.
EXPIRY_MARGIN = 5.0
# Seconds after its expiry in which a message that an app sent itself is kept, if nobody asks for its reply.
FORGET_MARGIN = 60.0


class ClientsMissing(RuntimeError):
    """Too few clients are connected; the message names those that are missing."""


@dataclass
class Phase:
    """Messages that were sent together, while their replies are waited for; all by message."""

    sent: dict[str, Message] = field(default_factory=dict)
    pending: dict[str, Pending] = field(default_factory=dict)
    replies: dict[str, Message] = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # from message to reply
    not_finite: int = 0

    @property
    def good(self) -> int:
        """How many replies can be used."""
        return sum(not reply.has_error() for reply in self.replies.values())


class RecordingGrid(Grid):
    """Wraps flwr's grid; of what an app sends nothing is changed but when it expires.

    Nodes are listed, and replies returned, in the order of partition ids, so that sampling with a seed and
    floating-point sums come out the same in every run. Nodes without a partition id come last, by node id.

    Parameters
    ----------
    rules : Rules, optional
        What is demanded of replies; a bad one becomes an error of its client. None: they are not looked at.
    wait_timeout : float
        Seconds to wait for the clients that a strategy needs; then an error names the missing ones.
    policy : Policy, optional
        What ends a phase before all clients have replied.
    """

    def __init__(
        self,
        grid: Grid,
        recorder: Recorder,
        rules: Rules | None = None,
        wait_timeout: float = 300.0,
        policy: Policy | None = None,
    ) -> None:
        self._grid = grid
        self._recorder = recorder
        self._rules = rules
        self._wait_timeout = wait_timeout
        self._policy = policy
        late_work = policy.late_work if policy is not None else None
        self._left_behind = LeftBehind(grid, recorder, late_work, self._lost)
        self._forms: dict[str, Form] = {}  # by message type, of the last replies
        self._asked = False  # for the clients
        self._activated: dict[int, str] = {}  # node -> when it was last activated
        self._looked = float("-inf")
        self._sent: dict[str, Message] = {}  # what an app sent itself, where replies are checked
        self._diverged: set[int] = set()  # nodes whose replies to that are not finite, since a good one

    def __getattr__(self, name: str) -> Any:
        """Return what only flwr's own grid has."""
        return getattr(self._grid, name)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as flwr's grid does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    # The clients.

    def get_nodes(self) -> Iterable[NodeInfo]:
        """List the connected nodes in the order of partition ids."""
        return sorted(self._grid.get_nodes(), key=lambda node: self._recorder.order(node.node_id))

    def get_node_ids(self) -> list[int]:
        """List the ids of the connected nodes in the order of partition ids.

        A strategy of Flower asks twice, to compute how many nodes to sample and to sample them, and would
        wait for ever if one went away in between: it gets the same list, once there are as many as it needs.
        """
        configuring = self._recorder.configuring
        if configuring is None:
            return self._online(0)
        if time.monotonic() - configuring.told > LISTED_SECONDS:
            online = self._online(configuring.required)
            configuring.nodes = self._left_behind.without_busy(online, configuring.required)
            configuring.told = time.monotonic()
        return list(configuring.nodes)

    def _online(self, required: int) -> list[int]:
        """Wait until so many clients are connected, and at first for all that are registered, for a while.

        Raises
        ------
        ClientsMissing
            After the timeout.
        """
        grace, self._asked = 0.0 if self._asked else GRACE, True
        registered = self._recorder.clients()
        start, said = time.monotonic(), 0.0
        while True:
            online = sorted(self._grid.get_node_ids(), key=self._recorder.order)
            waited = time.monotonic() - start
            if len(online) >= required and (len(online) >= len(registered) or waited >= grace):
                return online
            missing = [client.name for client in registered if client.node_id not in online]
            if len(online) < required and waited >= self._wait_timeout:
                names = f" Missing: {', '.join(missing)}." if missing else ""
                raise ClientsMissing(
                    f"{len(online)} clients are connected after {self._wait_timeout:.0f} s, and {required}"
                    f" are needed.{names} Look at their logs, or lower min_available_clients,"
                    " min_train_clients and min_evaluate_clients, or raise wait_timeout."
                )
            if waited >= said + SAY_SECONDS:
                self._recorder.waiting(missing, waited)
                said = waited
            time.sleep(UNHELD_SECONDS)

    # Messages.

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        batch = list(messages)
        self._forget_expired()
        if self._policy is not None:
            self._policy.pushed(batch)
        message_ids = self._push(batch)
        if self._rules is not None:
            self._sent.update({message.metadata.message_id: message for message in batch})
        return message_ids

    def _forget_expired(self) -> None:
        """Let go of messages that have expired: a strategy may have given them up, each with its model."""
        now = time.time()
        for message_id, message in list(self._sent.items()):
            metadata = message.metadata
            expired = now > metadata.created_at + metadata.ttl + FORGET_MARGIN
            if expired and self._sent.pop(message_id, None) is not None:  # another thread may have taken it
                self._recorder.gave_up(message_id, metadata.ttl)

    def _push(self, batch: list[Message]) -> list[str]:
        if not batch:
            return []
        exchanges = self._recorder.sending(batch)
        activated = self._activations(FRESH_SECONDS)
        message_ids = list(self._grid.push_messages(batch))
        accepted = set(filter(None, message_ids))
        for message, exchange in zip(batch, exchanges, strict=True):
            # Not by its place: some grids leave out those that were refused.
            message_id = message.metadata.message_id
            since = activated.get(message.metadata.dst_node_id)
            self._recorder.sent(message, exchange, message_id in accepted, since)
        self._recorder.connected(set(activated), exchanges)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come, in the order of partition ids."""
        wanted = list(message_ids)
        pending = self._recorder.pending
        nodes = {key: pending[key].message.metadata.dst_node_id for key in wanted if key in pending}
        replies = [self._checked(reply) for reply in self._pull(wanted)]
        for reply in replies:
            self._recorder.replied(reply, _take_system(reply))
        last = (True, 0, 0)
        places = {key: self._recorder.order(node_id) for key, node_id in nodes.items()}
        return sorted(replies, key=lambda reply: places.get(reply.metadata.reply_to_message_id, last))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies, in the order of partition ids.

        A client that has not replied when the time is up is missing from the list.
        """
        batch = list(messages)
        terms = self._policy.begin(batch) if self._policy is not None else Terms()
        for message in batch:
            if (lifetime := terms.lifetime(timeout)) is not None and message.metadata.ttl == DEFAULT_TTL:
                # A task that hangs is ended when its message expires; then the client is free again.
                message.metadata.ttl = lifetime + EXPIRY_MARGIN
        start = time.monotonic()
        waiting = {message_id for message_id in self._push(batch) if message_id}
        sent = time.monotonic()  # from here on the clients have the time of a deadline
        left = None if timeout is None else timeout - (sent - start)
        limit = terms.limit(left)
        phase = Phase({message.metadata.message_id: message for message in batch})
        phase.pending = {key: self._recorder.pending[key] for key in waiting if key in self._recorder.pending}
        while waiting and not terms.reached(phase.good):
            if limit is not None and time.monotonic() - sent >= limit:
                break
            asked = time.monotonic()
            arrived = [
                self._take(phase, reply)
                for reply in self._pull(waiting)
                if reply.metadata.reply_to_message_id in waiting  # else nobody asked for it
            ]
            waiting.difference_update(reply.metadata.reply_to_message_id for reply in arrived)
            if waiting and not arrived:
                time.sleep(max(0.0, UNHELD_SECONDS - (time.monotonic() - asked)))
        late = self._leave_behind(phase, waiting, terms, terms.reason(phase.good, left), timeout)
        if self._rules is not None:
            self._refuse_odd_ones(phase)
            self._check_divergence(phase)
        if self._policy is not None and batch:
            kind = phase_of(batch[0].metadata.message_type)
            self._policy.ended(kind, terms, phase.seconds, late, phase.good)
            if self._policy.folds(terms):
                self._fold(phase)
        return [phase.replies[key] for key in sorted(phase.replies, key=self._place(phase))]

    def _leave_behind(
        self,
        phase: Phase,
        waiting: Collection[str],
        terms: Terms,
        reason: str | None,
        timeout: float | None,
    ) -> int:
        """End a phase without the replies to some messages; return how many are late by the policy."""
        if reason is None:
            for message_id in waiting:
                self._recorder.gave_up(message_id, timeout or 0.0)
            return 0
        for message_id in waiting:
            self._recorder.late(message_id, reason)
            if terms.fold and self._policy is not None and message_id in phase.pending:
                pending, sent = phase.pending[message_id], phase.sent[message_id]
                self._policy.late_work.expect(message_id, pending, sent)
        self._left_behind.add(
            {
                key: (phase.pending[key], phase.sent[key].metadata.ttl)
                for key in waiting
                if key in phase.pending
            }
        )
        return len(waiting)

    def _fold(self, phase: Phase) -> None:
        """Add the late replies to earlier phases to the good ones of a phase, as replies to its model."""
        assert self._policy is not None
        good = next(key for key in sorted(phase.replies) if not phase.replies[key].has_error())
        like, late_work = contents.form(phase.replies[good].content), self._policy.late_work
        for expected in late_work.take():
            assert expected.reply is not None
            message_id = expected.reply.metadata.reply_to_message_id
            try:
                folded = late_work.fold(expected, phase.sent[good], like, self._rules)
            except BadReply as bad:
                self._recorder.not_folded(expected.pending, str(bad))
                continue
            phase.sent[message_id], phase.replies[message_id] = expected.sent, folded.reply
            # Takes its figures out, as `_take` does.
            self._recorder.folded(
                expected.pending,
                folded.reply,
                _take_system(folded.reply),
                seconds=expected.seconds,
                staleness=folded.staleness,
                weight=folded.weight,
            )

    def close_policy(self) -> None:
        """End the policy with the run."""
        self._left_behind.close()
        if self._policy is not None:
            self._policy.close()

    def _place(self, phase: Phase) -> Any:
        return lambda message_id: self._recorder.order(phase.sent[message_id].metadata.dst_node_id)

    def _pull(self, message_ids: Collection[str]) -> list[Message]:
        """Return the replies that have come, and errors in place of those that cannot come any more."""
        wanted = list(message_ids)
        replies = list(self._grid.pull_messages(wanted))
        known = self._recorder.pending
        pending = {key: known[key] for key in wanted if key in known}
        return replies + self._lost(pending, {reply.metadata.reply_to_message_id for reply in replies})

    def _activations(self, age: float) -> dict[int, str]:
        """Return when each node was last activated, as of so many seconds ago or less."""
        if time.monotonic() - self._looked > age:
            self._looked = time.monotonic()
            self._activated = {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}
        return self._activated

    def _lost(self, waiting: Mapping[str, Pending], answered: Collection[str]) -> list[Message]:
        """Make error replies for clients that restarted: their work died with the process before.

        The SuperLink tells of a lost node only who asks while it is away; an app would wait for ever.
        """
        activated = self._activations(RESTART_CHECK)
        errors = []
        for message_id, pending in waiting.items():
            if message_id in answered:
                continue
            now, before = activated.get(pending.message.metadata.dst_node_id), pending.activated
            if now and before and now != before:
                if not self._recorder.lost_with_its_client(message_id, now):
                    pending.activated = now  # it works on it, or will
                    continue
                reason = f"the client restarted while it was to {phase_of(pending.exchange.kind)}"
                errors.append(Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=pending.message))
        return errors

    # What replies contain, where the app lets that be checked.

    def _take(self, phase: Phase, reply: Message) -> Message:
        """Keep a reply of a phase; one that cannot be used is kept as an error."""
        message_id = reply.metadata.reply_to_message_id
        if self._rules is not None and not reply.has_error():
            try:
                phase.forms[message_id] = contents.check(reply, phase.sent[message_id], self._rules).form
            except BadReply as bad:
                phase.not_finite += bad.not_finite
                reply = Message(Error(BAD_REPLY, clean(bad)), reply_to=phase.sent[message_id])
        if message_id in phase.pending and not reply.has_error():
            phase.seconds.append(time.monotonic() - phase.pending[message_id].sent)
        self._recorder.replied(reply, _take_system(reply))
        phase.replies[message_id] = reply
        return reply

    def _checked(self, reply: Message) -> Message:
        """Return a reply to a message that an app sent itself; an error, if it cannot be used."""
        sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
        if sent is None or self._rules is None or reply.has_error():
            return reply
        try:
            contents.check(reply, sent, self._rules)
            self._diverged.clear()
        except BadReply as bad:
            if bad.not_finite:
                self._diverged.add(sent.metadata.dst_node_id)
                if len(self._diverged) >= max(1, len(self._recorder.clients())):
                    raise self._divergence(sent) from None
            return Message(Error(BAD_REPLY, clean(bad)), reply_to=sent)
        return reply

    def _refuse_odd_ones(self, phase: Phase) -> None:
        """Refuse the replies that would end the run if a strategy got them with the others."""
        places = sorted(phase.forms, key=self._place(phase))
        if not places or not (self._rules and self._rules.like_sent):
            return
        nodes = dict(enumerate(places))
        forms = {node: phase.forms[message_id] for node, message_id in nodes.items()}
        kind = phase.sent[places[0]].metadata.message_type
        odd = contents.odd_ones(forms, self._forms.get(kind))
        good = [node for node in nodes if node not in odd]
        self._forms[kind] = forms[good[0]]
        counted = any(contents.weight(phase.replies[nodes[node]]) for node in good)
        for node, message_id in nodes.items():
            if node in odd:
                self._refuse(phase, message_id, "its metrics are not those of the other replies")
            elif not counted:
                self._refuse(phase, message_id, "no reply of this phase counts any examples")

    def _refuse(self, phase: Phase, message_id: str, reason: str) -> None:
        """Write down that a reply cannot be used, and keep that in its place: strategies log the reason."""
        self._recorder.refused(phase.pending[message_id], reason)
        phase.replies[message_id] = Message(Error(BAD_REPLY, reason), reply_to=phase.sent[message_id])

    def _check_divergence(self, phase: Phase) -> None:
        """End a run in which all that came back was NaN or infinite."""
        registered = max(1, len(self._recorder.clients()))
        if phase.not_finite == len(phase.sent) >= min(2, registered):
            raise self._divergence(next(iter(phase.sent.values())))

    def _divergence(self, sent: Message) -> FloatingPointError:
        kind = phase_of(sent.metadata.message_type)
        what = "the loss of all clients" if kind == "evaluate" else "what all clients trained"
        return FloatingPointError(
            f"in round {self._recorder.round_number} {what} is NaN or infinite. Lower learning_rate or"
            " clip (fl_dp); allow_nonfinite=true goes on all the same"
        )


def _take_system(reply: Message) -> dict[str, Any]:
    """Take a client's own figures out of its reply: the app's aggregation sees what the app has sent."""
    if not reply.has_content() or SYSTEM_RECORD not in reply.content.config_records:
        return {}
    system = dict(reply.content.config_records[SYSTEM_RECORD])
    reply.content = RecordDict(
        {name: record for name, record in reply.content.items() if name != SYSTEM_RECORD}
    )
    return system
