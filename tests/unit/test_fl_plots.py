"""The picture of the partitions is drawn by the command line, with a bar for each client."""

from pathlib import Path

import matplotlib.image
import pytest

from fl import data, plots


def test_the_command_line_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.prepare("synthetic", tmp_path)
    out = tmp_path / "x.png"
    command = ["partitions", "--dataset", "synthetic", "--root", str(tmp_path), "--partitioner", "shards"]
    assert plots.main([*command, "--clients", "5", "--out", str(out)]) == 0
    assert "3000 samples over 5 clients" in capsys.readouterr().out
    picture = matplotlib.image.imread(out)
    assert len({tuple(pixel) for row in picture for pixel in row}) > 10  # ten classes, ten colours


def test_more_clients_make_a_taller_picture(tmp_path: Path) -> None:
    heights = []
    for clients in (3, 20):
        plots.class_histogram({f"lab-{i}": [5, i] for i in range(clients)}, tmp_path / "x.png")
        heights.append(matplotlib.image.imread(tmp_path / "x.png").shape[0])
    assert heights[1] > 1.5 * heights[0]


def test_a_wrong_partitioner_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.prepare("synthetic", tmp_path)
    command = ["partitions", "--dataset", "synthetic", "--root", str(tmp_path), "--partitioner", "shard"]
    assert plots.main([*command, "--out", str(tmp_path / "x.png")]) == 1
    assert "did you mean 'shards'" in capsys.readouterr().err
