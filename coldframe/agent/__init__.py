"""The agent of a machine: applies the limits of its clients, and verifies them."""
