"""A picture of how a training set is divided: per client, how many samples of each class.

`python -m fl.plots partitions --partitioner dirichlet --args '{"alpha": 0.3}' --clients 10 --out x.png`
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fl import data, partition


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
    # The controller draws the same picture for each run; an app's server or client has no use for it.
    from coldframe.controller.plots import partitions, save

    save(partitions({str(row): counts[row].tolist() for row in range(len(counts))}, {}), options.out)
    print(f"{options.out}: {len(labels[np.concatenate(parts)])} samples over {options.clients} clients")
    return 0


if __name__ == "__main__":
    sys.exit(main())
