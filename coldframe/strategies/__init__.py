"""Strategies that Flower lacks, for any app: `from coldframe.strategies import FedBuff`.

They know Flower and numpy alone: an app that uses them runs on any Flower that has this package beside it.
"""

from coldframe.strategies.fedasync import FedAsync
from coldframe.strategies.fedbuff import FedBuff

__all__ = ["FedAsync", "FedBuff"]
