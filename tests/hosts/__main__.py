"""Command line of the test hosts: make some, look at them, hurt them, remove them."""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.hosts import hosts, image, seeds
from tests.hosts.shell import HostsError, say

VERBS = {
    "kill": ("power_cut", "cut the power"),
    "start": ("start", "turn it on again"),
    "reboot": ("reboot", "reboot it from inside"),
    "partition": ("partition", "cut its cable"),
    "rejoin": ("rejoin", "plug the cable in again"),
    "isolate": ("isolate_from_peers", "cut it from the other hosts; the controller still reaches it"),
    "deisolate": ("rejoin_peers", "end the isolation"),
}


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text)
        added.add_argument("--prefix", default="hosts", help="which set (default: %(default)s)")
        return added

    up = verb("up", "make hosts and print an inventory for them")
    up.add_argument("count", type=int, nargs="?", help="how many")
    up.add_argument("--names", help="their names, with commas between; the first is the server")
    up.add_argument("--subnet", default="auto", help="their network (default: a free one)")
    up.add_argument("--suite", default="trixie", choices=image.SUITES)
    up.add_argument("--user", default="gardener", help="whom the inventory logs in as (default: %(default)s)")
    verb("down", "remove them, and what dead test runs left behind")
    verbs.add_parser("list", help="show all sets")
    verbs.add_parser("image", help="make sure that the engine has the machines' image, and print its name")
    verbs.add_parser(
        "seed", help="make sure that there is a seed with the federation's images, and print its path"
    )
    verbs.add_parser("box", help="make sure that there is a box for libvirt, and print its path")
    run = verb("exec", "run a command on one, as root over ssh")
    run.add_argument("name")
    run.add_argument("command", nargs=argparse.REMAINDER)
    for name, (_, text) in VERBS.items():
        verb(name, text).add_argument("name")
    return top


def main() -> int:
    """Do what the command line says."""
    options = parser().parse_args()
    if options.verb == "up":
        names = options.names.split(",") if options.names else None
        subnet = None if options.subnet == "auto" else options.subnet
        made = hosts.Hosts(
            options.count, names=names, prefix=options.prefix, subnet=subnet, suite=options.suite, kept=True
        ).up()
        path = made.directory / "inventory.yml"
        path.write_text(made.inventory(options.user))
        print(f"# {path}\n{path.read_text()}", end="")
    elif options.verb == "down":
        hosts.sweep()
        hosts.Hosts(prefix=options.prefix).down()
    elif options.verb == "image":
        print(image.ensure_image())
    elif options.verb == "seed":
        print(seeds.fl_seed())
    elif options.verb == "box":
        print(image.ensure_box())
    elif options.verb == "list":
        for prefix, state in hosts.states().items():
            life = "kept" if state["owner"] is None else f"goes with process {state['owner']['pid']}"
            print(f"{prefix}  {state['subnet']}  {life}")
            for name, address in state["hosts"].items():
                print(f"  {name:12} {address:15} {hosts.power(f'{prefix}-{name}')}")
    elif options.verb == "exec":
        host = hosts.load(options.prefix)[options.name]
        return subprocess.call([*host.ssh(), " ".join(options.command)])
    else:
        host = hosts.load(options.prefix)[options.name]
        getattr(host, VERBS[options.verb][0])()
        say(f"{host.name}: {options.verb} done")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HostsError as error:
        sys.exit(f"error: {error}")
