"""Tests of coldframe/units.py: what is typed, and what is meant."""

import pytest

from coldframe import units


@pytest.mark.parametrize(
    ("text", "size"),
    [("512m", 512 << 20), ("1g", 1 << 30), ("1.5GiB", 3 << 29), ("64kb", 65536), (4096, 4096)],
)
def test_sizes(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1g", "1x", "1 g b", 0, True, None])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("1m", 60), ("50ms", 0.05), ("2h", 7200), (600, 600)]
)
def test_durations(text, seconds):
    assert units.parse_duration(text) == seconds


def test_rates():
    assert units.parse_rate("10mbit") == 10_000_000
    with pytest.raises(ValueError, match="is not a rate"):
        units.parse_rate("10")


def test_sizes_for_people():
    assert units.format_size(512 << 20) == "512 MB"
    assert units.format_size(3 << 29) == "1.5 GB"
