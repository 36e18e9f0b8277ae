"""A lab whose federation is monitored, and what tests ask its Prometheus."""

from __future__ import annotations

import base64
import json
import shlex
import ssl
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.federation import EVERYBODY, FEDERATION, PORT
from tests.cluster.lab import Lab

PORTS = {"prometheus": PORT - 2, "fl": PORT + 1, "node": PORT + 8, "containers": PORT + 9}
NEXT = f"{FEDERATION}-prometheus3"  # a Prometheus 3 beside the one that is deployed
NEXT_PORT = PORT + 98
PROGRAMS = ("prometheus", "promtool")

Series = tuple[dict[str, str], float]


# A throttle of everything that any kernel can limit, and the client that gets it while a run is observed.
THROTTLED = "c1-0"
LIMITS = {"cpu": "0.1", "memory": "900m", "pids": "200", "down": "50mbit", "up": "50mbit"}
ROUNDS = 3  # of the run that is observed


class WatchedLab(Lab):
    """The lab whose federation is monitored."""

    observed: tuple[float, float] | None = None  # begin and end of a run during which a client was throttled

    @property
    def state(self) -> Path:
        """What the controller keeps of the federation."""
        return self.directory / "state" / "coldframe" / FEDERATION

    def observe(self) -> Callable[[], None]:
        """Start a run, and throttle a client when it goes. The run before it, which the dashboard compares it
        with, is one of ours too: of a foreign app's it knows neither rounds nor accuracy.

        Returns a function that waits for the run's end and takes the throttle back.
        """
        self.run()
        start = time.time()
        settings = {"rounds": str(ROUNDS), "dataset": "synthetic", "run_name": "observed", **EVERYBODY}
        play, wait = self.start("run.yml", **settings)
        self.wait_for("the first round", lambda: f"round 0/{ROUNDS}" in play.output, 120)
        self.must("throttle.yml", clients=THROTTLED, **LIMITS)
        run = 'fl_run_info{run_name="observed"}'
        ended = f'fl_run_state{{state="completed"}} and on (run) {run} or on (run) {run} * 0'

        def finish() -> None:
            assert wait().code == 0, play.output
            self.wait_for("the end of the run", lambda: self.value(ended) == 1)
            self.observed = start, time.time()
            self.must("throttle.yml", clients=THROTTLED, undo="true")

        return finish

    def password(self, name: str) -> str:
        """A password that the controller has made: `prometheus` or `scrape`."""
        return (self.state / "monitoring" / f"{name}.password").read_text()

    @property
    def authority(self) -> Path:
        """The certificate of the authority of the monitoring."""
        return self.state / "pki" / "monitoring" / "ca.crt"

    def read(self, url: str, user: str, password: str) -> str:
        """What a server with a certificate of the federation answers to who knows the password."""
        context = ssl.create_default_context(cafile=str(self.authority))
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            text: str = answer.read().decode()
        return text

    def prometheus(self, path: str, port: int = PORTS["prometheus"], **parameters: str) -> Any:
        """The data of an answer of Prometheus' API, such as ``prometheus("targets")``."""
        address = f"https://{self.server.address}:{port}/api/v1/{path}"
        query = urllib.parse.urlencode(parameters)
        answer = json.loads(self.read(f"{address}?{query}", "coldframe", self.password("prometheus")))
        assert answer["status"] == "success", answer
        return answer["data"]

    def start_prometheus3(self, programs: Path) -> None:
        """Start a Prometheus 3 as the role starts its own, but for what it is: the deployed container with
        another program, and a copy of the samples that the deployed one has written so far."""
        deployed = self.container(self.server, f"{FEDERATION}-prometheus")
        config, host = deployed["Config"], deployed["HostConfig"]
        state = f"/var/lib/coldframe/{FEDERATION}"
        there = f"/tmp/{NEXT}"
        self.on_server(f"mkdir -p {there}/bin && cp -a {state}/prometheus/data {there}/data")
        for name in PROGRAMS:
            with (programs / name).open("rb") as content:
                put = f"cat > {there}/bin/{name} && chmod 755 {there}/bin/{name}"
                subprocess.run([*self.server.ssh(), put], stdin=content, check=True)
        volumes = [bind for bind in host["Binds"] if ":/prometheus" not in bind]
        volumes += [f"{there}/data:/prometheus", *(f"{there}/bin/{n}:/usr/bin/{n}:ro" for n in PROGRAMS)]
        words = ["docker", "run", "--detach", "--name", NEXT, "--read-only", "--tmpfs", "/tmp"]
        words += ["--user", config["User"], "--cap-drop", "ALL", "--memory", str(host["Memory"])]
        words += ["--publish", f"{NEXT_PORT}:{PORTS['prometheus']}", "--entrypoint", *config["Entrypoint"]]
        words += [word for volume in volumes for word in ("--volume", volume)]
        self.on_server(shlex.join([*words, config["Image"], *config["Cmd"]]))

    def stop_prometheus3(self) -> None:
        """Remove it."""
        self.on_server(f"docker rm --force {NEXT}; rm -rf /tmp/{NEXT}")

    def query(self, expression: str) -> list[Series]:
        """What Prometheus says now: labels and value of each series."""
        found = self.prometheus("query", query=expression)
        assert found["resultType"] == "vector", found
        return [(item["metric"], float(item["value"][1])) for item in found["result"]]

    def value(self, expression: str) -> float:
        """The value of an expression that has one series."""
        found = self.query(expression)
        assert len(found) == 1, (expression, found)
        return found[0][1]
