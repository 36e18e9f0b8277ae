"""Has an app import torchvision beside a CPU build of torch that it was not compiled for.

torchvision's wheels from the general package index link CUDA libraries. Beside a CPU torch its C++ extension
is skipped, but fake kernels for the operators `nms` and `qnms` are registered all the same, and the import
fails because nobody declared them. With both declared it succeeds: datasets, transforms and models work,
`ops.nms` and `io.decode_image` do not. With the torchvision of PyTorch's CPU index the first attempt succeeds
and nothing is declared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[Any] = []  # a library's declarations live as long as the object


class SecondAttempt(Loader):
    """Loads torchvision, once more with its operators declared if that is what the first attempt lacks."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        """Return what else the loader has, for who reads files of the package."""
        return getattr(self._inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make the module as usual."""
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        try:
            self._inner.exec_module(module)
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]  # half-imported by the first attempt
            declare()
            self._inner.exec_module(module)


class Finder(MetaPathFinder):
    """Finds torchvision where it is; everything else is left to others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the package with a loader that tries again."""
        if fullname != "torchvision":
            return None
        # Not only an import comes here: `datasets` looks whether it is installed, before the app imports it.
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = SecondAttempt(spec.loader)
                return spec
        return None


def declare() -> None:
    """Declare the operators."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
    _declared.append(library)


def install() -> None:
    """Take part in imports of this process, and of its forks."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
