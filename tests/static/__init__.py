"""Tests that the repository agrees with itself: no machine is touched."""
