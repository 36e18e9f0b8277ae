"""The picture of the partitions is drawn by the command line, with a bar for each client."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from coldframe.controller import partitions
from fl import data


def test_the_command_line_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.prepare("synthetic", tmp_path)
    out = tmp_path / "x.png"
    command = ["--dataset", "synthetic", "--root", str(tmp_path), "--partitioner", "shards"]
    assert partitions.main([*command, "--clients", "5", "--out", str(out)]) == 0
    assert "3000 samples over 5 clients" in capsys.readouterr().out
    picture = matplotlib.image.imread(out)
    _, count = np.unique(picture.reshape(-1, picture.shape[2]), axis=0, return_counts=True)
    assert (count > 200).sum() > 10  # ten classes, ten colours, and the paper


def test_more_clients_make_a_taller_picture(tmp_path: Path) -> None:
    data.prepare("synthetic", tmp_path)
    heights = []
    for clients in ("3", "20"):
        out = tmp_path / "x.png"
        partitions.main(
            [
                "--dataset",
                "synthetic",
                "--root",
                str(tmp_path),
                "--clients",
                clients,
                "--out",
                str(out),
            ]
        )
        heights.append(matplotlib.image.imread(out).shape[0])
    assert heights[1] > 1.5 * heights[0]


def test_a_wrong_partitioner_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.prepare("synthetic", tmp_path)
    command = ["--dataset", "synthetic", "--root", str(tmp_path), "--partitioner", "shard"]
    assert partitions.main([*command, "--out", str(tmp_path / "x.png")]) == 1
    assert "did you mean 'shards'" in capsys.readouterr().err
