"""A served model as a torch module."""

import captum.attr
import fake_interpret_server as fakes
import numpy as np
import pytest
import torch
from fake_interpret_server import FakeServer

import interpret_client
from interpret_client import Client
from interpret_client.torch import RemoteModel


def _weights() -> torch.Tensor:
    return torch.from_numpy(fakes.WEIGHTS)


def test_gradient_flows_through_the_server(client: Client, inputs: np.ndarray) -> None:
    module = RemoteModel(client, "net")
    x = torch.from_numpy(inputs).requires_grad_()
    logits = module(x)
    torch.testing.assert_close(logits, x.flatten(1) @ _weights().T)
    cotangent = torch.tensor([[1.0, 0, 2], [0, -1, 0]])
    (gradient,) = torch.autograd.grad(logits, x, cotangent)
    torch.testing.assert_close(gradient, (cotangent @ _weights()).reshape(x.shape))


def test_module_has_no_parameters_and_is_in_evaluation_mode(client: Client) -> None:
    module = RemoteModel(client, "net")
    assert not list(module.parameters())
    assert not module.training
    assert module.model.classes == 3


def test_no_gradient_is_asked_for_where_none_is_needed(
    client: Client, fake: FakeServer, inputs: np.ndarray
) -> None:
    logits = RemoteModel(client, "net")(torch.from_numpy(inputs))
    assert not logits.requires_grad
    assert not fake.requests["ComputeGradient"]


def test_double_precision_callers_keep_their_type(client: Client, inputs: np.ndarray) -> None:
    x = torch.from_numpy(inputs).double().requires_grad_()
    logits = RemoteModel(client, "net")(x)
    assert logits.dtype == torch.float64
    logits[:, 1].sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float64


def test_second_derivative_is_refused_in_words(client: Client, inputs: np.ndarray) -> None:
    x = torch.from_numpy(inputs).requires_grad_()
    logits = RemoteModel(client, "net")(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    torch.testing.assert_close(gradient[0].flatten(), _weights().sum(0))
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.square().sum().backward()


def test_captum_runs_on_a_served_model(client: Client, inputs: np.ndarray) -> None:
    module = RemoteModel(client, "net")
    x = torch.from_numpy(inputs).requires_grad_()
    saliency = captum.attr.Saliency(module).attribute(x, target=[1, 2])
    torch.testing.assert_close(saliency, _weights()[[1, 2]].abs().reshape(x.shape))
    attributions = captum.attr.IntegratedGradients(module).attribute(x, target=1)
    torch.testing.assert_close(attributions.flatten(1).sum(1), module(x.detach())[:, 1])


def test_an_attack_loop_descends_through_the_server(client: Client, inputs: np.ndarray) -> None:
    module = RemoteModel(client, "net")
    x = torch.from_numpy(inputs).requires_grad_()
    optimizer = torch.optim.SGD([x], lr=0.1)
    labels = torch.tensor([0, 0])
    before = torch.nn.functional.cross_entropy(module(x), labels).item()
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()
    assert torch.nn.functional.cross_entropy(module(x), labels).item() < before


async def test_asynchronous_client_is_refused(fake: FakeServer) -> None:
    async with interpret_client.aio.connect(fake.address) as client:
        with pytest.raises(interpret_client.InvalidRequest, match=r"interpret_client\.connect"):
            RemoteModel(client, "net")  # type: ignore[arg-type]


def test_server_errors_reach_the_caller_of_the_module(client: Client, fake: FakeServer) -> None:
    module = RemoteModel(client, "net")
    failure = fakes.Failure(fakes.grpc.StatusCode.FAILED_PRECONDITION, "no gradient here")
    fake.fail("ComputeGradient", failure)
    x = torch.zeros(1, *fakes.SHAPE, requires_grad=True)
    with pytest.raises(interpret_client.FailedPrecondition, match="no gradient here"):
        module(x).sum().backward()
