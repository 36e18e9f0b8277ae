"""Tells the recorder what an app's strategy does: Flower's, one derived from them, or one of the legacy API.

The methods are wrapped on the classes that define them, existing ones in place and later ones as they are
made; so what compares methods of classes (the accounting of differential privacy does) finds the same
function. Of nested calls the outermost counts: that of an override which calls `super()`, of a strategy that
wraps another.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp.strategy import Strategy

from coldframe.recording.checkpoint import Checkpoints
from coldframe.recording.policy import Policy
from coldframe.recording.replay import NO_ORDER, ReplayError
from coldframe.recording.rounds import (
    EVALUATED,
    SERVER,
    TRAINED,
    Configuring,
    Recorder,
    innermost,
)
from coldframe.recording.updates import HOOK
from coldframe.strategies.asynchronous import Planned

Hook = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


def least(strategy: Any, phase: str) -> int:
    """Return how many clients a strategy of Flower needs for a phase; 0 where it does not say."""
    found = [getattr(innermost(strategy), f"min_{name}_nodes", 0) for name in ("available", phase)]
    return max(value if isinstance(value, int) else 0 for value in found)


class Probes:
    """Wrappers for the strategies of this process.

    Parameters
    ----------
    order : callable, optional
        Returns the order in which an asynchronous strategy is to use its updates.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        policy: Policy | None = None,
        order: Callable[[], list[Planned]] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.recorder = recorder
        self.policy = policy
        self.order = order
        self.replays = False  # a strategy has been given the order
        self.checkpoints = checkpoints
        self._inside = threading.local()
        self._replaced: list[tuple[Any, str, Any]] = []  # where, name, what was there

    def install(self) -> None:
        """Wrap all strategies that are there, and those to come."""
        shared = {
            "configure_evaluate": self.configure("evaluate"),
            "aggregate_evaluate": self.aggregate("evaluate"),
        }
        message_api = {
            "start": self.start,
            "configure_train": self.configure("train"),
            "aggregate_train": self.aggregate("train"),
            HOOK: self.update,
            **shared,
        }
        legacy = {
            "configure_fit": self.configure("train"),
            "aggregate_fit": self.aggregate("train"),
            "evaluate": self.evaluate,
            **shared,
        }
        self._watch(Strategy, message_api)
        self._watch(LegacyStrategy, legacy)
        self._watch_legacy_servers()

    def remove(self) -> None:
        """Put back what was there."""
        while self._replaced:
            place, name, before = self._replaced.pop()
            if before is None:
                delattr(place, name)
            else:
                setattr(place, name, before)

    def _replace(self, place: Any, name: str, new: Any) -> None:
        self._replaced.append((place, name, vars(place).get(name)))
        setattr(place, name, new)

    def _watch(self, base: type, hooks: Mapping[str, Hook]) -> None:
        def wrap(kind: type) -> None:
            for name, hook in hooks.items():
                method = vars(kind).get(name)
                if inspect.isfunction(method) and not getattr(method, "__isabstractmethod__", False):
                    self._replace(kind, name, self._outermost(name, method, hook))

        for kind in (base, *_descendants(base)):
            wrap(kind)

        def init_subclass(kind: type, **kwargs: Any) -> None:
            super(base, kind).__init_subclass__(**kwargs)  # type: ignore[arg-type]
            wrap(kind)

        self._replace(base, "__init_subclass__", classmethod(init_subclass))

    def _outermost(self, name: str, method: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(strategy: Any, *args: Any, **kwargs: Any) -> Any:
            if name in vars(self._inside):
                return method(strategy, *args, **kwargs)
            with self._within(name):
                return hook(method, strategy, args, kwargs)

        return call

    @contextmanager
    def _within(self, name: str) -> Iterator[None]:
        setattr(self._inside, name, True)
        try:
            yield
        finally:
            delattr(self._inside, name)

    # What is recorded of each method.

    def start(
        self, method: Callable[..., Any], strategy: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Note the strategy and its rounds, and the server's evaluation."""
        self.recorder.begin_strategy()
        if self.policy is not None:
            self.policy.late_work.close()  # it belongs to the model of the strategy before
        if self.order is not None:
            if not hasattr(inner := innermost(strategy), "order"):
                raise ReplayError(NO_ORDER)
            inner.order, self.replays = self.order(), True
        try:
            bound = inspect.signature(method).bind(strategy, *args, **kwargs)
        except TypeError:
            return method(strategy, *args, **kwargs)  # which says what is wrong
        bound.apply_defaults()
        given = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        self.recorder.plan(strategy, given.get("num_rounds"))
        earlier = self.checkpoints.first_arrays() if self.checkpoints is not None else None
        if isinstance(first := given.get("initial_arrays"), ArrayRecord):
            self.recorder.model = earlier or first
        for where in (bound.arguments, bound.arguments.get("kwargs", {})):
            if earlier is not None and "initial_arrays" in where:
                where["initial_arrays"] = earlier
            if callable(where.get("evaluate_fn")):
                where["evaluate_fn"] = self.evaluates(where["evaluate_fn"])
        found = method(*bound.args, **bound.kwargs)
        self.recorder.end_round()
        if self.checkpoints is not None:
            self.checkpoints.end_strategy()
        return found

    def evaluates(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Record what a strategy's `evaluate_fn` returns."""

        @functools.wraps(function)
        def evaluate(server_round: int, *args: Any, **kwargs: Any) -> Any:
            checkpoints = self.checkpoints
            if checkpoints is not None and checkpoints.is_past(None, server_round):
                return checkpoints.past_metrics("server", server_round)
            self.recorder.enter(server_round)
            with self._timed("server_evaluate"):
                metrics = function(server_round, *args, **kwargs)
            self.recorder.told("server", SERVER, metrics or {})
            if checkpoints is not None:
                checkpoints.told("server", server_round, metrics)
            return metrics

        return evaluate

    def configure(self, phase: str) -> Hook:
        """Record that a round begins or goes on; of the legacy API also who will be asked, one by one."""

        def hook(method: Any, strategy: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            number = _round_of(args, kwargs)
            if self._is_past(strategy, number):
                return []
            self.recorder.enter(number)
            if self.checkpoints is not None:
                args, kwargs = self.checkpoints.configuring(phase, strategy, number, args, kwargs)
            with self._timed("configure"), self._choosing(strategy, phase):
                found = method(strategy, *args, **kwargs)
            if self.policy is not None:
                self.policy.configured(strategy)
            if isinstance(strategy, LegacyStrategy) and found:
                self.recorder.announce(phase, [proxy.node_id for proxy, _ in found])
            return found

        return hook

    def aggregate(self, phase: str) -> Hook:
        """Record the aggregate: the model and the clients' metrics."""

        def hook(method: Any, strategy: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            number, checkpoints = _round_of(args, kwargs), self.checkpoints
            if checkpoints is not None and self._is_past(strategy, number):
                return self._past(checkpoints, phase, number or 0)
            self.recorder.enter(number)
            if phase == "train" and self.policy is not None and self.policy.take_void():
                return None, None  # as a strategy does that has no replies
            with self._timed("aggregate"):
                found = method(strategy, *args, **kwargs)
            legacy = isinstance(strategy, LegacyStrategy)
            if not legacy and phase == "evaluate":
                self.recorder.told("evaluate", EVALUATED, found or {})
                if checkpoints is not None:
                    checkpoints.told("evaluate", number, found)
            elif not isinstance(found, tuple) or len(found) != 2:
                pass  # not what Flower asks for: whoever called it will say so
            elif phase == "train":
                arrays, metrics = found
                if arrays and self.policy is not None:
                    self.policy.aggregated()
                self.recorder.aggregated(strategy, arrays)
                self.recorder.told("train", TRAINED, metrics or {})
                if checkpoints is not None and not legacy:
                    checkpoints.aggregated(arrays)
                    checkpoints.told("train", number, metrics)
            else:
                loss, metrics = found
                known = {} if loss is None else {"loss": loss}
                self.recorder.told("evaluate", EVALUATED, {**(metrics or {}), **known})
            return found

        return hook

    def update(
        self, method: Callable[..., Any], strategy: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record what an asynchronous strategy did with a reply."""
        found = method(strategy, *args, **kwargs)
        self.recorder.updated(*args, **kwargs)
        return found

    def _is_past(self, strategy: Any, number: int | None) -> bool:
        """Whether a resumed run has had a round before: no client is asked then, and nothing is recorded."""
        if self.checkpoints is None or not isinstance(strategy, Strategy):
            return False
        return self.checkpoints.is_past(strategy, number)

    def _past(self, checkpoints: Checkpoints, phase: str, number: int) -> Any:
        """Return what a strategy has aggregated in a round that a resumed run has had before."""
        metrics = checkpoints.past_metrics(phase, number)
        if phase != "train":
            return metrics
        arrays = checkpoints.past_arrays()
        if arrays is not None:
            self.recorder.model = arrays
        return arrays, metrics

    def evaluate(
        self, method: Callable[..., Any], strategy: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the legacy strategy's evaluation on the server."""
        self.recorder.enter(_round_of(args, kwargs))
        with self._timed("server_evaluate"):
            found = method(strategy, *args, **kwargs)
        if found is not None:
            loss, metrics = found
            self.recorder.told("server", SERVER, {**(metrics or {}), "loss": loss})
        return found

    @contextmanager
    def _choosing(self, strategy: Any, phase: str) -> Iterator[None]:
        """Have the grid wait, but not for ever, for the clients that a strategy needs, and name them."""
        required = least(strategy, phase)
        if required and isinstance(strategy, Strategy):
            self.recorder.configuring = Configuring(required)
        try:
            yield
        finally:
            self.recorder.configuring = None

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.recorder.timed(phase, time.monotonic() - start)

    def _watch_legacy_servers(self) -> None:
        """Note the rounds that the legacy servers plan; and sort what their threads bring in any order."""
        from flwr.server import server
        from flwr.server.compat import app
        from flwr.server.workflow import DefaultWorkflow

        run_fl, run_workflow = app.run_fl, DefaultWorkflow.__call__
        recorder = self.recorder

        def run_fl_(server: Any, config: Any) -> Any:
            recorder.plan(server.strategy, config.num_rounds)
            return run_fl(server=server, config=config)

        def run_workflow_(workflow: Any, grid: Any, context: Any) -> None:
            recorder.plan(context.strategy, context.config.num_rounds)
            run_workflow(workflow, grid, context)

        def in_order(collect: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(collect)
            def call(*args: Any, **kwargs: Any) -> Any:
                results, failures = collect(*args, **kwargs)
                return sorted(results, key=lambda result: recorder.order(result[0].node_id)), failures

            return call

        self._replace(app, "run_fl", run_fl_)
        self._replace(DefaultWorkflow, "__call__", run_workflow_)
        for name in ("fit_clients", "evaluate_clients"):
            self._replace(server, name, in_order(vars(server)[name]))


def _descendants(kind: type) -> Iterator[type]:
    children: list[type] = kind.__subclasses__()
    for child in children:
        yield child
        yield from _descendants(child)


def _round_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    number = kwargs.get("server_round", args[0] if args else None)
    return number if isinstance(number, int) else None
