"""Strategies by name, each with its own arguments, and Flower's differential-privacy wrappers."""

import difflib
import importlib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result, Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fl import arguments, model, work

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
# Strategies of other packages, imported when a run asks for one: all others work without that package.
ELSEWHERE = {"fedbuff": "coldframe.strategies:FedBuff", "fedasync": "coldframe.strategies:FedAsync"}
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
        One of STRATEGIES or ELSEWHERE: the lower-case name of the class, e.g. `fedavg`.
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
    if name not in {**STRATEGIES, **ELSEWHERE}:
        raise StrategyError(f"unknown strategy {name!r}{_nearest(name, [*STRATEGIES, *ELSEWHERE])}")
    own = dict(args)
    _refuse(arguments.judge(f"strategy {name}", arguments.STRATEGIES[name], own))
    _refuse(arguments.judge_asynchronous(name, dp))
    kind: Callable[..., Strategy] = STRATEGIES.get(name) or _imported(name)
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


def _imported(name: str) -> type[Strategy]:
    module, _, attribute = ELSEWHERE[name].partition(":")
    try:
        kind: type[Strategy] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        package = module.partition(".")[0]
        raise StrategyError(
            f"strategy {name} is part of the package {package}, which cannot be imported here ({error}):"
            f" choose another strategy, or install {package} where the ServerApp runs"
        ) from None
    return kind


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


class Reproducible(Strategy):
    """Wraps a strategy: what it draws follows the run's seed, and its model travels as one array per dtype.

    Parameters
    ----------
    strategy : Strategy
        One that `build` has made.
    finite : bool
        Whether a model with NaN or infinite values ends the run.
    work_seconds : float
        That each client has for its work in a round; 0: each does all of it.
    """

    def __init__(self, strategy: Strategy, seed: int, finite: bool = True, work_seconds: float = 0.0) -> None:
        self.strategy, self.seed, self.finite = strategy, seed, finite
        self.pace = work.Pace(work_seconds) if work_seconds else None
        # Of the model in hand. A function, so that no checkpoint holds that model a second time.
        self._unpack: Callable[..., OrderedDict[str, torch.Tensor]] = partial(model.unpack, like={})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Seed what the strategy samples with (the module `random`) and draws noise with (numpy)."""
        random.seed(f"{self.seed} {server_round} train")
        np.random.seed((self.seed * 1_000_003 + server_round) % 2**32)
        messages = self.strategy.configure_train(server_round, self._pack(arrays), config, grid)
        return self.pace.assign(messages) if self.pace else messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new model, unless the strategy made none: then the old one stays.

        Raises
        ------
        FloatingPointError
            If it has NaN or infinite values, and must not.
        """
        replies = list(replies)
        if self.pace:
            self.pace.learn(replies)
        packed, metrics = self.strategy.aggregate_train(server_round, replies)
        if not packed:
            return None, metrics
        state = self._unpack({key: array.numpy() for key, array in packed.items()})
        if self.finite and not all(torch.isfinite(tensor).all() for tensor in state.values()):
            raise FloatingPointError(
                f"in round {server_round} the aggregated model is NaN or infinite. Lower learning_rate or"
                " clip (fl_dp); allow_nonfinite=true goes on all the same"
            )
        return ArrayRecord(state), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Seed what the strategy samples with."""
        random.seed(f"{self.seed} {server_round} evaluate")
        return self.strategy.configure_evaluate(server_round, self._pack(arrays), config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the clients' metrics."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log what the strategy is."""
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Train for all rounds: a strategy with a `start` of its own in that, through this wrapper."""
        options = (num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
        if type(self.strategy).start is Strategy.start:
            return super().start(grid, initial_arrays, *options)
        inner: Any = self.strategy
        result: Result = inner.start(grid, initial_arrays, *options, wrapper=self)
        return result

    def _pack(self, arrays: ArrayRecord) -> ArrayRecord:
        state = arrays.to_torch_state_dict()
        self._unpack = partial(model.unpack, like=state)
        return ArrayRecord({key: Array(array) for key, array in model.pack(state).items()})
