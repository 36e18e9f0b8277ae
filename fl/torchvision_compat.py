"""Importing torchvision beside a CPU build of torch that it was not compiled for.

torchvision's wheels from the general package index link CUDA libraries. Beside a CPU torch its C++ extension
is skipped, but `torchvision._meta_registrations` registers fake kernels for the operators `nms` and `qnms`
all the same, and fails because nobody declared them. Declaring the two schemas first mends the import:
datasets, transforms and models work, `ops.nms` and `io.decode_image` do not (we use neither). With the
torchvision of PyTorch's CPU index the first import succeeds and nothing is declared.
"""

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a library's declarations live as long as the object


def import_torchvision() -> ModuleType:
    """Import torchvision, with the operators declared that it forgot if the first attempt fails."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half-imported modules of the first attempt
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
    return importlib.import_module("torchvision")
