"""Every array strategy of this Flower can be had by name, with its own arguments; errors have remedies."""

import inspect
from typing import Any

import pytest
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from fl import strategy
from fl.strategy import StrategyError

COMMON: dict[str, Any] = {
    "fraction_train": 0.5,
    "fraction_evaluate": 1.0,
    "min_train": 3,
    "min_evaluate": 2,
    "min_available": 3,
    "learning_rate": 0.05,
    "clients": 10,
}


def build(name: str, args: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    return strategy.build(name, args or {}, **(COMMON | kwargs))


def test_no_array_strategy_of_flower_is_missing() -> None:
    everything = {
        name.lower()
        for name, kind in vars(flower).items()
        if inspect.isclass(kind) and issubclass(kind, flower.Strategy) and kind is not flower.Strategy
    }
    trees = {name for name in everything if name.startswith("fedxgb")}
    privacy = {kind.__name__.lower() for kind in strategy.PRIVACY.values()}
    assert everything - trees - privacy == set(strategy.STRATEGIES)
    assert len(trees) == 2 and len(privacy) == 4


@pytest.mark.parametrize("name", strategy.STRATEGIES)
def test_each_strategy_is_built_with_the_runs_sampling(name: str) -> None:
    built = build(name)
    assert type(built) is strategy.STRATEGIES[name]
    assert (built.fraction_train, built.min_train_nodes, built.min_available_nodes) == (0.5, 3, 3)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("fedavgm", {"server_learning_rate": 0.5, "server_momentum": 0.9}),
        ("fedprox", {"proximal_mu": 0.1}),
        ("fedadagrad", {"eta": 0.2, "tau": 0.01}),
        ("fedadam", {"eta": 0.2, "beta_1": 0.8, "beta_2": 0.9}),
        ("fedyogi", {"eta_l": 0.2}),
        ("fedtrimmedavg", {"beta": 0.1}),
        ("krum", {"num_malicious_nodes": 1}),
        ("multikrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 2}),
        ("bulyan", {"num_malicious_nodes": 0}),
        ("qfedavg", {"q": 0.3}),
    ],
)
def test_a_strategys_own_arguments_reach_it(name: str, args: dict[str, float]) -> None:
    built = build(name, args)
    assert {key: getattr(built, key) for key in args} == args


def test_qfedavg_takes_the_clients_learning_rate_unless_told_another() -> None:
    assert build("qfedavg").client_learning_rate == 0.05
    assert build("qfedavg", {"client_learning_rate": 0.2}).client_learning_rate == 0.2


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("fedfoo", {}, "unknown strategy 'fedfoo'; did you mean"),
        ("sgd", {}, "It can be: fedavg, fedavgm, fedprox"),
        ("fedxgbbagging", {}, "merges the trees of XGBoost"),
        ("fedavg", {"beta": 1}, "strategy fedavg has no argument beta: it takes none"),
        ("fedprox", {"proximal_nu": 1}, "did you mean proximal_mu"),
        ("fedprox", {"proximal_mu": "1"}, "proximal_mu=1 is not a number ≥ 0"),
        ("fedprox", {"proximal_mu": True}, "proximal_mu=True is not a number ≥ 0"),
        ("fedtrimmedavg", {"beta": 0.6}, "beta=0.6 is not a number ≥ 0 and < 0.5: {'beta': 0.2} would work"),
        ("multikrum", {"num_nodes_to_select": 1.5}, "num_nodes_to_select=1.5 is not a whole number ≥ 1"),
        ("multikrum", {"num_nodes_to_select": 6}, "needs 6 replies, and a round may have 5"),
        ("krum", {"num_malicious_nodes": 2}, "needs 7 replies, and a round may have 5"),
        ("krum", {"num_malicious_nodes": -1}, "num_malicious_nodes=-1 is not a whole number ≥ 0"),
        ("fedadam", {"beta_1": 1}, "beta_1=1 is not a number ≥ 0 and < 1"),
        ("fedadam", {"eta": float("nan")}, "eta=nan is not a number > 0"),
        ("qfedavg", {"client_learning_rate": 0}, "client_learning_rate=0 is not a number > 0"),
        ("bulyan", {"num_malicious_nodes": 1}, "set min_train_clients to 7"),
        ("bulyan", {"selection_rule": 1}, "no argument selection_rule"),
        ("fedavg", {"weighted_by_key": "loss"}, "no argument"),
    ],
)
def test_a_wrong_strategy_is_refused_with_a_remedy(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        build(name, args)


def test_a_privacy_wrapper_knows_how_many_clients_are_sampled() -> None:
    fixed = {"noise_multiplier": 0.1, "clipping_norm": 2.0}
    built = build("fedadam", dp="server-fixed", dp_args=fixed)
    assert isinstance(built, flower.DifferentialPrivacyServerSideFixedClipping)
    assert isinstance(built.strategy, flower.FedAdam)
    assert (built.num_sampled_clients, built.clipping_norm) == (5, 2.0)
    assert (
        build("fedavg", dp="server-fixed", dp_args=fixed | {"num_sampled_clients": 7}).num_sampled_clients
        == 7
    )


@pytest.mark.parametrize(
    ("dp", "args", "message"),
    [
        ("server", {}, "unknown dp 'server'; did you mean 'server-fixed'"),
        ("server-fixed", {"clipping_norm": 1}, "needs noise_multiplier"),
        (
            "server-fixed",
            {"noise_multiplier": 1, "clipping_norm": -1},
            "clipping_norm=-1 is not a number > 0",
        ),
        (
            "server-fixed",
            {"noise_multiplier": -1, "clipping_norm": 1},
            "noise_multiplier=-1 is not a number ≥",
        ),
        ("client-fixed", {"noise_multiplier": 1, "clipping_norm": 1, "num_sampled_clients": 0.5}, "whole"),
        (
            "server-adaptive",
            {"noise_multiplier": 9},
            "needs a clipped_count_stddev above 4.5, and that is 0.25",
        ),
        (
            "client-fixed",
            {"noise_multiplier": 1, "clip_norm": 1},
            "no argument clip_norm: did you mean clipping_norm",
        ),
        ("local", {"epsilon": 1}, "needs clipping_norm, sensitivity, delta"),
        ("local", {"clipping_norm": 1, "sensitivity": 1, "epsilon": 0, "delta": 0.1}, "epsilon=0 is not"),
        ("local", {"clipping_norm": 1, "sensitivity": 1, "epsilon": 1, "delta": 2}, "delta=2 is not"),
        ("", {"epsilon": 1}, "dp is empty"),
    ],
)
def test_wrong_privacy_is_refused_with_a_remedy(dp: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        build("fedavg", dp=dp, dp_args=args)


def record(examples: int, **metrics: float) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"num-examples": examples, **metrics})})


def test_every_metric_is_averaged_by_the_number_of_examples() -> None:
    averaged = strategy.weighted_average(
        [
            record(30, loss=1.0, accuracy=0.5),
            record(10, loss=3.0, accuracy=0.9),
            record(0, loss=9.0, accuracy=0.0),
        ],
        "num-examples",
    )
    assert dict(averaged) == pytest.approx({"loss": 1.5, "accuracy": 0.6})


def test_no_examples_at_all_give_no_metrics() -> None:
    assert dict(strategy.weighted_average([record(0, loss=0.0)], "num-examples")) == {}
