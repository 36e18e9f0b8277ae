"""Draws docs/img/partitioners.png: how each partitioner divides 60,000 examples of ten classes.

python docs/partitioners.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from coldframe.controller.plots import STYLE, draw_partitions  # noqa: E402
from fl.partition import histogram, partition  # noqa: E402

CLIENTS = 10
SCHEMES: tuple[tuple[str, dict[str, float]], ...] = (
    ("iid", {}),
    ("dirichlet", {"alpha": 0.5}),
    ("shards", {"classes_per_client": 2}),
    ("quantity_skew", {"alpha": 1.0}),
)


def main() -> None:
    """Draw the picture."""
    labels = np.arange(60_000) % 10
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.0), layout="constrained")
        for axes, (scheme, args) in zip(figure.subplots(2, 2).flat, SCHEMES, strict=True):
            parts = partition(labels, scheme, args, seed=0, num_partitions=CLIENTS)
            draw_partitions(axes, histogram(labels, parts, 10).tolist(), [str(i) for i in range(CLIENTS)])
            words = ", ".join(f"{key} {value:g}" for key, value in args.items())
            axes.set(title=f"{scheme} ({words})" if words else scheme, ylabel="Client")
        figure.legend(*axes.get_legend_handles_labels(), title="Class", loc="outside right center")
        figure.savefig(ROOT / "docs" / "img" / "partitioners.png", dpi=130)


if __name__ == "__main__":
    main()
