"""The grid of a recorded app: flwr's, with clients in order, and each message and reply written down."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from coldframe.recording.flower import SYSTEM_RECORD
from coldframe.recording.rounds import Recorder

UNHELD_SECONDS = 0.5  # how often a server that does not hold a question is asked it
RESTART_CHECK = 5.0  # seconds between two looks for clients that restarted while they were to reply
FRESH_SECONDS = 1.0  # how old the list of clients may be when messages are sent


class RecordingGrid(Grid):
    """Wraps flwr's grid; of what an app sends nothing is changed, not even its order."""

    def __init__(self, grid: Grid, recorder: Recorder) -> None:
        self._grid = grid
        self._recorder = recorder
        self._activated: dict[int, str] = {}  # node -> when it was last activated
        self._looked = float("-inf")
        self._since: dict[str, str | None] = {}  # message -> the same when it was sent

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

    def get_nodes(self) -> Iterable[NodeInfo]:
        """List the connected nodes in the order of partition ids."""
        return sorted(self._grid.get_nodes(), key=lambda node: self._recorder.order(node.node_id))

    def get_node_ids(self) -> list[int]:
        """List the ids of the connected nodes in the order of partition ids."""
        return sorted(self._grid.get_node_ids(), key=self._recorder.order)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        batch = list(messages)
        if not batch:
            return []
        exchanges = self._recorder.sending(batch)
        activated = self._activations(FRESH_SECONDS)
        message_ids = list(self._grid.push_messages(batch))
        accepted = set(filter(None, message_ids))
        for message, exchange in zip(batch, exchanges, strict=True):
            # Not by its place: some grids leave out those that were refused.
            message_id = message.metadata.message_id
            self._since[message_id] = activated.get(message.metadata.dst_node_id)
            self._recorder.sent(message, exchange, message_id in accepted)
        self._recorder.connected(set(activated), exchanges[-1])
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come, in the order of partition ids."""
        wanted = list(message_ids)
        pending = self._recorder.pending
        nodes = {key: pending[key].message.metadata.dst_node_id for key in wanted if key in pending}
        replies = list(self._grid.pull_messages(wanted))
        replies += self._lost(wanted, {reply.metadata.reply_to_message_id for reply in replies})
        for reply in replies:
            self._recorder.replied(reply, _take_system(reply))
        last = (True, 0, 0)
        places = {key: self._recorder.order(node_id) for key, node_id in nodes.items()}
        return sorted(replies, key=lambda reply: places.get(reply.metadata.reply_to_message_id, last))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies, in the order of partition ids."""
        batch = list(messages)
        nodes = {}
        waiting = {message_id for message_id in self.push_messages(batch) if message_id}
        for message in batch:
            nodes[message.metadata.message_id] = message.metadata.dst_node_id
        start = time.monotonic()
        replies: list[Message] = []
        while waiting and (timeout is None or time.monotonic() - start < timeout):
            asked = time.monotonic()
            arrived = self.pull_messages(waiting)
            replies.extend(arrived)
            waiting.difference_update(reply.metadata.reply_to_message_id for reply in arrived)
            if waiting and not arrived:
                time.sleep(max(0.0, UNHELD_SECONDS - (time.monotonic() - asked)))
        for message_id in waiting:
            self._recorder.gave_up(message_id, timeout or 0.0)
        order = self._recorder.order
        return sorted(replies, key=lambda reply: order(nodes.get(reply.metadata.reply_to_message_id, 0)))

    def _activations(self, age: float) -> dict[int, str]:
        """Return when each node was last activated, as of so many seconds ago or less."""
        if time.monotonic() - self._looked > age:
            self._looked = time.monotonic()
            self._activated = {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}
        return self._activated

    def _lost(self, wanted: list[str], answered: set[str]) -> list[Message]:
        """Make error replies for clients that restarted: their work died with the process before.

        The SuperLink tells of a lost node only who asks while it is away; an app would wait for ever.
        """
        activated = self._activations(RESTART_CHECK)
        errors = []
        for message_id in wanted:
            pending = self._recorder.pending.get(message_id)
            if pending is None or message_id in answered:
                continue
            now, before = activated.get(pending.message.metadata.dst_node_id), self._since.get(message_id)
            if now and before and now != before:
                if not self._recorder.lost_with_its_client(message_id, now):
                    self._since[message_id] = now  # it works on it, or will
                    continue
                error = Error(ErrorCode.NODE_UNAVAILABLE, "the client restarted before it could reply")
                errors.append(Message(error, reply_to=pending.message))
        return errors


def _take_system(reply: Message) -> dict[str, Any]:
    """Take a client's own figures out of its reply: the app's aggregation sees what the app has sent."""
    if not reply.has_content() or SYSTEM_RECORD not in reply.content.config_records:
        return {}
    system = dict(reply.content.config_records[SYSTEM_RECORD])
    reply.content = RecordDict(
        {name: record for name, record in reply.content.items() if name != SYSTEM_RECORD}
    )
    return system
