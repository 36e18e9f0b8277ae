"""Fits a line."""
