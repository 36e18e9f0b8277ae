"""What runs in Coldframe's containers and is not training: journal, grid, cgroups, the processes."""

__version__ = "0.1.0"
