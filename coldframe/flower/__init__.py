"""Every change to flwr."""
