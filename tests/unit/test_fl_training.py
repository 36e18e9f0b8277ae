"""Local training learns, repeats itself for a seed, and stays near the global model if FedProx says so."""

import itertools
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from coldframe.recording.rounds import sha256_of
from fl import data, model, training


class Small(nn.Module):
    """A net with dropout, so that the seed matters, that trains in milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.log_softmax(self.layers(x), dim=1)


def small() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    root = tmp_path_factory.mktemp("data")
    data.prepare("synthetic", Path(root))
    return {part: data.load(root, "synthetic", part) for part in ("train", "test")}


def trained(samples: dict[str, tuple[Tensor, Tensor]], **kwargs: float) -> Small:
    net = small()
    training.train(net, *samples["train"], **kwargs)  # type: ignore[arg-type]
    return net


def sha(net: nn.Module) -> str:
    return sha256_of({name: tensor.numpy() for name, tensor in net.state_dict().items()})


def test_a_few_epochs_learn_the_synthetic_set(samples: dict[str, tuple[Tensor, Tensor]]) -> None:
    net = small()
    before = training.evaluate(net, *samples["test"])
    metrics = training.train(net, *samples["train"], epochs=2, learning_rate=0.02).metrics
    after = training.evaluate(net, *samples["test"])
    assert before["accuracy"] < 0.3
    assert after["accuracy"] > 0.9
    assert after["loss"] < before["loss"] / 2
    assert 0 < metrics["train_loss"] < before["loss"]
    assert 0.5 < metrics["train_accuracy"] <= 1


def test_one_seed_gives_one_model_hash_and_another_seed_another(
    samples: dict[str, tuple[Tensor, Tensor]],
) -> None:
    first = sha(trained(samples, seed=1))
    torch.manual_seed(99)  # the process's own random state has no say
    assert sha(trained(samples, seed=1)) == first
    assert sha(trained(samples, seed=2)) != first


def test_the_real_cnn_too_gives_one_hash_for_one_seed(samples: dict[str, tuple[Tensor, Tensor]]) -> None:
    x, y = samples["train"]
    hashes = set()
    for _ in range(2):
        net = model.build("synthetic", 3)
        training.train(net, x[:96], y[:96], seed=5)
        hashes.add(sha(net))
    assert len(hashes) == 1


def test_training_leaves_the_global_generator_alone(samples: dict[str, tuple[Tensor, Tensor]]) -> None:
    net = small()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    training.train(net, *samples["train"])
    assert torch.equal(torch.rand(2), expected)


def distance(samples: dict[str, tuple[Tensor, Tensor]], mu: float) -> float:
    start = small()
    net = trained(samples, proximal_mu=mu, momentum=0.0)
    return sum(
        (p - q).square().sum().item() for p, q in zip(net.parameters(), start.parameters(), strict=True)
    )


def test_a_proximal_term_keeps_the_weights_near_the_global_model(
    samples: dict[str, tuple[Tensor, Tensor]],
) -> None:
    assert distance(samples, 0) > 1.5 * distance(samples, 5) > 0


def test_batches_cover_the_samples_and_the_last_one_is_shorter(
    samples: dict[str, tuple[Tensor, Tensor]],
) -> None:
    seen: list[int] = []
    net = small()
    net.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    x, y = samples["train"]
    training.train(net, x[:70], y[:70], epochs=2, batch_size=32)
    assert seen == [32, 32, 6, 32, 32, 6]


def test_a_limit_of_steps_ends_the_training_in_the_midst_of_an_epoch(
    samples: dict[str, tuple[Tensor, Tensor]],
) -> None:
    seen: list[int] = []
    net = small()
    net.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    x, y = samples["train"]
    found = training.train(net, x[:70], y[:70], epochs=3, limit=training.Limit(steps=4))
    assert seen == [32, 32, 6, 32]
    assert (found.steps, found.examples) == (4, 102) and found.seconds > 0
    assert found.metrics["train_accuracy"] * 32 == pytest.approx(round(found.metrics["train_accuracy"] * 32))
    at_the_end = training.train(small(), x[:70], y[:70], epochs=3, limit=training.Limit(steps=3))
    assert (at_the_end.steps, at_the_end.examples) == (3, 70)
    assert 0 < at_the_end.metrics["train_loss"] < 10, "of the epoch that it did"


def test_the_clock_ends_a_training_after_a_step_at_least(
    samples: dict[str, tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(ticks)))
    x, y = samples["train"]
    # It looks at the clock when it begins, after each step, and before each further epoch.
    assert training.train(small(), x[:320], y[:320], limit=training.Limit(until=4.0)).steps == 4
    assert training.train(small(), x[:320], y[:320], limit=training.Limit(until=-1.0)).steps == 1


def test_a_limit_that_nobody_reaches_changes_nothing(samples: dict[str, tuple[Tensor, Tensor]]) -> None:
    nets = [small(), small()]
    x, y = samples["train"]
    training.train(nets[0], x[:96], y[:96], epochs=2, seed=3)
    wide = training.Limit(steps=6, until=time.monotonic() + 3600)
    assert training.train(nets[1], x[:96], y[:96], epochs=2, seed=3, limit=wide).examples == 192
    assert sha(nets[0]) == sha(nets[1])


def test_evaluation_does_not_depend_on_its_batches(
    samples: dict[str, tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small()
    whole = training.evaluate(net, *samples["test"])
    monkeypatch.setattr(training, "EVALUATION_BATCH", 7)
    parts = training.evaluate(net, *samples["test"])
    assert parts["accuracy"] == whole["accuracy"]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_no_samples_are_an_error_to_train_on_and_nothing_to_evaluate() -> None:
    nothing = torch.empty(0, 1, 28, 28), torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="no samples"):
        training.train(small(), *nothing)
    assert training.evaluate(small(), *nothing) == {"loss": 0.0, "accuracy": 0.0}
