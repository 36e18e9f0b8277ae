"""Keeps `torch._dynamo` from being imported by tasks that compile nothing.

torch's optimizers import the compiler when they are made, only to tell it to keep off them: 1.2 s of CPU, 70
MB and 800 modules in every client, whose owner has asked for half a core and half a gigabyte. A `StandIn`
takes the compiler's place in `sys.modules` and answers the two calls that optimizers make as the compiler
would while nothing is being compiled. Any other use, by torch or by an app (`torch.compile`,
`torch._dynamo.reset`, an import of a submodule), brings the real one, which then takes its own place.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

NAME = "torch._dynamo"


class StandIn(types.ModuleType):
    """`torch._dynamo` until it is needed."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(NAME)
        # What is read of any module that is there, by whoever walks through all of them: not a use.
        self.__spec__ = spec
        self.__file__ = spec.origin

    def disable(self, fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """Return ``fn``, which the compiler is told to keep off once there is one."""
        if fn is None or not isinstance(fn, types.FunctionType):
            return real().disable(fn, *args, **kwargs)
        disabled: Callable[..., Any] | None = None

        @functools.wraps(fn)
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal disabled
            if not is_loaded():
                return fn(*arguments, **keywords)
            if disabled is None:
                disabled = real().disable(fn, *args, **kwargs)
            return disabled(*arguments, **keywords)

        return call

    @staticmethod
    def graph_break(*args: Any, **kwargs: Any) -> None:
        """Do nothing: no graph is being captured."""
        if is_loaded():
            real().graph_break(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(real(), name)


def is_loaded() -> bool:
    """Say whether the real compiler has been imported."""
    return not isinstance(sys.modules.get(NAME), StandIn)


def real() -> Any:
    """Return the real compiler, imported now if it was not before."""
    if not is_loaded():
        del sys.modules[NAME]
    module = importlib.import_module(NAME)
    torch: Any = sys.modules["torch"]
    torch._dynamo = module
    return module


def install() -> None:
    """Put the stand-in where torch is loaded and its compiler is not."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and NAME not in sys.modules:
        spec = importlib.util.find_spec(NAME)
        if spec is not None:
            sys.modules[NAME] = torch._dynamo = StandIn(spec)
