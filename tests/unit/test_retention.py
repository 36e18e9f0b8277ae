"""The server keeps the newest runs, and every run that no controller has."""

import os
from pathlib import Path

from coldframe.server.retention import COLLECTED, PRUNED, prune


def make_run(runs: Path, name: str, collected_at: float | None) -> Path:
    folder = runs / name
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "model.npz").write_bytes(b"x")
    (folder / "journal.jsonl").write_text("{}\n")
    if collected_at is not None:
        (folder / COLLECTED).touch()
        os.utime(folder / COLLECTED, (collected_at, collected_at))
    return folder


def test_the_oldest_collected_runs_lose_their_files(tmp_path: Path) -> None:
    for number in range(5):
        make_run(tmp_path, f"run{number}", collected_at=1000.0 - number)  # run4 is the oldest
    assert prune(tmp_path, keep=3) == ["run4", "run3"]
    assert sorted(path.name for path in (tmp_path / "run4").iterdir()) == [PRUNED]
    assert (tmp_path / "run2" / "files" / "model.npz").exists()
    assert prune(tmp_path, keep=3) == []


def test_a_run_that_was_not_collected_is_kept(tmp_path: Path) -> None:
    for number in range(3):
        make_run(tmp_path, f"lost{number}", collected_at=None)
    make_run(tmp_path, "seen", collected_at=1.0)
    assert prune(tmp_path, keep=1) == ["seen"]
    assert all((tmp_path / f"lost{number}" / "journal.jsonl").exists() for number in range(3))


def test_a_link_in_a_runs_folder_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    runs = tmp_path / "runs"
    folder = make_run(runs, "run", collected_at=1.0)
    (folder / "link").symlink_to(outside)
    assert prune(runs, keep=0) == ["run"]
    assert (outside / "kept").exists()
