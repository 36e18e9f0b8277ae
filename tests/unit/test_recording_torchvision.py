"""An app imports torchvision, whichever build of it the image has."""

from __future__ import annotations

import subprocess
import sys

USE = """
import sys
from coldframe.recording import torchvision_import
torchvision_import.install()
torchvision_import.install()
assert "torch" not in sys.modules, "who does not import it pays nothing"
import importlib.util
assert importlib.util.find_spec("torchvision"), "a look before the import"
import torchvision
from torchvision.transforms import Compose, Normalize, ToTensor
from torchvision.models import resnet18
import numpy, torch
image = Compose([ToTensor(), Normalize((0.5,), (0.5,))])(numpy.full((8, 8, 1), 255, numpy.uint8))
print(image.min().item(), sum(p.numel() for p in resnet18(num_classes=2).parameters()) > 1e7)
assert torchvision.__spec__.loader.get_filename() == torchvision.__file__
assert sum("Finder" == type(finder).__name__ for finder in sys.meta_path) == 1
"""


def test_transforms_and_models_work() -> None:
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1.0", "True"], done.stderr
