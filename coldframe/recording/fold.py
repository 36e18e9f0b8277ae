"""Late work in a later round: what a client that was late has learnt is added to the next aggregate.

Let a client have been sent the model w_sent and have trained it to w_local, and let the model now be w, made
by t aggregations since. Beside the replies in time, the strategy of the round gets

    w + s(t) * (w_local - w_sent),    s(t) = (1 + t)^(-1/2)

with the client's own weight n (its number of examples). What averages replies by their weights then makes

    w + sum_i n_i * s(t_i) * d_i / sum_i n_i,    d_i = w_local,i - w_sent,i

where t = 0 and s = 1 for replies in time. This is the server's step of FedBuff (arXiv 2106.06639, section 3,
Algorithm 1: deltas are averaged and added to the present model; the scaling by s is that of section 5, the
polynomial of FedAsync, arXiv 1903.03934, section 5.2, with a = 1/2), with FedAvg's weights n_i / sum n in the
place of its 1/K. As there, it is divided by the sum of the weights without s: an old delta counts for less,
and makes no other count for more. A buffer ends here with its round, not after K replies.

A stale model is not averaged as it is, with a smaller weight: w_local - w is (w_local - w_sent) less
(w - w_sent), so beside what the client has learnt such an average would take back a share of what all others
have learnt since.

It holds for what adds up weighted deltas: FedAvg, and FedAvgM, FedProx, FedAdagrad, FedAdam and FedYogi,
which take FedAvg's result. `why_not` says so of any other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

from coldframe.recording import replies as contents
from coldframe.recording.replies import BadReply, Form, Rules
from coldframe.recording.rounds import Pending, innermost
from coldframe.strategies.aggregation import polynomial

# Classes whose `aggregate_train` adds up weighted deltas. FedProx has that of FedAvg.
FOLDING = (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi)
# Running statistics of a normalisation, by the end of their names in PyTorch: a variance to which differences
# are added may become negative. They are taken as they are now, as whole numbers are.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Arrays = Mapping[str, Mapping[str, Array]]  # by record


def staleness_weight(staleness: int) -> float:
    """Return the weight of a delta, by the number of aggregations since it was begun.

    >>> [round(staleness_weight(staleness), 4) for staleness in (0, 1, 3)]
    [1.0, 0.7071, 0.5]
    """
    return polynomial(0.5)(staleness)


def why_not(strategy: Any) -> str | None:
    """Return why a strategy cannot take late work; None where it can."""
    kind = type(innermost(strategy))
    found = next((base for base in kind.__mro__ if "aggregate_train" in vars(base)), None)
    if found in FOLDING:
        return None
    return (
        f"{kind.__name__} aggregates in a way of its own, and only of Flower's weighted averages it is known"
        " what they make of late work"
    )


def rebased(local: Arrays, sent: Arrays, present: Arrays, weight: float) -> dict[str, ArrayRecord]:
    """Return what a client has learnt, scaled by a weight, on top of the present model.

    Parameters
    ----------
    local, sent, present : mapping
        The arrays of a reply, of the message that it answers, and of the present model: by record, by key,
        with the same shapes and dtypes.

    Raises
    ------
    BadReply
        If they differ in that, or are no numpy arrays.
    """
    if not set(local) == set(sent) == set(present):
        raise BadReply("its ArrayRecords are not those of the present model")
    found = {}
    for name, record in local.items():
        if not list(record) == list(sent[name]) == list(present[name]):
            raise BadReply(f"the arrays in {name} have other keys than the present model")
        found[name] = ArrayRecord(
            {
                key: _rebased(f"{name}[{key}]", array, sent[name][key], present[name][key], weight)
                for key, array in record.items()
            }
        )
    return found


def _rebased(name: str, local: Array, sent: Array, present: Array, weight: float) -> Array:
    forms = {(array.stype, array.dtype, tuple(array.shape)) for array in (local, sent, present)}
    if len(forms) > 1 or local.stype != "numpy.ndarray":
        raise BadReply(f"{name} has another shape or dtype than in the present model")
    dtype = np.dtype(local.dtype)
    if dtype.kind not in "fc" or name.removesuffix("]").endswith(STATISTICS):
        return present
    wide = np.promote_types(dtype, np.float32)
    learnt = local.numpy().astype(wide) - sent.numpy().astype(wide)
    moved = (present.numpy().astype(wide) + weight * learnt).astype(dtype)
    if not np.isfinite(moved).all():
        raise BadReply(f"{name} has values that are not finite", not_finite=True)
    return Array(np.asarray(moved))


@dataclass
class Expected:
    """A message whose reply is to be folded when it comes.

    Attributes
    ----------
    sent : Message
        With the arrays that were sent, and nothing else.
    version : int
        How many aggregations had been made before.
    reply : Message, optional
        Once it has come, after so many `seconds` from sending.
    """

    pending: Pending
    sent: Message
    version: int
    reply: Message | None = None
    seconds: float = 0.0


@dataclass
class Folded:
    """A late reply as the strategy gets it."""

    expected: Expected
    reply: Message
    staleness: int
    weight: float


class LateWork:
    """Keeps late replies, and the models that they began with, until a phase of training takes them.

    Messages of one phase share their arrays, so it holds a model for each phase that is waited for, and two
    for each client whose reply has come: of the replies of one client the newest is kept.
    """

    def __init__(self) -> None:
        self.version = 0  # aggregations that have been made
        self._lock = threading.Lock()
        self._expected: dict[str, Expected] = {}

    def expect(self, message_id: str, pending: Pending, sent: Message) -> None:
        """Have a late reply kept when it comes."""
        arrays = {name: ArrayRecord(dict(record)) for name, record in sent.content.array_records.items()}
        metadata = sent.metadata
        bare = Message(RecordDict(dict(arrays)), metadata.dst_node_id, metadata.message_type)
        with self._lock:
            self._expected[message_id] = Expected(pending, bare, self.version)

    def settle(self, message_id: str, reply: Message | None, seconds: float) -> list[Expected]:
        """Keep a reply that has come; None: there will be none that can be used.

        Returns
        -------
        list of Expected
            Replies that are not kept any more, since there is a newer one of the same client.
        """
        with self._lock:
            if reply is None:
                self._expected.pop(message_id, None)
            if reply is None or message_id not in self._expected:
                return []
            come = self._expected[message_id]
            come.reply, come.seconds = reply, seconds
            node_id = come.sent.metadata.dst_node_id
            ready = [
                key
                for key, item in self._expected.items()
                if item.reply is not None and item.sent.metadata.dst_node_id == node_id
            ]
            newest = max(ready, key=lambda key: self._expected[key].pending.sent)
            return [self._expected.pop(key) for key in ready if key != newest]

    def take(self) -> list[Expected]:
        """Return the replies that have come since the last time."""
        with self._lock:
            ready = {key: item for key, item in self._expected.items() if item.reply is not None}
            for key in ready:
                del self._expected[key]
        return list(ready.values())

    def fold(self, expected: Expected, present: Message, like: Form, rules: Rules | None) -> Folded:
        """Return a late reply as one to the present model.

        Parameters
        ----------
        present : Message
            One of the phase that takes it, with the present model.
        like : Form
            Of the replies in time, which a strategy demands of all.
        rules : Rules, optional
            What is demanded of replies in time.

        Raises
        ------
        BadReply
            If it cannot be used.
        """
        assert expected.reply is not None
        reply, content = expected.reply, expected.reply.content
        if rules is not None:
            contents.check(reply, expected.sent, rules)
        if contents.form(content) != like:
            raise BadReply("its records are not those of the replies in time")
        staleness = self.version - expected.version
        weight = staleness_weight(staleness)
        now = present.content.array_records
        shared = {name: record for name, record in now.items() if name in content.array_records}
        before = {
            name: record
            for name, record in expected.sent.content.array_records.items()
            if name in content.array_records
        }
        arrays = rebased(content.array_records, before, shared, weight)
        reply.content = RecordDict({**content, **arrays})
        return Folded(expected, reply, staleness, weight)

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            self._expected.clear()
