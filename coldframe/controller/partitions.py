"""A picture of how a training set is divided: per client, how many samples of each class.

python -m coldframe.controller.partitions --partitioner dirichlet --args '{"alpha": 0.3}' --out x.png
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from coldframe.controller.plots import partitions, save
from fl import data, partition


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m coldframe.controller.partitions", description=__doc__)
    parser.add_argument("--dataset", choices=sorted(data.SPECS), default="mnist")
    parser.add_argument("--root", type=Path, default=data.default_root())
    parser.add_argument("--partitioner", default="iid")
    parser.add_argument("--args", type=json.loads, default={}, help="JSON object")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-samples", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
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
    save(partitions({str(row): counts[row].tolist() for row in range(len(counts))}, {}), options.out)
    print(f"{options.out}: {len(labels[np.concatenate(parts)])} samples over {options.clients} clients")
    return 0


if __name__ == "__main__":
    sys.exit(main())
