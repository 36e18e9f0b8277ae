"""A picture of how a training set is divided: per client, how many samples of each class.

`python -m fl.plots partitions --partitioner dirichlet --args '{"alpha": 0.3}' --clients 10 --out x.png`
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from fl import data, partition

mpl.use("Agg")  # before pyplot: there is no display
from matplotlib import pyplot as plt


def class_histogram(
    counts: Mapping[str, Sequence[int]], path: Path, title: str = "Samples per client and class"
) -> None:
    """Draw one stacked bar per client and save it.

    Parameters
    ----------
    counts : mapping
        What to call a client (its partition id or name) -> number of samples of each class; the journal's
        `histogram` has this form.
    path : pathlib.Path
        Where to save the picture; the suffix says the format.
    """
    names = list(counts)
    table = np.asarray([counts[name] for name in names])
    clients, classes = table.shape
    colors = mpl.colormaps["tab10" if classes <= 10 else "turbo"]
    figure, axes = plt.subplots(figsize=(9, max(2.4, 1.4 + 0.32 * clients)), layout="constrained")
    left = np.zeros(clients, int)
    for c in range(classes):
        color = colors(c if classes <= 10 else c / (classes - 1))
        axes.barh(
            names, table[:, c], left=left, height=0.8, color=color, label=str(c), edgecolor="white", lw=0.4
        )
        left += table[:, c]
    for row, total in enumerate(left):
        axes.annotate(
            f"{total:,}", (total, row), xytext=(4, 0), textcoords="offset points", va="center", size=8
        )
    axes.invert_yaxis()  # client 0 on top
    axes.margins(x=0.09, y=0.02)
    axes.set_xlim(left=0)
    axes.set(xlabel="samples", ylabel="client", title=title)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m fl.plots", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("partitions", help="draw the class histogram of a partitioner's clients")
    command.add_argument("--dataset", choices=sorted(data.SPECS), default="mnist")
    command.add_argument("--root", type=Path, default=data.default_root())
    command.add_argument("--partitioner", default="iid")
    command.add_argument("--args", type=json.loads, default={}, help="JSON object")
    command.add_argument("--clients", type=int, default=10)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--max-samples", type=int, default=0)
    command.add_argument("--out", type=Path, required=True)
    options: Any = parser.parse_args(arguments)
    try:
        labels = np.asarray(data.load_array(options.root, options.dataset, "train_y"))
        parts = partition.partition(
            labels, options.partitioner, options.args, options.seed, options.clients, options.max_samples
        )
    except (data.DataError, partition.PartitionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = partition.histogram(labels, parts, data.SPECS[options.dataset].classes)
    own = ", ".join(f"{key} {value}" for key, value in options.args.items())
    title = f"{options.dataset}, {options.partitioner}{f' ({own})' if own else ''}, seed {options.seed}"
    class_histogram({str(row): counts[row].tolist() for row in range(len(counts))}, options.out, title)
    print(f"{options.out}: {len(labels[np.concatenate(parts)])} samples over {options.clients} clients")
    return 0


if __name__ == "__main__":
    sys.exit(main())
