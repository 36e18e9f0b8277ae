"""All of Coldframe that is Python and not training, one package for each place where it runs."""

__version__ = "0.1.0"
