"""How much a client does in a round: as many steps as it can make in the time that a round has for it.

The server tells each client a number of steps, from the speed that it reported with its last reply, and the
seconds in which it is to be done. A client whose speed is not known yet, or that has become slower since,
stops when these are over. Each makes one step at least, and never more than all its epochs have.

It is the partial work of FedProx (Li et al. 2020, arXiv 1812.06127, section 3.2): slow devices are neither
waited for nor left out, they solve their local problem less exactly.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

# Of the time that is left for steps a client is given so many, so that it rarely has to stop by the clock.
MARGIN = 0.9
FASTEST, LONGEST = 1e9, 1e9  # steps per second, and seconds, beyond which a reported figure is nonsense
STEPS, SECONDS = "work-steps", "work-seconds"  # of a message's config
# Metrics of a reply: what was done, and how fast. The recording takes speeds from the second.
DONE, PROCESSED, SPEED, SETUP = "steps", "examples_processed", "steps_per_second", "setup_seconds"


@dataclass(frozen=True)
class Speed:
    """How fast a client was.

    Attributes
    ----------
    steps_per_second : float
        While it trained.
    setup_seconds : float
        Before: the model was unpacked, the data were loaded.
    """

    steps_per_second: float
    setup_seconds: float

    def steps_in(self, seconds: float) -> int:
        """Return how many steps fit into a round's seconds, 1 at least.

        >>> Speed(steps_per_second=2.0, setup_seconds=5.0).steps_in(15.0)
        18
        """
        return max(1, math.floor(MARGIN * self.steps_per_second * (seconds - self.setup_seconds)))


class Pace:
    """Gives each client its work; of the server, for one run.

    Parameters
    ----------
    seconds : float
        That a client has for its work in a round, from when it has the message.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.speeds: dict[int, Speed] = {}  # by node

    def state_dict(self) -> dict[str, dict[int, tuple[float, float]]]:
        """Return the speeds, for a checkpoint of the run."""
        return {"speeds": {node: (it.steps_per_second, it.setup_seconds) for node, it in self.speeds.items()}}

    def load_state_dict(self, found: Mapping[str, Mapping[int, tuple[float, float]]]) -> None:
        """Take over the speeds of a checkpoint."""
        self.speeds = {node: Speed(*speed) for node, speed in found["speeds"].items()}

    def assign(self, messages: Iterable[Message]) -> list[Message]:
        """Tell each client how many steps it has; 0 where its speed is not known: the seconds decide."""
        return [self._assign(message) for message in messages]

    def _assign(self, message: Message) -> Message:
        speed = self.speeds.get(message.metadata.dst_node_id)
        steps = speed.steps_in(self.seconds) if speed else 0
        # Strategies give all clients the same record.
        config = {**message.content.config_records["config"], STEPS: steps, SECONDS: self.seconds}
        message.content = RecordDict({**message.content, "config": ConfigRecord(config)})
        return message

    def learn(self, replies: Iterable[Message]) -> None:
        """Note how fast the clients were.

        Of several replies of a client the first counts: late ones to earlier rounds come after those in time.
        """
        learnt: set[int] = set()
        for reply in replies:
            node_id = reply.metadata.src_node_id
            if reply.has_error() or node_id in learnt:
                continue
            metrics: Mapping[str, object] = next(iter(reply.content.metric_records.values()), {})
            speed, setup = metrics.get(SPEED), metrics.get(SETUP)
            if not isinstance(speed, int | float) or not isinstance(setup, int | float):
                continue
            if 0 < speed < FASTEST and 0 <= setup < LONGEST:
                learnt.add(node_id)
                self.speeds[node_id] = Speed(float(speed), float(setup))


def weight(strategy: str, examples: int, processed: int, epochs: int) -> int:
    """Return the number of examples that a client's model counts for, where it did a part of its work.

    FedAvg weighs by the examples that an update is made of (McMahan et al. 2017, arXiv 1602.05629, Algorithm
    1): those that were processed, over the number of epochs, so that all the work of a client counts for all
    its examples, as without a limit. A client that makes fewer steps counts for less twice, since its update
    is smaller, too: FedAvg then leans towards the data of the fast ones, and nothing here takes that back.

    FedProx averages what its devices have reached, however exactly (section 3.2 of its paper), by the share
    of the data that each has, which is the weight in its experiments (section 5.1, as McMahan et al.). So it
    stays the number of all examples, and the proximal term bounds how far those go that do more.

    Parameters
    ----------
    examples, processed : int
        What the client has, and what it has processed in all epochs together.

    >>> weight("fedavg", 100, 100, 2), weight("fedprox", 100, 100, 2), weight("fedavg", 100, 200, 2)
    (50, 100, 100)
    """
    return examples if strategy == "fedprox" else max(1, round(processed / epochs))


def report(steps: int, processed: int, seconds: float, setup: float) -> dict[str, float]:
    """Return the metrics of a reply that tell the work and the speed."""
    return {DONE: steps, PROCESSED: processed, SPEED: steps / max(seconds, 1e-9), SETUP: setup}
