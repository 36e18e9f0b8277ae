"""Partial work: a slow client makes as many steps as fit into a round, and its reply counts for those."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fl import server_app, strategy, work
from tests.unit.fl_runs import MANIFEST, LocalGrid, Start, changed, of, sha, with_metrics

SLOW = 905  # the node of lab-0
EXAMPLES = 100  # of each client: three have 300
FULL = 2 * 4  # steps of two epochs, of 32 examples at most


@pytest.fixture
def as_serverapp(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("_run_id", "_node_id", "_task_id"):  # Flower sets these in a ServerApp's process
        monkeypatch.setattr(TaskIdentity, key, 1)


def slow(_node: int, message: Message, reply: Message) -> Message:
    """One client says that it makes one step in two seconds, after one in which it loads."""
    if message.metadata.message_type != "train" or message.metadata.dst_node_id != SLOW:
        return reply
    told = {work.SPEED: 0.5, work.SETUP: 1.0}
    return changed(reply, message, metrics=with_metrics(reply, **told))


def told(grid: LocalGrid) -> list[tuple[int, int, float]]:
    return [
        (message.metadata.dst_node_id, int(config[work.STEPS]), float(config[work.SECONDS]))
        for message in grid.sent
        if message.metadata.message_type == "train"
        for config in [message.content.config_records["config"]]
    ]


def trained(journal: list[dict[str, Any]], client: str) -> list[tuple[int, int, int]]:
    events = [e for e in of(journal, "reply", phase="train") if e["client"] == client]
    return [(e["metrics"]["steps"], e["metrics"]["examples_processed"], e["examples"]) for e in events]


def test_a_slow_client_makes_the_steps_that_fit_from_the_second_round_on(start: Start) -> None:
    journal, grid = start(answer=slow, local_epochs=2, round_work=12.0, num_server_rounds=3)
    assert journal[-1]["status"] == "completed"
    first, *later = [steps for node, steps, _ in told(grid) if node == SLOW]
    assert (first, later) == (0, [4, 4]), "0.9 of (12 - 1) seconds at half a step a second"
    assert {seconds for _, _, seconds in told(grid)} == {12.0}
    # 100 examples are batches of 32, 32, 32, 4: four steps are one epoch of two.
    assert trained(journal, "lab-0") == [(FULL, 200, 100), (4, 100, 50), (4, 100, 50)]
    assert set(trained(journal, "lab-1")) == {(FULL, 200, 100)}
    assert all(steps > FULL for node, steps, _ in told(grid)[3:] if node != SLOW)


def test_the_model_is_the_average_by_the_examples_that_were_processed(start: Start) -> None:
    models: list[tuple[np.ndarray, int]] = []

    def keep(node: int, message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            (array,) = reply.content.array_records["arrays"].to_numpy_ndarrays()
            count = int(reply.content.metric_records["metrics"]["num-examples"])
            models.append((array, count))
        return slow(node, message, reply)

    _, grid = start(answer=keep, local_epochs=2, round_work=12.0, num_server_rounds=2)
    last = models[-3:]
    assert sorted(count for _, count in last) == [50, 100, 100]
    expected = sum(array * count for array, count in last) / 250
    (found,) = grid.sent[-1].content.array_records["arrays"].to_numpy_ndarrays()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fedprox_counts_partial_work_as_all_of_it(start: Start) -> None:
    """As its paper does: the weight is the share of the data."""
    settings = {"strategy": "fedprox", "strategy_args": '{"proximal_mu": 0.1}', "local_epochs": 2}
    journal, grid = start(answer=slow, round_work=12.0, num_server_rounds=2, **settings)
    assert trained(journal, "lab-0") == [(FULL, 200, 100), (4, 100, 100)]
    assert {float(m.content.config_records["config"]["proximal-mu"]) for m in grid.sent[:3]} == {0.1}


def test_a_client_of_unknown_speed_stops_by_the_clock(start: Start) -> None:
    journal, _ = start(local_epochs=2, round_work=1e-6, num_server_rounds=2)
    assert journal[-1]["status"] == "completed"
    for client in ("lab-0", "lab-1", "lab-2"):
        assert trained(journal, client) == [(1, 32, 16)] * 2, "one step at least"


def test_where_nobody_is_slow_the_model_is_that_of_a_run_without_a_limit(start: Start) -> None:
    plain, _ = start(local_epochs=2)
    limited, _ = start(local_epochs=2, round_work=3600.0)
    assert sha(plain) == sha(limited)
    assert not {"steps", work.SPEED} & of(plain, "reply", phase="train")[0]["metrics"].keys()


def test_the_speed_in_the_records_is_that_of_what_was_processed(start: Start) -> None:
    journal, _ = start(answer=slow, local_epochs=2, round_work=12.0, num_server_rounds=2)
    for event in of(journal, "reply", phase="train"):
        system, done = event["system"], event["metrics"]["examples_processed"]
        assert system["samples_per_second"] == pytest.approx(done / system["train_seconds"])


def test_privacy_that_counts_on_equal_shares_is_refused() -> None:
    run = {**MANIFEST["tool"]["flwr"]["app"]["config"], "round-work": 30.0}
    assert server_app.build_strategy(run, 3).pace is not None
    run |= {"dp": "server-fixed", "dp-args": '{"noise_multiplier": 0.1, "clipping_norm": 5}'}
    with pytest.raises(strategy.StrategyError, match="equal shares, and partial work makes them unequal"):
        server_app.build_strategy(run, 3)
    assert server_app.build_strategy({**run, "round-work": 0.0}, 3).pace is None


@pytest.mark.parametrize(
    ("speed", "setup"),
    [
        *((speed, 0.0) for speed in (math.nan, math.inf, 1e300, 0.0, -1.0)),
        *((1.0, setup) for setup in (math.nan, math.inf, -1e12)),
    ],
)
def test_a_speed_that_cannot_be_is_not_believed(start: Start, speed: float, setup: float) -> None:
    def lies(node: int, message: Message, reply: Message) -> Message:
        if node != SLOW or message.metadata.message_type != "train":
            return reply
        figures = {work.SPEED: speed, work.SETUP: setup}
        return changed(reply, message, metrics=with_metrics(reply, **figures))

    journal, grid = start(answer=lies, round_work=60.0, allow_nonfinite=True)
    assert journal[-1]["status"] == "completed"
    assert [steps for node, steps, _ in told(grid) if node == SLOW] == [0, 0]


def test_the_first_reply_of_a_client_tells_its_speed(as_serverapp: None) -> None:
    def reply(node: int, speed: float) -> Message:
        sent = Message(RecordDict(), node, "train")
        told = MetricRecord({work.SPEED: speed, work.SETUP: 0.5})
        return Message(RecordDict({"metrics": told}), reply_to=sent)

    pace = work.Pace(60.0)
    pace.learn([reply(1, 5.0), reply(2, 7.0), reply(1, 1.0)])
    assert pace.speeds == {1: work.Speed(5.0, 0.5), 2: work.Speed(7.0, 0.5)}
    pace.learn([reply(1, 0.0), reply(1, 4.0)])
    assert pace.speeds[1] == work.Speed(4.0, 0.5), "one that is nonsense is none"


def test_the_name_of_a_strategy_in_any_case_weighs_alike(start: Start) -> None:
    config = {"round_work": 60.0, "num_server_rounds": 2}
    named = [start(answer=slow, strategy=name, **config)[0] for name in ("fedprox", "FedProx")]
    assert len({sha(journal) for journal in named}) == 1
    examples = [[event["examples"] for event in of(journal, "reply")] for journal in named]
    assert examples[0] == examples[1]


@pytest.mark.parametrize(
    ("speed", "setup", "seconds", "steps"),
    [(2.0, 5.0, 15.0, 18), (0.01, 0.0, 10.0, 1), (5.0, 20.0, 10.0, 1), (1000.0, 0.5, 1.5, 900)],
)
def test_steps_are_those_that_fit_and_one_at_least(
    speed: float, setup: float, seconds: float, steps: int
) -> None:
    assert work.Speed(speed, setup).steps_in(seconds) == steps


@pytest.mark.parametrize(
    ("processed", "epochs", "count"), [(200, 2, 100), (100, 2, 50), (1, 4, 1), (33, 2, 16), (300, 3, 100)]
)
def test_the_weight_is_the_examples_processed_by_the_epochs(processed: int, epochs: int, count: int) -> None:
    assert work.weight("fedavg", 100, processed, epochs) == count
    assert work.weight("fedprox", 100, processed, epochs) == 100
