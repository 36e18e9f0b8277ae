"""The models are what the documents say; their weights survive packing and a strategy's dtype."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from coldframe.recording.rounds import sha256_of
from fl import model


def sha(net: nn.Module) -> str:
    return sha256_of({name: tensor.numpy() for name, tensor in net.state_dict().items()})


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "synthetic"])
def test_the_cnn_has_1199882_parameters(dataset: str) -> None:
    assert count(model.build(dataset)) == 1_199_882


def test_the_cnn_returns_log_probabilities_of_ten_classes() -> None:
    output = model.build("mnist").eval()(torch.zeros(3, 1, 28, 28))
    assert output.shape == (3, 10)
    assert torch.allclose(output.exp().sum(dim=1), torch.ones(3))


def test_the_resnet_takes_colour_images_and_keeps_no_running_statistics() -> None:
    net = model.build("cifar10")
    assert count(net) == 175_258
    assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert not list(net.buffers())


def test_a_seed_fixes_the_initial_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sha(model.build("mnist", 1))
    assert torch.equal(torch.rand(3), expected)
    assert first == sha(model.build("mnist", 1))
    assert first != sha(model.build("mnist", 2))


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_packing_makes_one_array_and_unpacking_restores_every_bit(dataset: str) -> None:
    source, target = model.build(dataset, 1), model.build(dataset, 2)
    packed = model.pack(source.state_dict())
    assert {key: array.shape for key, array in packed.items()} == {"float32": (count(source),)}
    target.load_state_dict(model.unpack(packed, target.state_dict()))
    assert sha(target) == sha(source)


def test_integers_travel_beside_floats_and_come_back_as_integers() -> None:
    source, target = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    source.num_batches_tracked.fill_(7)
    packed = model.pack(source.state_dict())
    assert set(packed) == {"float32", "int64"}
    # What FedAvg and FedAdam do to dtypes: averages of integers and steps with float64 scalars.
    wide = {key: array.astype(np.float64) for key, array in packed.items()}
    target.load_state_dict(model.unpack(wide, target.state_dict()))
    assert target.num_batches_tracked.dtype == torch.int64
    assert int(target.num_batches_tracked) == 7
    assert target.weight.dtype == torch.float32


def test_arrays_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="elements"):
        model.unpack(model.pack(model.build("mnist").state_dict()), nn.Linear(2, 2).state_dict())


def test_unpacking_does_not_tie_the_model_to_the_arrays() -> None:
    net = nn.Linear(2, 2)
    packed = model.pack(net.state_dict())
    before = copy.deepcopy(packed)
    net.load_state_dict(model.unpack(packed, net.state_dict()))
    with torch.no_grad():
        net.weight.add_(1)
    assert np.array_equal(packed["float32"], before["float32"])
