"""The arguments of strategies and privacy wrappers, and their ranges, without Flower.

The run refuses by these rules, and preflight on the controller by the same, before anything is submitted.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument: a number and its range, or one of some words.

    Attributes
    ----------
    example : float or str
        A value that works.
    low, high : float
        The range, both ends included; `above` and `below` are ends that are not.
    whole : bool
        Whether it counts something.
    needed : bool
        Whether there is no default.
    choices : tuple of str
        The words, if it is no number.
    """

    example: float | str
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False
    needed: bool = False
    choices: tuple[str, ...] = ()

    def allows(self, value: object) -> bool:
        """Say whether a value is such a number, or one of the words."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return self.low <= value <= self.high and self.above < value < self.below

    def words(self) -> str:
        """Say what a value has to be: ``a number ≥ 0 and < 0.5``."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        ends = [("≥", self.low), (">", self.above), ("≤", self.high), ("<", self.below)]
        shown = " and ".join(f"{sign} {end:g}" for sign, end in ends if math.isfinite(end))
        return f"a {'whole ' if self.whole else ''}number {shown}".rstrip()


_STEP = Argument(0.1, above=0, high=1000)
_DECAY = Argument(0.9, low=0, below=1)
_ADAPTIVE = {"eta": _STEP, "eta_l": _STEP, "tau": Argument(0.001, above=0, high=1000)}
_MALICIOUS = Argument(1, low=0, high=10_000, whole=True)
_ASYNCHRONOUS = {
    "concurrency": Argument(8, low=1, high=100_000, whole=True),
    "max_staleness": Argument(20, low=0, high=1_000_000, whole=True),
    "staleness_exponent": Argument(0.5, low=0, high=100),
}
# Every strategy of Flower that works on arrays, and two that it lacks, with the arguments of their own.
STRATEGIES: dict[str, dict[str, Argument]] = {
    "fedavg": {},
    "fedavgm": {"server_learning_rate": Argument(1.0, above=0, high=1000), "server_momentum": _DECAY},
    "fedprox": {"proximal_mu": Argument(0.1, low=0, high=1e6)},
    "fedadagrad": _ADAPTIVE,
    "fedadam": {**_ADAPTIVE, "beta_1": _DECAY, "beta_2": Argument(0.99, low=0, below=1)},
    "fedyogi": {**_ADAPTIVE, "beta_1": _DECAY, "beta_2": Argument(0.99, low=0, below=1)},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": Argument(0.2, low=0, below=0.5)},
    "krum": {"num_malicious_nodes": _MALICIOUS},
    "multikrum": {
        "num_malicious_nodes": _MALICIOUS,
        "num_nodes_to_select": Argument(2, low=1, high=10_000, whole=True),
    },
    "bulyan": {"num_malicious_nodes": _MALICIOUS},
    "qfedavg": {"client_learning_rate": _STEP, "q": Argument(0.2, low=0, high=1000)},
    "fedbuff": {
        **_ASYNCHRONOUS,
        "buffer_size": Argument(10, low=1, high=100_000, whole=True),
        "server_learning_rate": _STEP,
        "server_optimizer": Argument("sgd", choices=("sgd", "adam")),
        "server_momentum": _DECAY,
        "beta_1": _DECAY,
        "beta_2": Argument(0.99, low=0, below=1),
        "tau": Argument(0.001, above=0, high=1000),
    },
    "fedasync": {
        **_ASYNCHRONOUS,
        "alpha": Argument(0.6, above=0, high=1),
        "staleness": Argument("polynomial", choices=("constant", "polynomial", "hinge")),
        "hinge_slope": Argument(10, low=0, high=1e6),
        "hinge_threshold": Argument(4, low=0, high=1e6),
        "proximal_mu": Argument(0.005, low=0, high=1e6),
        "updates_per_round": Argument(10, low=1, high=100_000, whole=True),
    },
}
# Those that wait for no client: a round of theirs has no phase in which a fixed number of clients replies.
ASYNCHRONOUS = ("fedbuff", "fedasync")

_NOISE = Argument(0.1, low=0, high=1e6, needed=True)
_NORM = Argument(10.0, above=0, high=1e9, needed=True)
_SAMPLED = Argument(2, low=1, high=100_000, whole=True)  # Flower demands it; the run knows it
_FIXED = {"noise_multiplier": _NOISE, "clipping_norm": _NORM, "num_sampled_clients": _SAMPLED}
_MOVING = {
    "noise_multiplier": _NOISE,
    "num_sampled_clients": _SAMPLED,
    "initial_clipping_norm": Argument(0.1, above=0, high=1e9),
    "target_clipped_quantile": Argument(0.5, low=0, high=1),
    "clip_norm_lr": Argument(0.2, above=0, high=1000),
    "clipped_count_stddev": Argument(1.0, low=0, high=1e9),
}
# Differential privacy; `local` is all the client's, and the server's strategy stays as it is.
PRIVACY: dict[str, dict[str, Argument]] = {
    "server-fixed": _FIXED,
    "server-adaptive": _MOVING,
    "client-fixed": _FIXED,
    "client-adaptive": _MOVING,
    "local": {
        "clipping_norm": _NORM,
        "sensitivity": Argument(1.0, low=0, high=1e9, needed=True),
        "epsilon": Argument(1.0, above=0, high=1e9, needed=True),
        "delta": Argument(1e-5, above=0, below=1, needed=True),
    },
}


@dataclass(frozen=True)
class Problem:
    """Arguments that cannot work.

    Attributes
    ----------
    text : str
        What is wrong, without a remedy.
    args : mapping or None
        Arguments that would work; None where there are none to name.
    hint : str
        What can be said beside them.
    """

    text: str
    args: Mapping[str, Any] | None = None
    hint: str = ""

    def __str__(self) -> str:
        works = [f"{dict(self.args)} would work"] if self.args is not None else []
        return f"{self.text}: {' '.join([self.hint] * bool(self.hint) + works)}"


def judge(what: str, known: Mapping[str, Argument], given: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with each argument for itself.

    Parameters
    ----------
    what : str
        Whose arguments they are, as it is shown: ``strategy fedprox``.
    """
    problems = []
    for key, value in given.items():
        rest = {name: other for name, other in given.items() if name != key}
        if key not in known:
            near = next(iter(difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)), "")
            text = f"{what} has no argument {key}"
            if near:
                right = value if known[near].allows(value) else known[near].example
                problems.append(Problem(text, {**rest, near: right}, f"did you mean {near}?"))
            else:
                problems.append(Problem(text, hint=f"it {_list(known)}"))
        elif not known[key].allows(value):
            text = f"{what}: {key}={value} is not {known[key].words()}"
            problems.append(Problem(text, {**given, key: known[key].example}))
    missing = [key for key, argument in known.items() if argument.needed and key not in given]
    if missing:
        working = {**given, **{key: known[key].example for key in missing}}
        problems.append(Problem(f"{what} needs {', '.join(missing)}", working))
    return problems


def _list(known: Collection[str]) -> str:
    return f"has {', '.join(known)}" if known else "takes none, so leave them out"


def judge_privacy(dp: str, given: Mapping[str, Any], sampled: int) -> list[Problem]:
    """Return what is wrong with the arguments of a privacy wrapper in a run that samples so many clients."""
    problems = judge(f"fl_dp={dp}", PRIVACY[dp], given)
    if problems or "clipped_count_stddev" not in PRIVACY[dp]:
        return problems
    # The noise of the count of clipped updates takes a part of the budget (arXiv:1905.03871): less of it than
    # half of the multiplier leaves nothing for the updates.
    count = given.get("num_sampled_clients", sampled)
    noise, deviation = given["noise_multiplier"], given.get("clipped_count_stddev", count / 20)
    if not noise or noise < 2 * deviation:
        return []
    why = "" if "clipped_count_stddev" in given else f" ({count} clients / 20)"
    text = (
        f"fl_dp={dp}: noise_multiplier={noise:g} needs a clipped_count_stddev above {noise / 2:g}, "
        f"and that is {deviation:g}{why}"
    )
    return [Problem(text, {**given, "clipped_count_stddev": noise})]


def judge_work(seconds: float, dp: str, strategy: str) -> list[Problem]:
    """Return what is wrong with a limit of the clients' work, in a run with a privacy wrapper (or none)."""
    if seconds and strategy in ASYNCHRONOUS:
        text = f"round_work={seconds:g} is for rounds that wait for clients, and {strategy} waits for none"
        return [Problem(text, hint="leave round_work out")]
    if not seconds or dp in ("", "local"):
        return []
    text = f"fl_dp={dp} computes its noise for equal shares, and partial work makes them unequal"
    return [Problem(text, hint="leave round_work or fl_dp out")]


def judge_asynchronous(strategy: str, dp: str) -> list[Problem]:
    """Return why a strategy that waits for no client cannot be private: noise by the client alone can be."""
    if strategy not in ASYNCHRONOUS or dp in ("", "local"):
        return []
    text = (
        f"strategy {strategy} uses each update as it comes, and the accounting of dp={dp} counts on rounds"
        " of a fixed number of clients"
    )
    return [Problem(text, hint="leave one of them out, or choose dp=local")]


def replies_needed(strategy: str, args: Mapping[str, Any]) -> int:
    """Return without how many replies a strategy that withstands malicious clients cannot aggregate.

    Krum's guarantee holds for n ≥ 2 f + 3 (Blanchard et al. 2017), Bulyan's for n ≥ 4 f + 3 (El Mhamdi et al.
    2018). None of Multi-Krum's choice may have to come from the malicious.
    """
    malicious = int(args.get("num_malicious_nodes", 0))
    if strategy == "bulyan":
        return 4 * malicious + 3
    if strategy not in ("krum", "multikrum"):
        return 1
    return max(2 * malicious + 3 if malicious else 1, int(args.get("num_nodes_to_select", 1)) + malicious)


def fitting(strategy: str, args: Mapping[str, Any], clients: int) -> dict[str, Any] | None:
    """Return the arguments with as many malicious and chosen clients as so many replies allow; or None."""
    malicious = int(args.get("num_malicious_nodes", 0))
    for fewer in range(malicious, -1, -1):
        tried: dict[str, Any] = {**args, "num_malicious_nodes": fewer}
        if "num_nodes_to_select" in args:
            tried["num_nodes_to_select"] = max(min(int(args["num_nodes_to_select"]), clients - fewer), 1)
        if replies_needed(strategy, tried) <= clients:
            return tried
    return None


def least_replies(strategy: str, sampled: int, min_train: int) -> int:
    """Return with how many replies a strategy has to do.

    Bulyan leaves a round out that has too few, and a round begins with `min_train` clients; Krum aggregates
    what comes.
    """
    return min_train if strategy == "bulyan" else sampled


def together(problems: Iterable[Problem]) -> str:
    """Return all problems as one line."""
    return "; ".join(str(problem) for problem in problems)
