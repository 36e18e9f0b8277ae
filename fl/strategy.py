"""Flower's strategies by name, each with its own arguments, and its differential-privacy wrappers."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fl import arguments

STRATEGIES: dict[str, type[Strategy]] = {
    kind.__name__.lower(): kind
    for kind in (
        flower.FedAvg,
        flower.FedAvgM,
        flower.FedProx,
        flower.FedAdagrad,
        flower.FedAdam,
        flower.FedYogi,
        flower.FedMedian,
        flower.FedTrimmedAvg,
        flower.Krum,
        flower.MultiKrum,
        flower.Bulyan,
        flower.QFedAvg,
    )
}
PRIVACY: dict[str, type[Strategy]] = {
    "server-fixed": flower.DifferentialPrivacyServerSideFixedClipping,
    "server-adaptive": flower.DifferentialPrivacyServerSideAdaptiveClipping,
    "client-fixed": flower.DifferentialPrivacyClientSideFixedClipping,
    "client-adaptive": flower.DifferentialPrivacyClientSideAdaptiveClipping,
}
LOCAL = "local"  # noise and clipping are the client's; the server's strategy stays as it is


class StrategyError(ValueError):
    """A strategy, or an argument of one, that cannot work; the message says what can."""


def build(
    name: str,
    args: Mapping[str, Any],
    *,
    fraction_train: float,
    fraction_evaluate: float,
    min_train: int,
    min_evaluate: int,
    min_available: int,
    learning_rate: float,
    clients: int,
    dp: str = "",
    dp_args: Mapping[str, Any] | None = None,
) -> Strategy:
    """Make a strategy.

    Parameters
    ----------
    name : str
        Lower-case name of the class in Flower, e.g. `fedavg`.
    args : mapping
        The strategy's own arguments, e.g. `{"proximal_mu": 0.1}`.
    learning_rate : float
        The clients'; q-FedAvg estimates a Lipschitz constant from it, unless `args` says otherwise.
    clients : int
        How many clients there are: the privacy wrappers scale their noise with the number sampled.
    dp, dp_args : str, mapping
        One of PRIVACY, `local` or empty, and the wrapper's arguments.
    """
    name = name.lower()
    if name.startswith("fedxgb"):
        raise StrategyError(
            f"{name} merges the trees of XGBoost models, and the models here are neural networks: "
            "choose another strategy, or run an XGBoost app of your own with -e app=DIR"
        )
    if name not in STRATEGIES:
        raise StrategyError(f"unknown strategy {name!r}{_nearest(name, list(STRATEGIES))}")
    kind: Callable[..., Strategy] = STRATEGIES[name]
    own = dict(args)
    _refuse(arguments.judge(f"strategy {name}", arguments.STRATEGIES[name], own))
    sampled = max(int(clients * fraction_train), min_train)
    _check_replies(name, own, sampled, min_train)
    if name == "qfedavg":
        own.setdefault("client_learning_rate", learning_rate)
    try:
        strategy = kind(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train,
            min_evaluate_nodes=min_evaluate,
            min_available_nodes=min_available,
            train_metrics_aggr_fn=weighted_average,
            evaluate_metrics_aggr_fn=weighted_average,
            **own,
        )
    except (TypeError, ValueError) as error:
        raise StrategyError(f"strategy {name}: {error}") from None
    return _with_privacy(strategy, dp, dp_args or {}, sampled)


def _with_privacy(strategy: Strategy, dp: str, dp_args: Mapping[str, Any], sampled: int) -> Strategy:
    if not dp:
        if dp_args:
            raise StrategyError("dp_args are given, but dp is empty: say which wrapper they are for")
        return strategy
    if dp not in arguments.PRIVACY:
        raise StrategyError(f"unknown dp {dp!r}{_nearest(dp, list(arguments.PRIVACY))}")
    _refuse(arguments.judge_privacy(dp, dp_args, sampled))
    if dp == LOCAL:
        return strategy
    wrapper: Callable[..., Strategy] = PRIVACY[dp]
    try:
        return wrapper(strategy=strategy, **{"num_sampled_clients": sampled, **dp_args})
    except (TypeError, ValueError) as error:
        raise StrategyError(f"dp {dp}: {error}") from None


def _check_replies(name: str, args: Mapping[str, Any], sampled: int, min_train: int) -> None:
    need, least = arguments.replies_needed(name, args), arguments.least_replies(name, sampled, min_train)
    if least < need:
        raise StrategyError(
            f"{name} with {dict(args)} needs {need} replies, and a round may have {least}: "
            f"set min_train_clients to {need} at least"
        )


def _refuse(problems: Sequence[arguments.Problem]) -> None:
    if problems:
        raise StrategyError(arguments.together(problems))


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} It can be: {', '.join(known)}"


def weighted_average(records: list[RecordDict], key: str) -> MetricRecord:
    """Average every metric, weighted by the number of examples; clients without any count for nothing."""
    counted = [record for record in records if next(iter(record.metric_records.values()))[key]]
    return aggregate_metricrecords(counted, key) if counted else MetricRecord()
