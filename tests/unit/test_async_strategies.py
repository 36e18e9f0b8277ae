"""Asynchronous strategies over clients of different speeds, some of which fail, in a time of their own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from coldframe.strategies import FedAsync, FedBuff, asynchronous
from coldframe.strategies.aggregation import Update
from coldframe.strategies.asynchronous import Asynchronous, Planned

FIRST = ArrayRecord({"w": Array(np.linspace(-1, 1, 6).reshape(2, 3)), "n": Array(np.zeros(2, np.int64))})
THREE = {1: 1.0, 2: 1.7, 3: 5.0}  # node -> seconds for a message


@pytest.fixture(autouse=True)
def as_serverapp(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("_run_id", "_node_id", "_task_id"):  # Flower sets these in a ServerApp's process
        monkeypatch.setattr(TaskIdentity, key, 1)
    monkeypatch.setattr(asynchronous, "PAUSE", 0.01)
    monkeypatch.setattr(asynchronous, "EXPIRY_MARGIN", 0.0)


class Clients(Grid):
    """Clients that train one message at a time; their clock goes on when somebody asks for replies.

    Attributes
    ----------
    silent, failing : set of int
        Nodes that never reply, and whose replies are errors.
    tick : float
        Replies that come within so many seconds of each other are returned together.
    """

    def __init__(self, seconds: dict[int, float], tick: float = 0.0) -> None:
        self.seconds, self.tick, self.clock = seconds, tick, 0.0
        self.silent: set[int] = set()
        self.failing: set[int] = set()
        self.refused: set[int] = set()  # nodes to which nothing can be sent
        self.odd: dict[int, RecordDict] = {}  # what a node replies instead
        self.sent: list[Message] = []
        self.most = 0  # that trained at a time
        self.due: list[tuple[float, str, Message]] = []

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.seconds]

    def get_node_ids(self) -> Iterable[int]:
        return list(self.seconds)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[str] = []
        for message in messages:
            node, message_id = message.metadata.dst_node_id, f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.sent.append(message)
            if node in self.refused:
                ids.append("")
                continue
            ids.append(message_id)
            assert node not in [other.metadata.dst_node_id for _, _, other in self.due], "it is busy"
            if node not in self.silent:
                self.due.append((self.clock + self.seconds[node], message_id, message))
        self.most = max(self.most, len(self.due))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        coming = sorted((entry for entry in self.due if entry[1] in wanted), key=lambda entry: entry[:2])
        if not coming:
            return []
        self.clock = coming[0][0]
        ready = [entry for entry in coming if entry[0] <= self.clock + self.tick]
        self.due = [entry for entry in self.due if entry not in ready]
        return [self.reply(message) for _, _, message in ready]

    def reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node in self.failing:
            return Message(Error(2, "broken"), reply_to=message)
        if node in self.odd:
            return Message(self.odd[node], reply_to=message)
        return Message(trained(message), reply_to=message)


def trained(message: Message) -> RecordDict:
    """Return what a client makes of a message: it depends on model, client and dispatch."""
    arrays = message.content.array_records["arrays"]
    dispatch = int(str(message.content.config_records["config"]["dispatch"]))
    values = np.random.default_rng([message.metadata.dst_node_id, dispatch])
    made = {
        "w": Array(0.8 * arrays["w"].numpy() + values.normal(size=(2, 3))),
        "n": Array(arrays["n"].numpy() + 1),
    }
    metrics = MetricRecord({"train_loss": float(dispatch), "num-examples": 10})
    return RecordDict({"arrays": ArrayRecord(made), "metrics": metrics})


def arrays_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {key: array.numpy() for key, array in record.items()}


def listening(strategy: Asynchronous) -> list[tuple[int, Update]]:
    """Return a list that gets every update of a strategy, with its client."""
    heard: list[tuple[int, Update]] = []
    inner = strategy.note_update

    def note_update(node_id: int, update: Update) -> None:
        heard.append((node_id, update))
        inner(node_id, update)

    strategy.note_update = note_update  # type: ignore[method-assign]
    return heard


def config_of(message: Message) -> ConfigRecord:
    return message.content.config_records["config"]


def test_the_model_is_that_of_the_updates_in_the_order_of_their_arrival() -> None:
    grid, strategy = Clients(THREE), FedBuff(buffer_size=2, server_learning_rate=0.7)
    heard = listening(strategy)
    result = strategy.start(grid, FIRST, num_rounds=6)
    state = strategy.make_state(arrays_of(FIRST))
    by_dispatch = {config_of(message)["dispatch"]: message for message in grid.sent}
    sendings = {0: [0, 1, 2]}  # version -> what is sent with it
    for _, update in heard:
        sendings.setdefault(update.base, []).append(update.dispatch)
    sent: set[int] = set()
    for _, update in heard:
        for dispatch in sendings.get(state.version, []):
            if dispatch not in sent:
                state.send(dispatch)
                sent.add(dispatch)
        found = state.add(update.dispatch, arrays_of(trained(by_dispatch[update.dispatch])["arrays"]))
        assert found == update
        if state.due == 2:
            state.apply()
    assert state.version == 6
    for key, array in state.weights.items():
        assert np.allclose(result.arrays[key].numpy(), array, rtol=0, atol=1e-12)
    assert {node for node, _ in heard} == {1, 2, 3}
    assert max(update.staleness for _, update in heard) >= 2, "the slow client is behind"
    assert [update.dispatch for _, update in heard] != sorted(update.dispatch for _, update in heard)


@pytest.mark.parametrize("kind", [FedBuff, FedAsync])
@pytest.mark.parametrize("concurrency", [1, 2, 3, None])
def test_so_many_clients_train_at_a_time_each_on_one_message(
    kind: type[Asynchronous], concurrency: int | None
) -> None:
    random.seed(0)
    grid, strategy = Clients({node: float(node) for node in range(1, 6)}), kind(concurrency=concurrency)
    strategy.start(grid, FIRST, num_rounds=40)
    assert grid.most == (concurrency or 5)
    numbers = [config_of(message)["dispatch"] for message in grid.sent]
    assert numbers == list(range(len(numbers)))
    assert len({message.metadata.dst_node_id for message in grid.sent}) == 5, "each has its turn"


def test_a_share_of_the_clients_trains_where_no_number_is_given() -> None:
    grid = Clients(dict.fromkeys(range(1, 11), 1.0))
    FedBuff(fraction_train=0.4, buffer_size=4).start(grid, FIRST, num_rounds=2)
    assert grid.most == 4


def test_messages_tell_round_and_number_and_expire_when_the_time_is_up() -> None:
    grid = Clients(THREE)
    FedAsync(updates_per_round=2, proximal_mu=0.01).start(
        grid, FIRST, num_rounds=3, timeout=77.0, train_config=ConfigRecord({"lr": 0.5})
    )
    assert {message.metadata.ttl for message in grid.sent} == {77.0}
    rounds = [int(str(config_of(message)["server-round"])) for message in grid.sent]
    assert rounds == sorted(rounds) and set(rounds) == {1, 2, 3}
    assert {(config_of(m)["lr"], config_of(m)["proximal-mu"]) for m in grid.sent} == {(0.5, 0.01)}
    grid = Clients(THREE)
    FedBuff(buffer_size=2).start(grid, FIRST, num_rounds=2)
    assert all("proximal-mu" not in config_of(message) for message in grid.sent)


def test_fedasync_sends_the_newest_model_after_each_update() -> None:
    grid, strategy = Clients(THREE), FedAsync(updates_per_round=3)
    heard = listening(strategy)
    strategy.start(grid, FIRST, num_rounds=2)
    assert [update.version for _, update in heard] == [0, 1, 2, 3, 4, 5]
    models = [message.content.array_records["arrays"]["w"].data for message in grid.sent]
    assert len(set(models)) == 1 + len(models) - 3, "three clients begin with the first one"


def test_the_model_is_evaluated_at_first_and_after_each_round() -> None:
    seen: list[tuple[int, bytes]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append((server_round, arrays["w"].data))
        return MetricRecord({"loss": float(server_round)})

    result = FedBuff(buffer_size=2).start(Clients(THREE), FIRST, num_rounds=3, evaluate_fn=evaluate)
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert len({model for _, model in seen}) == 4
    assert seen[-1][1] == result.arrays["w"].data
    assert {number: record["loss"] for number, record in result.evaluate_metrics_serverapp.items()} == {
        0: 0.0,
        1: 1.0,
        2: 2.0,
        3: 3.0,
    }


def test_replies_that_come_at_once_fill_one_buffer_after_the_other() -> None:
    grid = Clients(dict.fromkeys(range(1, 6), 1.0), tick=0.5)
    strategy = FedBuff(buffer_size=2)
    heard = listening(strategy)
    strategy.start(grid, FIRST, num_rounds=5)
    versions = Counter(update.version for _, update in heard)
    assert versions == dict.fromkeys(range(5), 2)
    assert len({update.dispatch for _, update in heard}) == 10, "none is used twice"


def test_a_stale_update_is_discarded_and_its_client_trains_again() -> None:
    grid, strategy = Clients({1: 1.0, 2: 1.0, 3: 9.0}), FedAsync(max_staleness=3)
    heard = listening(strategy)
    strategy.start(grid, FIRST, num_rounds=10)
    discarded = [(node, update) for node, update in heard if update.reason]
    assert {node for node, _ in discarded} == {3}
    assert strategy.state is not None and strategy.state.discarded == len(discarded) >= 1
    assert "max_staleness 3" in discarded[0][1].reason
    assert [update.version for _, update in heard if not update.reason] == list(range(30))
    assert sum(message.metadata.dst_node_id == 3 for message in grid.sent) == len(discarded) + 1


def test_a_client_that_fails_is_asked_once_in_a_round_and_the_others_go_on() -> None:
    grid, strategy = Clients({1: 1.0, 2: 1.3, 3: 0.001}), FedBuff(buffer_size=4)
    grid.failing = {3}
    heard = listening(strategy)
    strategy.start(grid, FIRST, num_rounds=3)
    assert {node for node, _ in heard} == {1, 2} and len(heard) == 12
    asked = Counter(config_of(m)["server-round"] for m in grid.sent if m.metadata.dst_node_id == 3)
    assert asked == {1: 1, 2: 1, 3: 1}


def test_another_client_takes_the_place_of_one_that_fails() -> None:
    random.seed(0)
    grid, strategy = Clients(dict.fromkeys(range(1, 7), 1.0)), FedBuff(buffer_size=6, concurrency=2)
    grid.failing = {1, 2, 3}
    result = strategy.start(grid, FIRST, num_rounds=3)
    assert result.arrays and set(strategy.updates) == set(grid.seconds)
    assert {node for node, count in strategy.updates.items() if count} == {4, 5, 6}


def test_a_client_that_never_replies_does_not_stop_the_run() -> None:
    grid, strategy = Clients(dict(THREE)), FedBuff(buffer_size=6, concurrency=3)
    grid.silent = {1, 2}
    heard = listening(strategy)
    strategy.start(grid, FIRST, num_rounds=2, timeout=0.05)
    assert {node for node, _ in heard} == {3} and len(heard) == 12
    assert strategy.state is not None and strategy.state.bases <= 1 + len(grid.silent)


def test_rounds_in_which_all_clients_fail_leave_the_model() -> None:
    grid = Clients(dict(THREE))
    grid.failing, grid.refused = {1, 2}, {3}
    evaluated: list[ArrayRecord] = []

    def evaluate(_round: int, arrays: ArrayRecord) -> None:
        evaluated.append(arrays)

    result = FedBuff().start(grid, FIRST, num_rounds=2, evaluate_fn=evaluate)
    assert not result.arrays and len(grid.sent) == 6
    assert [arrays is FIRST for arrays in evaluated] == [True] * 3


def test_updates_of_a_round_that_fails_count_in_the_next_one() -> None:
    """Client 1 replies once and then fails; in the second round the other two do not."""

    class Dying(Clients):
        def reply(self, message: Message) -> Message:
            if int(str(config_of(message)["dispatch"])) >= 3:
                self.failing = {1}
            return super().reply(message)

    grid, strategy = Dying(dict(THREE)), FedBuff(buffer_size=3)
    grid.failing = {2, 3}
    heard = listening(strategy)
    grid.seconds = {1: 1.0, 2: 0.1, 3: 0.1}
    result = strategy.start(grid, FIRST, num_rounds=2)
    assert [node for node, _ in heard[:1]] == [1]
    assert result.arrays and strategy.state is not None and strategy.state.version == 1
    assert len([update for _, update in heard if not update.reason]) == 3


ODD = {
    "no arrays": RecordDict({"metrics": MetricRecord({"num-examples": 1})}),
    "another name": RecordDict({"arrays": ArrayRecord({"v": Array(np.zeros((2, 3)))})}),
    "another shape": RecordDict(
        {"arrays": ArrayRecord({"w": Array(np.zeros((3, 2))), "n": Array(np.zeros(2, np.int64))})}
    ),
    "another dtype": RecordDict(
        {"arrays": ArrayRecord({"w": Array(np.zeros((2, 3), np.float32)), "n": Array(np.zeros(2, np.int64))})}
    ),
    "no array": RecordDict(
        {"arrays": ArrayRecord({"w": Array("float64", (2, 3), "numpy.ndarray", b"x"), "n": FIRST["n"]})}
    ),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
@pytest.mark.parametrize("kind", [FedBuff, FedAsync])
def test_a_reply_that_is_no_such_model_is_not_used(kind: type[Asynchronous], content: RecordDict) -> None:
    grid, strategy = Clients(dict(THREE)), kind()
    grid.odd = {2: content}
    heard = listening(strategy)
    result = strategy.start(grid, FIRST, num_rounds=2)
    wrong = [update.reason for node, update in heard if node == 2]
    assert wrong and all(wrong)
    assert result.arrays and all(not update.reason for node, update in heard if node != 2)


def test_metrics_are_those_of_most_replies() -> None:
    grid, strategy = Clients({1: 1.0, 2: 1.0, 3: 1.0}, tick=0.5), FedBuff(buffer_size=3)
    result = strategy.start(grid, FIRST, num_rounds=1)
    assert dict(result.train_metrics_clientapp[1]) == {"train_loss": pytest.approx(1.0)}
    other = trained(grid.sent[2])
    other["metrics"] = MetricRecord({"another": 5.0, "num-examples": 10})
    none = trained(grid.sent[1])
    none["metrics"] = MetricRecord({"train_loss": 99.0, "num-examples": 0})
    grid = Clients({1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, tick=0.5)
    grid.odd = {3: other, 2: none}
    result = FedBuff(buffer_size=4).start(grid, FIRST, num_rounds=1)
    assert dict(result.train_metrics_clientapp[1]) == {"train_loss": pytest.approx(1.5)}


@pytest.mark.parametrize("kind", [FedBuff, FedAsync])
def test_a_wrapper_that_counts_on_rounds_is_refused(kind: type[Asynchronous]) -> None:
    private = DifferentialPrivacyServerSideFixedClipping(kind(), 0.1, 1.0, 3)
    with pytest.raises(RuntimeError, match="trains in its own start"):
        private.start(Clients(THREE), FIRST, num_rounds=1)


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        (FedBuff, {"buffer_size": 0}, "buffer_size=0 is not 1 or more"),
        (FedBuff, {"concurrency": 0}, "concurrency=0"),
        (FedBuff, {"server_optimizer": "lamb"}, "server_optimizer=lamb is none of sgd, adam"),
        (FedBuff, {"server_optimizer": "adam", "server_momentum": 0.9}, "set beta_1 for adam"),
        (FedBuff, {"max_staleness": -1}, "max_staleness=-1 is not 0 or more"),
        (FedAsync, {"alpha": 0.0}, "alpha=0.0 is not a number > 0 and ≤ 1"),
        (FedAsync, {"staleness": "none"}, "staleness=none is none of constant, polynomial, hinge"),
        (FedAsync, {"updates_per_round": 0}, "updates_per_round=0 is not 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(kind: type[Asynchronous], args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**args)


def order_of(heard: list[tuple[int, Update]]) -> list[Planned]:
    return [Planned(update.dispatch, node, update.base) for node, update in heard if not update.reason]


STRATEGIES: dict[str, Any] = {
    "fedbuff": lambda: FedBuff(buffer_size=3, server_momentum=0.5),
    "fedbuff of one": lambda: FedBuff(buffer_size=1),
    "adam": lambda: FedBuff(buffer_size=4, server_optimizer="adam", server_learning_rate=0.01),
    "fedbuff of two": lambda: FedBuff(buffer_size=2),
    "fedasync": lambda: FedAsync(staleness="hinge", hinge_threshold=1),
    "fedasync of two": lambda: FedAsync(updates_per_round=2),
    "a limit": lambda: FedBuff(buffer_size=2, max_staleness=2),
}
WORLDS = {
    "the other way round": ({1: 5.0, 2: 1.7, 3: 1.0, 4: 0.3, 5: 2.0}, 0.0),
    "all at once": (dict.fromkeys(range(1, 6), 1.0), 0.5),
    "one that is very slow": ({1: 0.1, 2: 0.1, 3: 0.2, 4: 40.0, 5: 0.1}, 0.3),
}
FORMER = {  # worlds of the run whose order is repeated
    "of five speeds": ({1: 1.0, 2: 1.2, 3: 2.9, 4: 7.0, 5: 0.4}, 0.1),
    "several replies at once": ({1: 1.0, 2: 1.2, 3: 2.9, 4: 7.0, 5: 0.4}, 0.5),
    "of one speed": (dict.fromkeys(range(1, 6), 1.0), 0.5),
}


@pytest.mark.parametrize("former", FORMER)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_an_order_makes_the_same_model_whoever_comes_first(name: str, world: str, former: str) -> None:
    random.seed(3)
    strategy = STRATEGIES[name]()
    heard = listening(strategy)
    grid = Clients(*FORMER[former])
    grid.failing = {5} if name == "fedbuff" else set()
    wanted = strategy.start(grid, FIRST, num_rounds=8)
    again = STRATEGIES[name]()
    again.order = order_of(heard)
    heard_again = listening(again)
    found = again.start(Clients(*WORLDS[world]), FIRST, num_rounds=8)
    assert {key: array.data for key, array in found.arrays.items()} == {
        key: array.data for key, array in wanted.arrays.items()
    }
    assert [entry for entry in heard if not entry[1].reason] == heard_again
    if FORMER[former] != WORLDS[world]:
        free = STRATEGIES[name]().start(Clients(*WORLDS[world]), FIRST, num_rounds=8)
        assert free.arrays["w"].data != wanted.arrays["w"].data, "without the order it is another one"


def test_the_rounds_of_an_order_are_as_long_as_they_were() -> None:
    """Though fewer clients are connected when the rounds begin, and more at the first."""
    strategy = FedAsync()
    heard = listening(strategy)
    wanted = strategy.start(Clients(dict(THREE)), FIRST, num_rounds=4)
    plans = order_of(heard)
    told = [Planned(plan.dispatch, plan.node_id, plan.base, 1 + n // 3) for n, plan in enumerate(plans)]

    class Fewer(Clients):
        def get_node_ids(self) -> Iterable[int]:
            return [1, 2]

    again = FedAsync(order=told)
    found = again.start(Fewer({1: 5.0, 2: 0.3, 3: 1.0}), FIRST, num_rounds=4)
    assert found.arrays["w"].data == wanted.arrays["w"].data and again.updates.total() == 12
    with pytest.raises(RuntimeError, match="the order has 4 updates more than 4 rounds used"):
        FedAsync(order=plans).start(Fewer(dict(THREE)), FIRST, num_rounds=4)


def test_an_order_that_cannot_go_on_ends_with_an_error() -> None:
    plans = [Planned(0, 1, 0), Planned(1, 2, 7)]
    with pytest.raises(RuntimeError, match="no client has the update that is next"):
        FedBuff(buffer_size=2, order=plans).start(Clients(dict(THREE)), FIRST, num_rounds=1)


def test_an_order_ends_with_an_error_where_a_client_fails_it() -> None:
    grid = Clients(dict(THREE))
    grid.failing = {2}
    plans = [Planned(0, 1, 0), Planned(1, 2, 0)]
    with pytest.raises(RuntimeError, match="dispatch 1 of the order failed: broken"):
        FedBuff(buffer_size=2, order=plans).start(grid, FIRST, num_rounds=1)
