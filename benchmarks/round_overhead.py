"""What a round costs when the clients do nothing: flwr's deployment engine, Coldframe's, and the legacy one.

All on this machine, in one run, the engines in turns: `python benchmarks/round_overhead.py [--quick]
[--clients N ...] [--engines NAME ...] [--json FILE] [--plot FILE]`. A client adds a constant to the model of
1.2 million parameters and returns it: an echo would flatter, its arrays are not sent twice. Train phase and
aggregation only.

- `stock`: SuperLink, SuperNodes, SuperExecs and tasks as flwr starts them; the app imports torch.
- `stock_without_torch`: the same with an app that does not.
- `ours`: the same app and processes with Coldframe's adapters and warm executor.
- `ours_packed`: ours, with the model in one array, as Coldframe's own app sends it.
- `legacy`: `start_server` and `start_client`, deprecated, without TLS: what an open connection can do.

CPU time per task is that of all processes of a client: SuperNode, executor and task, the app included; the
app's own part of it (the addition, and its arrays' way out of and into records) is told beside it.

Stock and ours have the same TLS, node authentication, SuperExec secrets and database file.

An engine that loses replies or does not end in time (12 s per client and round, and two minutes) is named,
and the others go on.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import ipaddress
import itertools
import json
import os
import platform
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flwr
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from overhead_app import CLIENT, LEGACY_CLIENT, LEGACY_SERVER, MANIFEST, MODEL, SERVER

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("stock", "stock_without_torch", "ours", "ours_packed", "legacy")
# Of each run the first rounds are not counted: they install the app and fill caches.
WARMUP = {"stock": 1, "ours": 2, "legacy": 2}
# Rounds that are counted, up to so many clients, and how often each is measured: a stock round of 30 clients
# takes as long as a hundred of ours.
PLAN = {
    3: ({"stock": 3, "ours": 10, "legacy": 20}, 2),
    10: ({"stock": 3, "ours": 10, "legacy": 20}, 1),
    1000: ({"stock": 1, "ours": 6, "legacy": 10}, 1),
}


@dataclass
class Engine:
    """The processes of one engine; `stop` ends them by their ids."""

    home: Path
    name: str
    clients: int
    debug: bool = False
    port: int = 0
    link: subprocess.Popen[bytes] | None = None
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    executors: list[int] = field(default_factory=list)  # process ids; with `nodes`, all that a client is
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spawn(self, log: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process with its output in `<home>/<log>.log`."""
        environment = {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "GRPC_VERBOSITY": "ERROR",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        if self.name.startswith("ours"):
            environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # as a client's container has it
        if self.debug:
            environment["FLWR_LOG_LEVEL"] = "DEBUG"
        with (self.home / f"{log}.log").open("wb") as file:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End all processes."""
        processes = [*self.nodes, *self.others, *([self.link] if self.link else [])]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def start_deployment(engine: Engine) -> None:
    """Start SuperLink, ServerApp executor, SuperNodes and their executors, and register the nodes."""
    home, ours = engine.home, engine.name.startswith("ours")
    adapted = [sys.executable, "-m", "coldframe.flower.adapters"]
    write_certificates(home)
    secret = home / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    auth = ["--superexec-auth-secret-file", str(secret)]
    engine.port = free_port()
    address = f"127.0.0.1:{engine.port}"
    trust = ["--root-certificates", f"{home}/ca.crt"]
    engine.link = engine.spawn(
        "superlink",
        [
            *([*adapted, "superlink"] if ours else ["flower-superlink"]),
            *("--port", str(engine.port), "--enable-supernode-auth", "--isolation", "process", *auth),
            *("--ssl-certfile", f"{home}/server.crt", "--ssl-keyfile", f"{home}/server.key"),
            *("--ssl-ca-certfile", f"{home}/ca.crt", "--database", f"{home}/superlink.db"),
            "--disable-runtime-dependency-installation",
        ],
    )
    wait_for_port(engine.port, engine.home)
    superexec = [*adapted, "serverapp-superexec"] if ours else ["flower-superexec"]
    engine.others.append(
        engine.spawn("server-superexec", [*superexec, "--runtime-api-address", address, *trust, *auth])
    )
    executors = []
    for number in range(engine.clients):
        key = ec.generate_private_key(ec.SECP384R1())
        write_key(home / f"node-{number}", key, serialization.PrivateFormat.OpenSSH)
        with control(engine) as client:
            public = public_key_to_bytes(key.public_key())
            client.RegisterNode(RegisterNodeRequest(public_key=public, name=f"node-{number}"))
        port = free_port()
        supernode = [
            *("--superlink", address, *trust, "--auth-supernode-private-key", f"{home}/node-{number}"),
            *("--port", str(port), "--isolation", "process", *auth),
        ]
        executor = ["--insecure", "--runtime-api-address", f"127.0.0.1:{port}", *auth]
        command = ["flower-supernode", *supernode]
        if ours:
            command = [sys.executable, "-P", "-c", CLIENT_CONTAINER, json.dumps([supernode, executor])]
        engine.nodes.append(engine.spawn(f"supernode-{number}", command))
        executors.append((port, executor))
    for number, (port, executor) in enumerate(executors):
        wait_for_port(port, engine.home)
        if ours:
            engine.executors.append(child_named(engine.nodes[number].pid, "executor"))
        else:
            engine.others.append(engine.spawn(f"executor-{number}", ["flower-superexec", *executor]))
            engine.executors.append(engine.others[-1].pid)


# What coldframe.client.container does in a client's container, on arguments of ours.
CLIENT_CONTAINER = """
import json, sys
from coldframe.client import container
from coldframe.supervise import Child, supervise
supernode, executor = json.loads(sys.argv.pop(1))
container.preload()
sys.exit(supervise([
    Child("supernode", supernode, function=container.run_supernode),
    Child("executor", executor, function=container.run_executor),
]))
"""


def child_named(pid: int, name: str) -> int:
    """Return the child of a process that bears a name; a fork has its parent's command line."""
    (found,) = [
        child for child in descendants([pid]) if Path(f"/proc/{child}/comm").read_text().strip() == name
    ]
    return found


def run_app(engine: Engine, warmup: int, rounds: int, torch: bool, packed: bool) -> Path:
    """Submit the app and return where its result will be."""
    app = write_app(engine.home / "app", torch)
    out = engine.home / "result.json"
    content = build_fab_from_disk(app)
    config: dict[str, bool | float | int | str] = {
        "rounds": warmup + rounds,
        "warmup": warmup,
        "clients": engine.clients,
        "packed": packed,
        "out": str(out),
    }
    with control(engine) as client:
        client.StartRun(
            StartRunRequest(
                fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})),
                override_config=user_config_to_proto(config),
            )
        )
    return out


def start_legacy(engine: Engine, warmup: int, rounds: int) -> Path:
    """Start a legacy server and its clients and return where the result will be."""
    engine.port = free_port()
    app, out = write_app(engine.home / "app", torch=False), engine.home / "result.json"
    arguments = [str(app), str(engine.port), str(engine.clients), str(warmup), str(warmup + rounds), str(out)]
    engine.link = engine.spawn("server", [sys.executable, "-c", LEGACY_SERVER, *arguments])
    wait_for_port(engine.port, engine.home)
    for number in range(engine.clients):
        command = [sys.executable, "-c", LEGACY_CLIENT, str(engine.port)]
        engine.others.append(engine.spawn(f"client-{number}", command))
        engine.executors.append(engine.others[-1].pid)
    return out


class Unfinished(Exception):
    """An engine that lost replies or took too long; the message says which."""


def plan(clients: int) -> tuple[dict[str, int], int]:
    """Return how many rounds of each engine are counted with so many clients, and how often."""
    return next(entry for most, entry in PLAN.items() if clients <= most)


def measure(name: str, clients: int, quick: bool, debug: bool = False) -> dict[str, float]:
    """Run one engine with so many clients once and return its figures; with `debug`, requests and memory."""
    kind = name.partition("_")[0]
    warmup, rounds = WARMUP[kind], plan(clients)[0][kind]
    if quick or debug:
        rounds = {"stock": 2, "ours": 6, "legacy": 10}[kind]
    with tempfile.TemporaryDirectory(prefix="overhead-") as directory:
        engine = Engine(Path(directory), name, clients, debug)
        try:
            if kind == "legacy":
                out = start_legacy(engine, warmup, rounds)
            else:
                start_deployment(engine)
                out = run_app(engine, warmup, rounds, name != "stock_without_torch", name == "ours_packed")
            return follow(engine, out, warmup, rounds)
        finally:
            engine.stop()


def follow(engine: Engine, out: Path, warmup: int, rounds: int) -> dict[str, float]:
    """Wait for a run's end, taking CPU and memory meanwhile."""
    ours = engine.name.startswith("ours")
    warm, go = out.with_suffix(".warm"), out.with_suffix(".go")
    patience = 120 + (warmup + rounds) * engine.clients * 12
    deadline = time.monotonic() + patience

    def wait_for(path: Path, pause: float, meanwhile: Callable[[], None]) -> None:
        while not path.exists():
            if time.monotonic() > deadline:
                raise Unfinished(f"did not end in {patience} s")
            meanwhile()
            time.sleep(pause)

    def cpu_of_all() -> list[float]:
        executors = cpu_seconds(engine.executors)
        nodes = cpu_seconds([process.pid for process in engine.nodes])
        link = cpu_seconds([engine.link.pid] if engine.link else [])
        return [executors, nodes - executors if ours else nodes, link]

    def client() -> list[int]:
        return (
            [engine.nodes[0].pid] if ours else [*(node.pid for node in engine.nodes[:1]), engine.executors[0]]
        )

    wait_for(warm, 0.05, lambda: None)
    time.sleep(1.0)
    before = cpu_of_all()
    go.touch()
    pss: list[int] = []
    wait_for(out, 0.05, lambda: pss.append(pss_bytes(client())) if engine.debug else None)
    time.sleep(1.0)
    spent = [end - start for start, end in zip(before, cpu_of_all(), strict=True)]
    result = json.loads(out.read_text())
    expected = float(warmup + rounds)
    if abs(result["first"] - expected) >= 0.01:
        raise Unfinished(f"lost replies: the model is {result['first']}, not {expected}")
    times = result["times"][warmup:]
    tasks = engine.clients * rounds
    if engine.debug:
        everything = engine.clients * (warmup + rounds)
        return {
            "superlink_requests_per_task": count_requests(engine.home / "superlink.log") / everything,
            "supernode_requests_per_task": count_requests(engine.home / "supernode-0.log")
            / (warmup + rounds),
            "client_pss_idle_mb": pss_bytes(client()) / 1e6,
            "client_pss_peak_mb": max(pss) / 1e6,
        }
    return {
        "seconds_per_round": statistics.median(b - a for a, b in itertools.pairwise(times)),
        "cpu_seconds_per_task": (spent[0] + spent[1]) / tasks,
        "executor_cpu_seconds_per_task": spent[0] / tasks,
        "supernode_cpu_seconds_per_task": spent[1] / tasks,
        "superlink_cpu_seconds_per_task": spent[2] / tasks,
        "app_cpu_seconds_per_task": statistics.mean(result["app"][warmup:] or [0.0]),
    }


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU time of processes and all their descendants, the ended ones included."""
    ticks = 0
    for pid in descendants(pids):
        ticks += sum(map(int, stat_fields(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_bytes(pids: list[int]) -> int:
    """Return the proportional memory of processes and their descendants."""
    total = 0
    for pid in descendants(pids):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(text.partition("\nPss:")[2].split()[0] or 0) * 1024 if "\nPss:" in text else 0
    return total


def descendants(pids: list[int]) -> list[int]:
    """Return processes with all their descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        fields = stat_fields(int(path.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found, pids = [], list(pids)
    while pids:
        found.append(pids.pop())
        pids.extend(children.get(found[-1], ()))
    return found


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name; nothing for a process that has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def count_requests(log: Path) -> int:
    """Count the requests in the access log of a process that was started for debugging."""
    with log.open(errors="replace") as lines:
        return sum('"POST /v1/fleet/' in line or '"POST /v1/runtime/' in line for line in lines)


def control(engine: Engine) -> ControlHttpClient:
    """Return a client of the engine's Control API."""
    return ControlHttpClient.from_server_address(
        server_address=f"127.0.0.1:{engine.port}",
        insecure=False,
        root_certificates=(engine.home / "ca.crt").read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )


def write_app(directory: Path, torch: bool) -> Path:
    """Write the app that does nothing."""
    package = directory / "overhead"
    package.mkdir(parents=True)
    (directory / "pyproject.toml").write_text(MANIFEST)
    (directory / "LICENSE").write_text("Apache-2.0\n")
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(MODEL)
    (package / "server.py").write_text(SERVER)
    (package / "client.py").write_text(("import torch\n" if torch else "") + CLIENT)
    return directory


def write_certificates(home: Path) -> None:
    """Write a CA and a server certificate for the loopback."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark CA")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)

    def certificate(subject: x509.Name, public: Any, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
        )
        if not ca:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    (home / "ca.crt").write_bytes(certificate(ca_name, ca_key.public_key(), True))
    (home / "server.crt").write_bytes(certificate(name, key.public_key(), False))
    write_key(home / "server.key", key, serialization.PrivateFormat.PKCS8)


def write_key(path: Path, key: Any, form: serialization.PrivateFormat) -> None:
    """Write a private key that only its owner reads."""
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, logs: Path) -> None:
    """Wait until something accepts connections on a port of the loopback."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port}; see the logs in {logs}")
        time.sleep(0.05)


def benchmark(
    engines: list[str],
    counts: list[int],
    repeats: int | None,
    quick: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure all engines in turns and return figures and ratios to stock."""
    samples: dict[str, dict[str, list[dict[str, float]]]] = {}
    failures: list[str] = []

    def attempt(name: str, clients: int, debug: bool) -> dict[str, float]:
        try:
            return measure(name, clients, quick, debug)
        except Unfinished as error:
            failures.append(f"{clients:3} clients  {name:20} {error}")
            say(f"   {failures[-1]}")
            return {}

    for repeat in range(repeats or max(plan(clients)[1] for clients in counts)):
        for clients in counts:
            if not repeats and repeat >= plan(clients)[1]:
                continue
            for name in engines:
                if name == "stock_without_torch" and clients > min(counts):
                    continue  # it says what torch costs; once is enough
                figures = attempt(name, clients, debug=False)
                if not figures:
                    continue
                samples.setdefault(name, {}).setdefault(str(clients), []).append(figures)
                say(
                    f"{repeat + 1}  {clients:3} clients  {name:20} "
                    f"{figures['seconds_per_round']:7.2f} s/round  "
                    f"{figures['cpu_seconds_per_task']:6.3f} CPU-s/task, "
                    f"{figures['app_cpu_seconds_per_task']:.3f} the app's own"
                )
    figures_of = {
        name: {
            clients: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for clients, runs in by_clients.items()
        }
        for name, by_clients in samples.items()
    }
    few = str(counts[0])
    for name in ("stock", "ours", "ours_packed"):
        # Apart from the others, for writing the log and looking at memory take time.
        if few in figures_of.get(name, {}):
            figures_of[name][few] |= attempt(name, counts[0], debug=True)
    ratios = {
        f"{clients}_clients_stock_to_{name}": figures_of["stock"][clients]["seconds_per_round"]
        / figures_of[name][clients]["seconds_per_round"]
        for name in engines
        for clients in figures_of.get(name, {})
        if name != "stock" and clients in figures_of.get("stock", {})
    }
    return {"figures": figures_of, "ratios": ratios, "failures": failures}


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw seconds per round over the number of clients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    counts = sorted({int(clients) for by_clients in figures.values() for clients in by_clients})
    for name, by_clients in figures.items():
        xs = [counts.index(int(clients)) for clients in by_clients]
        ys = [found["seconds_per_round"] for found in by_clients.values()]
        (line,) = axes.plot(xs, ys, marker="o", markersize=4)
        words = f"  {name.replace('_', ' ')}, {ys[-1]:.2g} s"
        place = {"ours": "bottom", "ours_packed": "top"}.get(name, "center")  # these two lie close
        axes.text(xs[-1], ys[-1], words, color=line.get_color(), va=place, fontsize="small")
    axes.set(yscale="log", xlabel="clients", ylabel="seconds per round")
    axes.set_xlim(-0.15, len(counts) - 0.25)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.set_title("A round in which clients do nothing", loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


def machine() -> dict[str, Any]:
    """Say what was measured on, and how busy it was before."""
    return {
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "flwr": flwr.__version__,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 clients, one repeat, few rounds")
    parser.add_argument("--clients", type=int, nargs="+", help="numbers of clients (default: 3 10 30)")
    parser.add_argument("--engines", choices=ENGINES, nargs="+", default=ENGINES, help="default: all")
    parser.add_argument(
        "--repeats", type=int, help="how often each is measured (default: 2; 1 above 3 clients)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw them")
    arguments = parser.parse_args()
    # Ended from outside, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    counts = arguments.clients or ([3] if arguments.quick else [3, 10, 30])
    repeats = arguments.repeats or (1 if arguments.quick else None)
    where = machine()
    result = benchmark(
        arguments.engines, counts, repeats, arguments.quick, lambda line: print(line, flush=True)
    )
    result["machine"] = where
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    if arguments.plot:
        draw(result["figures"], arguments.plot)


if __name__ == "__main__":
    main()
