"""The variables of every verb and of the inventory: types, ranges, defaults, and what to type instead."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from coldframe.controller.monitoring import PORTS
from coldframe.limits import CPU_FLOOR, MEMORY_FLOOR, RATE_FLOOR
from coldframe.units import KINDS, NOUNS, Wrong, format_rate, format_size
from fl import arguments

PARTITIONER_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "iid": (),
    "dirichlet": ("alpha", "min_samples"),
    "shards": ("classes_per_client",),
    "quantity_skew": ("alpha", "min_samples"),
}
DATASETS = ("mnist", "fashion_mnist", "cifar10", "synthetic")

# Which replies a round waits for, and what becomes of the others.
POLICY = ("round_deadline", "round_goal", "round_minimum", "round_late")
# Variables of run.yml that no app gets: the recording does.
SETTINGS = ("run_name", "wait_timeout", *POLICY, "replay", "checkpoint")


@dataclass(frozen=True)
class Finding:
    """Something that has to be put right first, and what to type for that."""

    problem: str
    remedy: str
    machine: str = ""

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"


@dataclass(frozen=True)
class Variable:
    """One variable that a user may set.

    Attributes
    ----------
    kind : str
        A key of `KINDS`, "choice", or "entries" (a list of clients).
    default : Any
        The value of a verb's variable where none is given. Inventory variables have theirs elsewhere.
    example : str
        A value that works, as it is typed.
    low, high : float, optional
        The range, both ends included; `above` is a lower end that is not.
    most : float, optional
        Above it the value is taken for a mistake: a wrong unit, or a key held down.
    empty : bool
        Whether an empty value means the default; else it is refused, as an unset variable of a shell is.
    key : str
        The key of the app's run config that the variable of run.yml becomes; empty where it is none.
    """

    name: str
    kind: str
    example: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    empty: bool = False
    key: str = ""


# Above these a value is taken for a mistake.
MONTH = 30 * 86400  # seconds
CORES = 4096
MEMORY = 16 << 40  # bytes
SERVER_MEMORY = 700 << 20  # bytes that SuperLink, ServerApp and gateway take at least
PIDS = 1 << 22  # the kernel's own limit
RATE = 10**12  # bit/s
STRATEGIES = tuple(arguments.STRATEGIES)
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"


def _table(*variables: Variable) -> dict[str, Variable]:
    return {variable.name: variable for variable in variables}


def _configured(*variables: Variable) -> list[Variable]:
    """Variables that reach the app, by their own names where `key` says no other."""
    return [replace(item, key=item.key or item.name.replace("_", "-")) for item in variables]


TRAINING = _configured(
    Variable("rounds", "whole", "5", 5, low=1, most=1_000_000, key="num-server-rounds"),
    Variable("fl_strategy", "choice", "fedavg", "fedavg", choices=STRATEGIES, key="strategy"),
    Variable("strategy_args", "dictionary", '{"proximal_mu": 0.1}', {}),
    Variable("fl_dp", "choice", "server-fixed", "", choices=("", *arguments.PRIVACY), empty=True, key="dp"),
    Variable("dp_args", "dictionary", '{"noise_multiplier": 0.1, "clipping_norm": 10}', {}),
    Variable("fraction_train", "number", "1.0", 1.0, above=0, high=1),
    Variable("fraction_evaluate", "number", "1.0", 1.0, low=0, high=1),
    Variable("min_train_clients", "whole", "2", 2, low=1, most=100_000),
    Variable("min_evaluate_clients", "whole", "2", 2, low=1, most=100_000),
    Variable("min_available_clients", "whole", "2", 2, low=1, most=100_000),
    Variable("local_epochs", "whole", "1", 1, low=1, most=10_000),
    Variable("batch_size", "whole", "32", 32, low=1, most=1_000_000),
    Variable("learning_rate", "number", "0.01", 0.01, above=0, most=1000),
    Variable("momentum", "number", "0.9", 0.9, low=0, high=1),
    Variable("dataset", "choice", "mnist", "mnist", choices=DATASETS),
    Variable("max_samples", "whole", "6000", 0, low=0, most=1_000_000_000),
    Variable("partitioner", "choice", "iid", "iid", choices=tuple(PARTITIONER_ARGUMENTS)),
    Variable("partitioner_args", "dictionary", '{"alpha": 0.5}', {}),
    Variable("seed", "whole", "0", 0, low=0, high=2**32 - 1),
    Variable("round_timeout", "duration", "600", 600.0, above=0, most=MONTH),
    Variable("round_work", "duration", "45", 0.0, low=0, most=MONTH),
    Variable("allow_nonfinite", "truth", "true", False),
    Variable("evaluate_every", "whole", "5", 1, low=1, most=1_000_000),
    Variable("evaluate_samples", "whole", "1000", 0, low=0, most=1_000_000_000),
)
RUN = _table(
    *TRAINING,
    Variable("wait_timeout", "duration", "300", 300.0, above=0, most=MONTH),
    Variable("round_deadline", "deadline", "60", "", above=0, most=MONTH, empty=True),
    Variable("round_goal", "goal", "0.75", "", above=0, most=100_000, empty=True),
    Variable("round_minimum", "whole", "2", "", low=1, most=100_000, empty=True),
    Variable("round_late", "choice", "fold", "drop", choices=("drop", "fold")),
    Variable("replay", "text", "RUN_ID", "", pattern=r"\d+", empty=True),
    Variable("checkpoint", "truth", "false", True),
    Variable("run_name", "text", "baseline", "", pattern=RUN_NAME, empty=True),
    Variable("wait", "truth", "true", True),
    Variable("concurrent", "truth", "true", False),
    Variable("interrupt", "truth", "true", False),
    Variable("app", "path", "path/to/app", ""),
    Variable("app_data", "path", "path/to/data", ""),
    Variable("run_config", "dictionary", '{"num-server-rounds": 3}', {}),
    Variable("scenario", "path", "scenarios/slow-then-gone.yml", "", empty=True),
    Variable("collect", "text", "RUN_ID", "", pattern=r"\d+"),
    Variable("stop", "text", "RUN_ID", "", pattern=r"\d+"),
    Variable("follow", "text", "RUN_ID", "", pattern=r"\d+"),
    Variable("resume", "text", "RUN_ID", "", pattern=r"\d+|auto"),
    Variable("resume_changed", "truth", "true", False),
)
RUN_CONFIG_KEYS = {variable.name: variable.key for variable in TRAINING}
EARLIER = (
    "collect",
    "stop",
    "follow",
    "resume",
)  # with these, run.yml is about a run that was submitted before
VERBS: dict[str, dict[str, Variable]] = {
    "site": {
        **RUN,
        **_table(
            Variable("train", "truth", "true", True),
            Variable("rotate_keys", "truth", "true", False),
            Variable("redeploy", "truth", "true", False),
        ),
    },
    "run": RUN,
    "throttle": _table(
        Variable("cpu", "number", "0.5", low=CPU_FLOOR, most=CORES),
        Variable("memory", "size", "512m", most=MEMORY),
        Variable("pids", "whole", "256", low=1, most=PIDS),
        Variable("down", "rate", "10mbit", low=RATE_FLOOR, most=RATE),
        Variable("up", "rate", "10mbit", low=RATE_FLOOR, most=RATE),
        Variable("delay", "latency", "50ms", low=0, most=60),
        Variable("jitter", "latency", "10ms", low=0, most=60),
        Variable("loss", "percent", "1%", low=0, high=100),
        Variable("profile", "text", "NAME"),
        Variable("clients", "text", "'node1-*'", "*"),
        Variable("fraction", "number", "0.5", 1.0, above=0, high=1),
        Variable("seed", "whole", "0", 0, low=0, high=2**32 - 1),
        Variable("duration", "duration", "60s", above=0, most=MONTH),
        Variable("prove", "duration", "10s", above=0, most=3600),
        Variable("load", "truth", "true", False),
        Variable("undo", "truth", "true", False),
        Variable("force", "truth", "true", False),
        Variable("trace", "path", "FILE", ""),
        Variable("trace_speed", "number", "1.0", 1.0, above=0, most=1_000_000),
        Variable("trace_loop", "truth", "true", False),
    ),
    "experiment": _table(
        Variable("file", "path", "experiments/stragglers.yml", ""),
        Variable("oversubscribed", "truth", "true", False),
    ),
    "compare": _table(
        Variable("runs", "text", "RUN_ID,RUN_ID", ""),
        Variable("baseline", "text", "RUN_ID", ""),
        Variable("target", "number", "0.9", above=0, high=1),
        Variable("oversubscribed", "truth", "true", False),
    ),
    "export": _table(
        Variable("run", "text", "RUN_ID", ""),
        Variable("to", "choice", "rocrate", "rocrate", choices=("rocrate", "tensorboard", "mlflow")),
        Variable("tracking_uri", "text", "https://mlflow.example.org", "", pattern=r"\S+"),
    ),
    "status": _table(Variable("output", "choice", "json", "table", choices=("table", "json"))),
    "connect": _table(Variable("close", "truth", "true", False)),
    "calibrate": _table(  # cpu: it has one thread
        Variable("cpu", "number", "0.1", low=CPU_FLOOR, high=1),
        Variable("seconds", "number", "30", 5.0, low=1, high=3600),
    ),
    "teardown": _table(
        Variable("purge", "truth", "true", False),
        Variable("interrupt", "truth", "true", False),
        Variable("yes", "truth", "true", False),  # purge without being asked
    ),
}
CLIENT = _table(
    Variable("name", "text", "node1-0", pattern=r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"),
    Variable("cpu", "number", "0.5", low=CPU_FLOOR, most=CORES),
    # Below, a training client is killed for lack of memory while it imports torch.
    Variable("memory", "size", "512m", low=MEMORY_FLOOR, most=MEMORY),
    Variable("pids", "whole", "256", low=64, most=PIDS),
    Variable("profile", "text", "NAME", empty=True),
    *(VERBS["throttle"][name] for name in ("down", "up", "delay", "jitter", "loss")),
)
# A client's container is FEDERATION-NAME, and so is that of each other part of the federation.
PARTS = {
    "server": "server",
    "agent": "agent",
    "prometheus": "Prometheus",
    "grafana": "Grafana",
    "node-exporter": "node exporter",
    "container-exporter": "container exporter",
}
# What Ansible itself reads, as far as we do, too.
CONNECTION = _table(
    Variable("ansible_host", "text", "192.0.2.10"),
    Variable("ansible_port", "whole", "22", low=1, high=65535),
    Variable("ansible_user", "text", "ada"),
)
# Settings of the inventory: host variables, group variables, or -e.
INVENTORY = _table(
    Variable("fl_federation", "text", "coldframe", pattern=r"[a-z][a-z0-9_]{0,30}"),
    Variable("fl_client_count", "whole", "3", low=0, most=1000),
    Variable("fl_client_list", "entries", '[{"name": "slow", "cpu": 0.25}]'),
    *(
        replace(variable, name=f"fl_client_{variable.name}")
        for variable in CLIENT.values()
        if variable.name != "name"
    ),
    Variable("fl_address", "text", "192.0.2.10", pattern=r"[A-Za-z0-9][A-Za-z0-9.-]*"),
    Variable("fl_port", "whole", str(PORTS["fl_port"]), low=1, high=65535),
    Variable("fl_metrics_port", "whole", str(PORTS["fl_metrics_port"]), low=1, high=65535),
    Variable("fl_monitoring", "truth", "true"),
    Variable("prometheus_port", "whole", str(PORTS["prometheus_port"]), low=1, high=65535),
    Variable("node_exporter_port", "whole", str(PORTS["node_exporter_port"]), low=1, high=65535),
    Variable("container_exporter_port", "whole", str(PORTS["container_exporter_port"]), low=1, high=65535),
    Variable("prometheus_image", "text", "debian", pattern=r"[a-z0-9][A-Za-z0-9._:/@-]*"),
    Variable("prometheus_scrape_interval", "text", "5s", pattern=r"([1-9]|1[0-5])s"),
    Variable("prometheus_retention_time", "text", "15d", pattern=r"[1-9]\d{0,3}[hdw]|[1-9]\d?y"),
    Variable("prometheus_retention_size", "text", "2GB", pattern=r"[1-9]\d{0,5}[MGT]B"),
    Variable("prometheus_memory", "size", "512m", low=128 << 20, most=MEMORY),
    Variable("fl_runtime", "choice", "warm", choices=("warm", "stock")),
    Variable("fl_image_builder", "text", "MACHINE"),
    Variable("fl_image_base_mode", "choice", "auto", choices=("auto", "registry", "debian")),
    Variable("fl_image_registry", "registry", "registry.example.org/lab", empty=True),
    Variable("fl_image_torch_index", "text", "URL", empty=True),
    Variable("fl_data_dir", "path", "path/to/data", empty=True),
    Variable("fl_data_source", "choice", "auto", choices=("auto", "download", "npm", "folder")),
    Variable("fl_results_dir", "path", "results", empty=True),
    Variable("fl_server_memory", "size", "2g", low=SERVER_MEMORY, most=MEMORY),
    Variable("fl_keep_runs", "whole", "50", low=1, most=100_000),
    Variable("fl_min_disk", "size", "4g"),
    Variable("grafana_port", "whole", str(PORTS["grafana_port"]), low=1, high=65535),
    Variable("grafana_image", "text", "NAME:TAG"),
    Variable("grafana_archive", "path", "FILE"),
    Variable("grafana_directory", "text", "/srv/grafana", pattern=r"/.+"),
    Variable("grafana_anonymous", "truth", "true"),
    Variable("docker_engine_manage", "truth", "true"),
    Variable("docker_engine_source", "choice", "docker", choices=("distribution", "docker")),
    Variable("docker_engine_repository", "text", "URL"),
    Variable(
        *("docker_engine_key", "text", "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"),
        pattern=r"[0-9A-Fa-f]{40}",
    ),
    Variable("docker_engine_log", "text", "/var/log/coldframe-dockerd.log"),
    Variable("docker_engine_start_timeout", "whole", "60", low=1, most=3600),
)
# What other tools call a limit.
ALSO_CALLED = {
    "bandwidth": ("down", "up"),
    "rate": ("down", "up"),
    "download": ("down",),
    "upload": ("up",),
    "latency": ("delay",),
    "cpus": ("cpu",),
    "mem": ("memory",),
    "packet_loss": ("loss",),
}


# How the numbers of a kind are shown; the others as they are.
SHOWN: dict[str, Callable[[float], str]] = {"size": format_size, "rate": format_rate}


def expected(variable: Variable) -> str:
    """What a value of a variable has to be, in words: ``a whole number ≥ 1``."""
    if variable.kind == "choice":
        return f"one of {', '.join(choice for choice in variable.choices if choice)}"
    show = SHOWN.get(variable.kind, "{:.10g}".format)
    words = NOUNS[variable.kind]
    low, high, above = variable.low, variable.high, variable.above
    if low is not None and high is not None:
        return f"{words} from {show(low)} to {show(high)}"
    if above is not None:
        return f"{words} > {show(above)}" + (f" and ≤ {show(high)}" if high is not None else "")
    return words + (f" ≥ {show(low)}" if low is not None else "")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` is most like, or nothing."""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)), "")


def typed(name: str, value: str) -> str:
    """How a variable is given on the command line."""
    if value.startswith(("{", "[")):
        return f"-e '{{\"{name}\": {value}}}'"
    return f"-e {name}={value}"


def cast_value(variable: Variable, value: object) -> Any:
    """The typed value of a variable.

    Raises
    ------
    ValueError
        If it is none, with what follows ``name=value``: "is not a whole number ≥ 1: type -e rounds=5".
    """
    remedy = f"type {typed(variable.name, variable.example)}"
    if value is None:
        raise ValueError(f"is empty: {remedy}, or leave it out")
    if variable.kind == "choice":
        return _cast_choice(variable, str(value))
    try:
        result = KINDS[variable.kind](value)
    except Wrong as error:  # it knows what is meant
        right = " or ".join(f"{typed(variable.name, text)}{why}" for text, why in error.right)
        raise ValueError(f"{error}: type {right}") from None
    except ValueError:
        raise ValueError(f"is not {expected(variable)}: {remedy}") from None
    if isinstance(result, int | float) and not isinstance(result, bool):
        low, high, above = variable.low, variable.high, variable.above
        if (
            (low is not None and result < low)
            or (high is not None and result > high)
            or (above is not None and result <= above)
        ):
            raise ValueError(f"is not {expected(variable)}: {remedy}")
        if variable.most is not None and result > variable.most:
            show = SHOWN.get(variable.kind, "{:.10g}".format)
            unit = " s" if variable.kind in ("duration", "latency", "deadline") else ""
            raise ValueError(f"is more than {show(variable.most)}{unit}: {remedy}")
    if variable.kind in ("text", "path") and not result.strip():
        raise ValueError(f"is empty: {remedy}, or leave it out")
    if variable.pattern and not re.fullmatch(variable.pattern, result):
        raise ValueError(f"does not have the form {variable.pattern}: {remedy}")
    return result


def _cast_choice(variable: Variable, value: str) -> str:
    name = value.strip().lower() if variable.name == "fl_strategy" else value.strip()
    if name in variable.choices:
        return name
    if variable.name == "fl_strategy" and name.startswith("fedxgb"):
        raise ValueError(
            "merges the trees of XGBoost models, and the models here are arrays of a neural network: "
            "type -e fl_strategy=fedavg, or run an XGBoost app of your own with -e app=path/to/app"
        )
    near = nearest(name, variable.choices)
    meant = f"did you mean {near}? Type" if near else "type"
    raise ValueError(
        f"is not known ({expected(variable)}): {meant} {typed(variable.name, near or variable.example)}"
    )


def cast(verb: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Typed values of all variables of a verb, from what was given and else the defaults.

    Parameters
    ----------
    verb : str
        site, run, throttle, status or teardown.
    given : mapping
        Values as Ansible has them; names that are no variables of the verb are passed over.

    Returns
    -------
    values : dict
        Every variable of the verb; a default stands in for a value that is none.
    findings : list of Finding
        One for each value that is none, or that does not fit another.
    """
    values: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, variable in VERBS[verb].items():
        values[name] = variable.default
        value = given.get(name, "")
        if name not in given or (value == "" and variable.empty):
            continue
        try:
            values[name] = cast_value(variable, value)
        except ValueError as error:
            findings.append(_finding(name, value, error))
    if verb in ("site", "run"):
        findings += _check_arguments(values)
    return values, findings


def cast_inventory(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Typed values of those inventory variables that are given, and a finding for each that is none."""
    values: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, variable in {**INVENTORY, **CONNECTION}.items():
        value = given.get(name)
        if name not in given or (value == "" and variable.empty):
            continue
        if variable.kind == "entries" and value is not None:
            findings += _check_entries(value)
            values[name] = value
            continue
        try:
            values[name] = cast_value(variable, value)
        except ValueError as error:
            findings.append(_finding(name, value, error))
    return values, findings


def _finding(name: str, value: object, error: ValueError) -> Finding:
    problem, _, remedy = str(error).partition(": ")
    if value is None:
        return Finding(f"{name} {problem}", remedy)
    shown = value if isinstance(value, str | int | float) else json.dumps(value, default=str, skipkeys=True)
    return Finding(f"{name}={shown} {problem}", remedy)


def _check_entries(entries: object) -> list[Finding]:
    """Findings about `fl_client_list`."""
    if isinstance(entries, str) or not isinstance(entries, Collection) or isinstance(entries, Mapping):
        example = INVENTORY["fl_client_list"].example
        remedy = f"type {typed('fl_client_list', example)}"
        if isinstance(entries, str) and entries.startswith("["):  # the host's line of an INI file
            remedy = f"an INI file has it below [fl_clients:vars], as fl_client_list={example}"
        return [Finding("fl_client_list is not a list of clients", remedy)]
    findings = []
    for k, entry in enumerate(entries):
        where = f"fl_client_list[{k}]"
        if not isinstance(entry, Mapping):
            findings.append(
                Finding(f"{where} is not a dictionary", 'write it like {"name": "slow", "cpu": 0.25}')
            )
            continue
        for key, value in entry.items():
            if key not in CLIENT:
                near = nearest(str(key), CLIENT)
                remedy = f"write {near}" if near else f"it can have {', '.join(CLIENT)}"
                findings.append(Finding(f"{where} has the unknown key {key}", remedy))
            elif not (value == "" and CLIENT[key].empty):
                findings += _check_entry(f"{where}: {key}", CLIENT[key], value)
    return findings


def _check_entry(where: str, variable: Variable, value: object) -> list[Finding]:
    """Findings about one key of a client in `fl_client_list`."""
    try:
        result = cast_value(variable, value)
    except ValueError as error:
        found = _finding(where, value, error)
        remedy = found.remedy.replace(f"-e {variable.name}=", f"{variable.name}: ").replace("type ", "write ")
        return [Finding(found.problem, remedy)]
    if variable.name == "name" and result in PARTS:
        problem = (
            f"{where}={result} is taken: the federation's own container of that name is its {PARTS[result]}"
        )
        return [Finding(problem, f"write name: {result}-0")]
    return []


def _check_arguments(values: Mapping[str, Any]) -> list[Finding]:
    """Findings about arguments that do not fit the strategy, wrapper or partitioner that they are for."""
    findings: list[Finding] = []
    strategy, dp, partitioner = values["fl_strategy"], values["fl_dp"], values["partitioner"]
    rules = arguments.STRATEGIES[strategy]
    findings += _shown(
        "strategy_args", arguments.judge(f"strategy {strategy}", rules, values["strategy_args"])
    )
    findings += _check_names(
        "partitioner_args", f"partitioner {partitioner}", values, PARTITIONER_ARGUMENTS[partitioner]
    )
    if dp:
        rules = arguments.PRIVACY[dp]
        findings += _shown("dp_args", arguments.judge(f"fl_dp={dp}", rules, values["dp_args"]))
    elif values["dp_args"]:
        findings.append(
            Finding(
                "dp_args are given, but fl_dp is not", f"type -e fl_dp={next(iter(arguments.PRIVACY))} too"
            )
        )
    if not values["app"]:
        for key in values["run_config"]:
            if key not in RUN_CONFIG_KEYS.values():
                near = nearest(key, RUN_CONFIG_KEYS.values())
                remedy = (
                    f"write {near}" if near else "set run_config for an app of your own (-e app=path/to/app)"
                )
                findings.append(Finding(f"run_config has the key {key}, which the app does not know", remedy))
    if values.get("concurrent") and values.get("interrupt"):
        findings.append(Finding("concurrent and interrupt are given together", "leave one of them out"))
    if len(given := [name for name in EARLIER if values[name]]) > 1:
        first = f"type -e {given[-1]}={values[given[-1]]} first, then -e {given[0]}=…"
        findings.append(Finding(f"{' and '.join(given)} are given together", first))
    return findings


def _shown(name: str, problems: Iterable[arguments.Problem]) -> list[Finding]:
    """Problems of the arguments that a variable holds, with what to type for them."""
    findings = []
    for problem in problems:
        remedy = problem.hint
        if problem.args is not None:
            command = typed(name, json.dumps(dict(problem.args), default=str))
            remedy = f"{remedy} Type {command}" if remedy else f"type {command}"
        findings.append(Finding(problem.text, remedy))
    return findings


def _check_names(name: str, what: str, values: Mapping[str, Any], known: tuple[str, ...]) -> list[Finding]:
    findings = []
    for key, value in values[name].items():
        if key not in known:
            near = nearest(key, known)
            if near:
                remedy = f"did you mean {near}? Type {typed(name, json.dumps({near: value}))}"
            elif known:
                remedy = f"it has {', '.join(known)}"
            else:
                remedy = f"it takes none, so leave {name} out"
            findings.append(Finding(f"{what} has no argument {key}", remedy))
        elif isinstance(value, bool) or not isinstance(value, int | float):
            findings.append(
                Finding(
                    f"{name}: {key}={value} is not a number", f"type {typed(name, json.dumps({key: 0.1}))}"
                )
            )
    return findings


def vault_remedy(failure: str) -> str:
    """What to type where a value is encrypted and its password missing; nothing for other failures."""
    if re.search(r"no vault secrets (were )?found|vault password", failure, re.IGNORECASE):
        return "type --ask-vault-pass too, and Ansible asks for the password (or --vault-password-file FILE)"
    return ""


def check_names(verb: str, names: Iterable[str], also: Collection[str] = ()) -> list[Finding]:
    """A finding for each ``-e`` variable that neither the verb, the inventory nor a role (`also`) knows."""
    known = {**VERBS[verb], **INVENTORY}
    findings = []
    for name in names:
        if name in known or name in also or name.startswith("ansible_"):
            continue
        if name in ALSO_CALLED and all(word in VERBS[verb] for word in ALSO_CALLED[name]):
            commands = " and ".join(typed(word, known[word].example) for word in ALSO_CALLED[name])
            findings.append(Finding(f"unknown variable {name!r} for {verb}.yml", f"type {commands}"))
            continue
        owners = [other for other, table in VERBS.items() if name in table]
        near = nearest(name, known) or nearest(name, also)
        if owners:
            remedy = f"it belongs to {' and '.join(f'{owner}.yml' for owner in owners)}; remove it here"
        elif near:
            example = known[near].example if near in known else "..."
            remedy = f"did you mean {near!r}? Type {typed(near, example)}"
        else:
            remedy = f"remove it ({verb}.yml takes {', '.join(VERBS[verb])})"
        findings.append(Finding(f"unknown variable {name!r} for {verb}.yml", remedy))
    return findings


def check_clients(values: Mapping[str, Any], clients: int | None) -> list[Finding]:
    """A finding if the run waits for more clients than the roster has (None: it is not known)."""
    names = ("min_train_clients", "min_evaluate_clients", "min_available_clients")
    if clients is None or any(values[name] for name in EARLIER) or not values.get("train", True):
        return []
    if clients == 0:
        remedy = "give a machine of fl_clients an fl_client_count of 1 or more, or clients in fl_client_list"
        without = ", or type -e train=false" if "train" in values else ""
        return [Finding("there is no client to train on", remedy + without)]
    if values["app"]:
        return []
    findings = []
    if large := [name for name in names if values[name] > clients]:
        shown = ", ".join(f"{name}={values[name]}" for name in large)
        more = "is more than the" if len(large) == 1 else "are more than the"
        remedy = (
            f"type {' '.join(f'-e {name}={clients}' for name in large)}, or add clients (fl_client_count)"
        )
        plural = "client" if clients == 1 else "clients"
        findings.append(Finding(f"{shown} {more} {clients} {plural} of the inventory", remedy))
    return findings + _check_replies(values, clients)


def _check_replies(values: Mapping[str, Any], clients: int) -> list[Finding]:
    """Findings where strategy or privacy wrapper need more replies in a round than there can be."""
    strategy, args, least = values["fl_strategy"], values["strategy_args"], values["min_train_clients"]
    sampled = max(int(clients * values["fraction_train"]), least)
    findings: list[Finding] = []
    if values["fl_dp"] and not arguments.judge("", arguments.PRIVACY[values["fl_dp"]], values["dp_args"]):
        noise = arguments.judge_privacy(values["fl_dp"], values["dp_args"], sampled)
        findings += _shown("dp_args", noise)
    if arguments.judge("", arguments.STRATEGIES[strategy], args):
        return findings  # said already
    need = arguments.replies_needed(strategy, args)
    replies = min(arguments.least_replies(strategy, sampled, least), clients)
    if replies >= need:
        return findings
    shown = ", ".join(f"{key}={value}" for key, value in args.items()) or "no arguments"
    has = f"the inventory has {clients}" if clients < need else f"a round may have {replies}"
    problem = f"{strategy} with {shown} needs the replies of {need} clients, and {has}"
    remedy = f"type -e min_train_clients={need}"
    if clients < need:
        fitting = arguments.fitting(strategy, args, clients)
        other = f"-e fl_strategy=fedmedian without strategy_args -e min_train_clients={min(least, clients)}"
        if fitting is not None:
            fewest = min(max(least, arguments.replies_needed(strategy, fitting)), clients)
            other = f"{typed('strategy_args', json.dumps(fitting))} -e min_train_clients={fewest}"
        remedy = f"type {other}, or add clients (fl_client_count) and type -e min_train_clients={need}"
    return [*findings, Finding(problem, remedy)]
