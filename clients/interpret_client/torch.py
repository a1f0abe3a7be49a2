"""A served model as a torch module, for libraries that want one. The only module that needs torch.

module = interpret_client.torch.RemoteModel(client, "net")
captum.attr.Saliency(module).attribute(inputs, target=3)
"""

from typing import Any

import torch
from torch import Tensor, nn

from ._sync import Client
from .errors import InvalidRequest

__all__ = ["RemoteModel"]


class RemoteModel(nn.Module):
    """A served model: `(N, *input_shape)` in the model's bounds to logits `(N, K)`.

    The model has one input of numbers: token indices have no gradient, and several inputs are no
    one tensor. Both directions run on the server: the forward pass is `Client.predict`, the
    backward pass `Client.gradient`. It has first derivatives only, and no parameters. Inputs on
    any device are taken, and sent in the model's own floating-point type; the logits come back on
    the same device in the same type as the inputs.

    Args:
        client: a connection, which must stay open.
        name: a loaded model.

    Attributes:
        model: what the server knows of it.
    """

    def __init__(self, client: Client, name: str) -> None:
        super().__init__()
        if not isinstance(client, Client):
            raise InvalidRequest.field("client", "needs the client of interpret_client.connect")
        self.client = client
        self.model = client.model(name)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits `(N, K)` of inputs `(N, *input_shape)`."""
        logits: Tensor = _Logits.apply(inputs, self)  # type: ignore[no-untyped-call]
        return logits

    def _sent(self, tensor: Tensor) -> Tensor:
        floating = self.model.input_dtype in ("float32", "float64")
        dtype = getattr(torch, self.model.input_dtype) if floating else torch.float32
        return tensor.to(dtype) if tensor.is_floating_point() else tensor


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, remote: RemoteModel) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.remote = remote
        answer = remote.client.predict(remote.model.name, remote._sent(inputs))
        logits = torch.from_numpy(answer.logits).to(inputs.device)
        return logits.to(inputs.dtype) if inputs.is_floating_point() else logits

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (inputs,) = ctx.saved_tensors
        gradient: Tensor = _Gradient.apply(inputs, grad_outputs[0], ctx.remote)  # type: ignore[no-untyped-call]
        return gradient, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, grad_outputs: Tensor, remote: RemoteModel) -> Tensor:
        answer = remote.client.gradient(
            remote.model.name, remote._sent(inputs), remote._sent(grad_outputs)
        )
        if answer.gradient is None:
            raise RuntimeError("a served model of several inputs has no one gradient")
        return torch.from_numpy(answer.gradient).to(inputs)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "a served model has first derivatives only: this method differentiates the gradient "
            "again, so it needs the model itself"
        )
