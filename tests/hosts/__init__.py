"""Makes test hosts: containers that behave like machines of their own, each with its Docker engine."""

from tests.hosts.hosts import Host, Hosts
from tests.hosts.seeds import fl_seed, make_seed
from tests.hosts.shell import HostsError

__all__ = ["Host", "Hosts", "HostsError", "fl_seed", "make_seed"]
