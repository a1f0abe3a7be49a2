"""A small file of torch.export, its older layout, and what a refusal must look like."""

import io

import pytest
import torch
from exported_networks import records, rewrite
from torch import nn

from interpret_server.models.exported import open_program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.fc(x.reshape(x.shape[0], -1)))


def older(source, target, state=None, constants=None):
    """The layout that PyTorch 2.1 to 2.7 wrote."""
    contents = records(source)
    (document,) = (value for name, value in contents.items() if name.endswith("model.json"))
    if state is None:
        program = open_program(source)
        state = io.BytesIO()
        torch.save(dict(program.state_dict), state)
    return rewrite(
        target,
        {
            "version": b"8.1",
            "serialized_exported_program.json": document,
            "serialized_state_dict.pt": state.getvalue(),
            "serialized_constants.pt": b"" if constants is None else constants.getvalue(),
            "serialized_example_inputs.pt": b"not a pickle that may be read",
        },
    )


def refuse(path, error, sentence, marker):
    with pytest.raises(error) as caught:
        open_program(path)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message
    assert str(path) not in message
    assert not marker.exists()
