"""How fast batches come out of memory, beside a DataLoader with torchvision's transforms per sample.

Both give the same batches (shuffled, 32 samples, normalised float32) of the same prepared data set, on one
thread, in one run: `python benchmarks/dataloading.py [--quick] [--json FILE]`.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fl import data
from fl.torchvision_compat import import_torchvision

BATCH = 32


class Transformed(Dataset):
    """The usual way: an image object per sample, converted and normalised each time it is asked for."""

    def __init__(self, root: Path, dataset: str) -> None:
        import_torchvision()
        from torchvision import transforms  # only after the line above

        spec = data.SPECS[dataset]
        self.x = np.asarray(data.load_array(root, dataset, "train_x"))
        self.y = np.asarray(data.load_array(root, dataset, "train_y"))
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
        )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[index])), int(self.y[index])


def in_memory(x: Tensor, y: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Give the batches of one epoch as fl.training takes them."""
    for batch in torch.randperm(len(y)).split(BATCH):
        yield x[batch], y[batch]


def rate(batches: Iterable[tuple[Tensor, Tensor]], limit: float) -> float:
    """Return samples per second, over one epoch or `limit` seconds, whichever ends first."""
    samples, start = 0, time.perf_counter()
    for _, y in batches:
        samples += len(y)
        if time.perf_counter() - start > limit:
            break
    return samples / (time.perf_counter() - start)


def measure(root: Path, dataset: str, quick: bool) -> dict[str, Any]:
    """Measure both ways, in turns, and take the best of each: what is slower was disturbed."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    x, y = data.load(root, dataset)
    load_seconds = time.perf_counter() - start
    loader = DataLoader(Transformed(root, dataset), batch_size=BATCH, shuffle=True)
    first_x, first_y = Transformed(root, dataset)[0]
    assert torch.allclose(first_x, x[0], atol=1e-5) and first_y == y[0], (
        "the two ways must give the same samples"
    )
    turns, limit = (2, 1.0) if quick else (5, 10.0)
    ours, theirs = [], []
    for _ in range(turns):
        ours.append(rate(in_memory(x, y), limit))
        theirs.append(rate(loader, limit))
    epoch_ours, epoch_theirs = len(y) / max(ours), len(y) / max(theirs)
    return {
        "figures": {
            "in_memory": {"samples_per_second": round(max(ours)), "load_seconds": round(load_seconds, 3)},
            "dataloader": {"samples_per_second": round(max(theirs))},
            "dataset": dataset,
            "samples": len(y),
        },
        "ratios": {
            "in_memory_to_dataloader": round(max(ours) / max(theirs), 1),
            "one_epoch_with_loading": round(epoch_theirs / (epoch_ours + load_seconds), 1),
        },
        "machine": {
            "cores": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of a minute")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--root", type=Path, default=data.default_root(), help="where mnist is prepared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if data.is_prepared("mnist", options.root):
            result = measure(options.root, "mnist", options.quick)
        else:
            print(f"mnist is not prepared in {options.root}: the generated data set takes its place")
            data.prepare("synthetic", Path(folder))
            result = measure(Path(folder), "synthetic", options.quick)
    figures, ratios = result["figures"], result["ratios"]
    print(
        f"{figures['dataset']}: {figures['in_memory']['samples_per_second']:,} samples/s from memory, "
        f"{figures['dataloader']['samples_per_second']:,} from a DataLoader: "
        f"{ratios['in_memory_to_dataloader']} times as many "
        f"({ratios['one_epoch_with_loading']} times, counting the {figures['in_memory']['load_seconds']} s "
        "to load it once against a single epoch)"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
