"""What Prometheus reads: containers and limits of a machine, runs of a federation."""
