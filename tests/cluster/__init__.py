"""Real deployments on test hosts."""
