"""What runs in Coldframe's containers and is not training: journal, grid, cgroup reader and the processes around Flower."""

__version__ = "0.1.0"
