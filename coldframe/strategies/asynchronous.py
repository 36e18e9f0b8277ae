"""Training that waits for no client: each gets the newest model as soon as it is free."""

from __future__ import annotations

import random
import time
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from flwr.supercore import log

from coldframe.strategies.aggregation import State, Update, common_form

PAUSE = 0.5  # seconds between two questions to a SuperLink that does not hold them
NODES_PAUSE = 1.0  # seconds between two looks for clients that are needed
# Seconds after the expiry of a message in which the SuperLink says so itself; then it is given up without.
EXPIRY_MARGIN = 15.0
DISPATCH = "dispatch"  # the key of a message's config that has its number


@dataclass(frozen=True)
class Planned:
    """A dispatch of an earlier run whose update was used; a list of them, in that order, is a run's order.

    Attributes
    ----------
    dispatch : int
        Its number.
    node_id : int
        The client that gets it now.
    base : int
        The version of the model that it was sent with.
    round : int, optional
        In which its update was used. Rounds whose length depends on who is connected are as long as then.
    """

    dispatch: int
    node_id: int
    base: int
    round: int | None = None


class Order:
    """What an earlier run has left: which dispatches to send at which version, and which update is next."""

    def __init__(self, plans: Iterable[Planned]) -> None:
        plans = list(plans)
        self._unsent = {plan.dispatch: plan for plan in plans}
        self._unused = deque(plan.dispatch for plan in plans)
        self._lengths = Counter(plan.round for plan in plans)
        self._again: dict[int, int | None] = {}  # dispatches that were lost on their way, with their rounds

    def go_on(self, used: int, lost: Mapping[int, int]) -> None:
        """Leave out the first updates, which are used; send again what was on its way, whatever the version.

        Parameters
        ----------
        lost : mapping
            Dispatch -> the round in which it was sent.
        """
        for _ in range(used):
            self._unsent.pop(self._unused.popleft(), None)
        self._again = {number: round_ for number, round_ in lost.items() if number in self._unsent}

    def sent_in(self, dispatch: int) -> int | None:
        """Return the round in which a dispatch that is sent again was sent first; None of any other."""
        return self._again.get(dispatch)

    @property
    def unused(self) -> int:
        """How many updates are still to be used."""
        return len(self._unused)

    def updates_of_round(self, number: int) -> int | None:
        """Return how many updates a round used; None where the order does not tell rounds."""
        return None if None in self._lengths else self._lengths[number]

    def next_dispatches(self, version: int, busy: Collection[int]) -> list[Planned]:
        """Return what to send with this version of the model, to clients that are not busy, one for each."""
        chosen: dict[int, Planned] = {}
        for number in sorted(self._unsent):
            plan = self._unsent[number]
            if (plan.base == version or number in self._again) and plan.node_id not in busy:
                chosen.setdefault(plan.node_id, plan)
        for plan in chosen.values():
            del self._unsent[plan.dispatch]
        return list(chosen.values())

    def next_update(self, arrived: Collection[int], version: int) -> int | None:
        """Return the dispatch whose update is next, once its reply has come and this version is sent.

        An update can make the next version: what is to be sent with this one has to be sent before.
        """
        # One that is sent again has its model kept, and can be sent whenever its client is free.
        sent = all(plan.base != version or plan.dispatch in self._again for plan in self._unsent.values())
        if not sent or not self._unused or self._unused[0] not in arrived:
            return None
        return self._unused.popleft()


@dataclass(frozen=True)
class Dispatch:
    """A message to a client that is not answered yet."""

    number: int
    node_id: int
    sent: float  # of time.monotonic
    round: int = 0  # in which it was sent


class Asynchronous(FedAvg):
    """What FedBuff and FedAsync have in common: who is sent what when, and what becomes of replies.

    At any time `concurrency` clients train. A client whose reply has come is free, and one of the free
    clients, drawn at random, is sent the newest model. A *round* of Flower is here the span between two
    evaluations of the model (`evaluate_fn`): a version with FedBuff, a number of updates with FedAsync. The
    clients are not asked to evaluate: they would have to stop training for it.

    A client that fails, or does not reply within the `timeout` of `start`, is not asked again in the same
    round. A round in which all clients have failed ends without a new model, as it does with Flower's own
    strategies. A round begins when `min_available_nodes` and `min_train_nodes` are connected.

    Each message's config has `server-round`, the round in which it was sent, and `dispatch`, its number in
    the run. A ClientApp that seeds itself has to seed with the second: a client can train twice in a round.

    Parameters
    ----------
    concurrency : int, optional
        How many clients train at a time. The default is `fraction_train` of those that are connected, and
        `min_train_nodes` at least.
    max_staleness : int, optional
        An update that is more versions of the model behind is discarded. By default none is.
    order : sequence of Planned, optional
        The order in which an earlier run used its updates. With the same seed and clients it makes the same
        model, whoever is faster now: a reply that comes before its turn waits.
    **common
        Those of Flower's FedAvg. `weighted_by_key` weighs metrics alone: neither paper weighs by examples.
    """

    def __init__(
        self,
        *,
        concurrency: int | None = None,
        max_staleness: int | None = None,
        order: Sequence[Planned] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency={concurrency}: at least 1 client has to train")
        if max_staleness is not None and max_staleness < 0:
            raise ValueError(f"max_staleness={max_staleness} is not 0 or more")
        self.concurrency, self.max_staleness = concurrency, max_staleness
        self.order = order
        self.state: State | None = None  # of the run that goes on or has ended
        self._order: Order | None = None
        self.updates: Counter[int] = Counter()  # used ones, by client
        self._running = False
        self._numbers = 0  # dispatches so far
        self._flying: dict[str, Dispatch] = {}  # by message
        self._arrived: dict[int, tuple[Dispatch, Message]] = {}  # by dispatch, replies that are not used yet
        self._earlier: Mapping[str, Any] | None = None  # the state of a run that goes on

    # What FedBuff and FedAsync define.

    @abstractmethod
    def make_state(self, weights: dict[str, np.ndarray]) -> State:
        """Return the server's state before the first update."""

    @abstractmethod
    def updates_of_round(self, concurrency: int) -> int:
        """Return how many updates make a round."""

    def settings(self) -> dict[str, Any]:
        """Return the strategy's own settings, for the log."""
        return {}

    def client_config(self) -> dict[str, float]:
        """Return what the config of a message has for the strategy's clients."""
        return {}

    def note_update(self, node_id: int, update: Update) -> None:
        """Note what became of a reply: called once for each, and the place to listen to a run's updates."""
        if update.reason:
            log(WARNING, "The update of node %d is not used: %s", node_id, update.reason)
        else:
            self.updates[node_id] += 1

    # A run that goes on.

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on between two rounds, besides the model.

        Messages that are on their way are lost then. A client gets a new one with the newest model; with an
        `order` it gets the same again, so the models that they were sent with are part of it.
        """
        out = [*self._flying.values(), *(flying for flying, _ in self._arrived.values())]
        found: dict[str, Any] = {"numbers": self._numbers, "updates": dict(self.updates)}
        found["lost"] = {flying.number: flying.round for flying in out}
        found["state"] = None if self.state is None else self.state.state_dict()
        if self.order is None and found["state"]:
            found["state"] |= {"sent": {}, "bases": {}}
        return {**found, "ordered": self.order is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` has returned, from the next round on.

        Raises
        ------
        RuntimeError
            If there is an `order` now, and there was none.
        """
        if self.order is not None and not state["ordered"]:
            raise RuntimeError("an order has to be given from the first round on: go on without it")
        self._numbers, self.updates = state["numbers"], Counter(state["updates"])
        self._earlier = state["state"]
        if self._order is not None:
            self._order.go_on(self.updates.total(), state["lost"])

    # The run.

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        wrapper: Strategy | None = None,
    ) -> Result:
        """Train for so many rounds.

        Parameters
        ----------
        timeout : float
            Seconds that a client has for a message; then its SuperNode ends the task, and it is free again.
        evaluate_config : ConfigRecord, optional
            Not used: the clients do not evaluate.
        wrapper : Strategy, optional
            A strategy around this one whose `configure_train` and `aggregate_train` are to be called.

        Raises
        ------
        RuntimeError
            If a client does not give what an `order` needs of it, or the rounds end before the order.
        """
        log(INFO, "Starting %s: %d rounds", type(self).__name__, num_rounds)
        self.summary()
        outer = wrapper or self
        self.state, self.updates = None, Counter()
        self._timeout, self._numbers, self._earlier = timeout, 0, None
        self._flying, self._arrived = {}, {}
        self._failed: set[int] = set()  # clients, in this round
        self._used: list[Message] = []  # replies of the round, without their arrays
        self._order = None if self.order is None else Order(self.order)
        result, arrays = Result(), initial_arrays
        if evaluate_fn and (metrics := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = metrics
        self._running = True
        try:
            for number in range(1, num_rounds + 1):
                config = ConfigRecord(dict(train_config or {}))
                self._used = []
                messages = list(outer.configure_train(number, arrays, config, grid))
                if self.state is not None:  # else nobody is asked: a run that goes on had this round before
                    self._push(grid, messages)
                    self._collect(grid)
                made, trained = outer.aggregate_train(number, self._used)
                if made is not None:
                    arrays = result.arrays = made
                if trained is not None:
                    result.train_metrics_clientapp[number] = trained
                if evaluate_fn and (metrics := evaluate_fn(number, arrays)) is not None:
                    result.evaluate_metrics_serverapp[number] = metrics
                    log(INFO, "[ROUND %d/%d] %s", number, num_rounds, metrics)
        finally:
            self._running = False
        if self._order is not None and self._order.unused:
            raise RuntimeError(
                f"the order has {self._order.unused} updates more than {num_rounds} rounds used: set as many"
                " rounds, and updates in a round, as in the run that the order is of"
            )
        self._say_end()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round: wait for the clients that it needs, and make messages for those that are free."""
        if not self._running:
            raise RuntimeError(
                f"{type(self).__name__} trains in its own start(): call that, and wrap it in no strategy"
                " (differential privacy, for example, counts on rounds of a fixed number of clients)"
            )
        weights = {key: array.numpy() for key, array in arrays.items()}
        if self.state is None:
            self.state = self.make_state(weights)
            # To send a message again takes the model that it had.
            self.state.keeps_bases = self.state.keeps_bases or self._order is not None
            if self._earlier is not None:
                anew = self.state.load_state_dict(self._earlier, with_sent=self._order is not None)
                self._earlier = None
                if anew:  # the run goes on with another strategy or optimiser
                    log(WARNING, "Begins anew, since the checkpoint has another's state: %s", ", ".join(anew))
        self.state.weights = weights
        self._round, self._config, self._failed = server_round, config, set()
        self._sendable: tuple[int, ArrayRecord] = (self.state.version, arrays)
        needed = max(self.min_available_nodes, self.min_train_nodes, 1)
        while len(nodes := list(grid.get_node_ids())) < needed:
            log(INFO, "Waiting for clients: %d connected (%d needed)", len(nodes), needed)
            time.sleep(NODES_PAUSE)
        self._due = self.updates_of_round(self._places(len(nodes)))
        if self._order is not None and not self.whole_rounds:
            known = self._order.updates_of_round(server_round)
            self._due = self._due if known is None else known
        return self._messages(nodes)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """End a round: return the model, unless no update was used, and the mean of the replies' metrics."""
        assert self.state is not None
        replies = list(replies)
        if self.state.due < self._due:  # all clients have failed: what the buffer has stays in it
            log(WARNING, "Round %d has %d updates of %d", server_round, self.state.due, self._due)
            if self.whole_rounds:
                return None, None
        if not replies:
            return None, None
        self.state.apply()
        return self._packed(), self._mean(replies)

    whole_rounds = False  # whether a round with fewer updates makes no model

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client to evaluate."""
        return []

    def summary(self) -> None:
        """Log what the strategy is."""
        shared = {"concurrency": self.concurrency, "max_staleness": self.max_staleness}
        for name, value in {**shared, **self.settings()}.items():
            log(INFO, "\t├──> %s: %s", name, "default" if value is None else value)

    # Messages to the clients.

    def _places(self, connected: int) -> int:
        return self.concurrency or max(int(connected * self.fraction_train), self.min_train_nodes, 1)

    def _messages(self, nodes: Sequence[int]) -> list[Message]:
        """Make messages with the newest model, for as many clients as may train besides those that do."""
        busy = {flying.node_id for flying in self._flying.values()}
        if self._order is not None:
            assert self.state is not None
            plans = self._order.next_dispatches(self.state.version, busy)
            return [self._message(plan.dispatch, plan.node_id) for plan in plans]
        free = [node for node in nodes if node not in busy and node not in self._failed]
        places = min(self._places(len(nodes)) - len(busy), len(free))
        chosen = set(random.sample(free, places)) if places > 0 else set()
        messages = []
        for node in nodes:
            if node in chosen:
                messages.append(self._message(self._numbers, node))
                self._numbers += 1
        return messages

    def _message(self, number: int, node_id: int) -> Message:
        assert self.state is not None
        sent_in = None if self._order is None else self._order.sent_in(number)
        if sent_in is None:
            self.state.send(number)
            arrays = self._packed()
        else:
            arrays = _packed(self.state.base_of(number))
        self.updates[node_id] += 0
        own = {**self.client_config(), "server-round": sent_in or self._round, DISPATCH: number}
        config = ConfigRecord({**self._config, **own})
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return Message(content, node_id, MessageType.TRAIN, ttl=self._timeout)

    def _packed(self) -> ArrayRecord:
        """Return the newest model as it is sent; all messages of a version share one."""
        assert self.state is not None
        if self._sendable[0] != self.state.version:
            self._sendable = (self.state.version, _packed(self.state.weights))
        return self._sendable[1]

    def _push(self, grid: Grid, messages: Iterable[Message]) -> None:
        assert self.state is not None
        if not (batch := list(messages)):
            return
        accepted = set(filter(None, grid.push_messages(batch)))
        for message in batch:
            config = message.content[self.configrecord_key]
            number, round_ = (int(str(config[key])) for key in (DISPATCH, "server-round"))
            node_id, message_id = message.metadata.dst_node_id, message.metadata.message_id
            if message_id in accepted:
                self._flying[message_id] = Dispatch(number, node_id, time.monotonic(), round_)
            else:
                self._fail(Dispatch(number, node_id, 0.0), "the message could not be sent")

    # Replies of the clients.

    def _collect(self, grid: Grid) -> None:
        """Take replies, and keep clients busy, until the round has its updates or nobody can bring more."""
        assert self.state is not None
        self._use_arrived(grid)
        while self.state.due < self._due and self._flying:
            asked = time.monotonic()
            replies = list(grid.pull_messages(list(self._flying)))
            for reply in replies:
                self._receive(reply)
            self._give_up()
            self._use_arrived(grid)
            if self.state.due < self._due:
                self._push(grid, self._messages(list(grid.get_node_ids())))
            if not replies:
                time.sleep(max(0.0, PAUSE - (time.monotonic() - asked)))
        if self._order is not None and self._order.unused and self.state.due < self._due:
            raise RuntimeError("the order cannot be repeated: no client has the update that is next")

    def _receive(self, reply: Message) -> None:
        flying = self._flying.pop(reply.metadata.reply_to_message_id, None)
        if flying is None:
            return
        if reply.has_error():
            self._fail(flying, reply.error.reason or "no reason given")
        else:
            self._arrived[flying.number] = (flying, reply)

    def _use_arrived(self, grid: Grid) -> None:
        """Use replies in their order until the round has its updates; the others are for the next one."""
        assert self.state is not None
        while self.state.due < self._due:
            if self._order is not None:
                # What was sent before this update is sent before it again: after it the model is another.
                self._push(grid, self._messages([]))
                number = self._order.next_update(self._arrived, self.state.version)
            else:
                number = next(iter(self._arrived), None)
            if number is None:
                return
            self._use(*self._arrived.pop(number))

    def _use(self, flying: Dispatch, reply: Message) -> None:
        assert self.state is not None
        arrays, problem = self._arrays(reply)
        if problem:
            self._failed.add(flying.node_id)
            update = self.state.refuse(flying.number, problem)
        else:
            update = self.state.add(flying.number, arrays)
        if not update.reason:
            reply.content = RecordDict(dict(reply.content.metric_records))
            self._used.append(reply)
        elif self._order is not None:
            raise RuntimeError(
                f"the update of dispatch {flying.number} cannot be used again: {update.reason}"
            )
        self.note_update(flying.node_id, update)

    def _arrays(self, reply: Message) -> tuple[dict[str, np.ndarray], str]:
        """Return a reply's model, or why it cannot be used."""
        assert self.state is not None
        records = list(reply.content.array_records.values())
        if len(records) != 1 or set(records[0]) != set(self.state.weights):
            return {}, "it does not have the arrays of the model that was sent"
        try:
            arrays = {key: records[0][key].numpy() for key in self.state.weights}
        except (TypeError, ValueError) as error:
            return {}, f"an array of it cannot be read: {error}"
        for key, model in self.state.weights.items():
            if (arrays[key].dtype, arrays[key].shape) != (model.dtype, model.shape):
                found, wanted = (f"{it.dtype}{list(it.shape)}" for it in (arrays[key], model))
                return {}, f"{key} is {found}, and {wanted} was sent"
        return arrays, ""

    def _fail(self, flying: Dispatch, reason: str) -> None:
        assert self.state is not None
        log(WARNING, "Node %d failed dispatch %d: %s", flying.node_id, flying.number, reason)
        self._failed.add(flying.node_id)
        self.state.drop(flying.number)
        if self._order is not None:
            raise RuntimeError(f"dispatch {flying.number} of the order failed: {reason}")

    def _give_up(self) -> None:
        """Wait no longer for clients whose time is up, where the SuperLink has not said so."""
        limit = time.monotonic() - self._timeout - EXPIRY_MARGIN
        for message_id, flying in list(self._flying.items()):
            if flying.sent < limit:
                del self._flying[message_id]
                self._fail(flying, f"no reply within {self._timeout:g} s")

    def _mean(self, replies: Sequence[Message]) -> MetricRecord | None:
        """Return the clients' mean metrics, of the replies whose metrics have the same names as most."""
        contents = []
        for reply in replies:
            records = list(reply.content.metric_records.values())
            weight = records[0].get(self.weighted_by_key) if len(records) == 1 else None
            if isinstance(weight, int | float) and weight > 0:
                contents.append(reply.content)
        forms = [
            tuple(sorted(key for record in content.metric_records.values() for key in record))
            for content in contents
        ]
        alike = common_form(forms)
        chosen = [content for place, content in enumerate(contents) if place in alike]
        return self.train_metrics_aggr_fn(chosen, self.weighted_by_key) if chosen else None

    def _say_end(self) -> None:
        if self.state is not None:
            log(
                INFO,
                "%d updates used, %d discarded; %d clients still train",
                self.updates.total(),
                self.state.discarded,
                len(self._flying),
            )


def _packed(weights: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({key: Array(array) for key, array in weights.items()})
