"""Vagrant, for real."""
