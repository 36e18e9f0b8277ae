"""Tests of Coldframe."""
