"""Every attribution method on the same input, side by side in one picture.

    python examples/attribution_sheet.py digits digits.npy sheet.png --row 3

The inputs are an array in the model's bounds; the server has to be running and to have loaded the
model. Methods that the model cannot be explained with are left out, with the reason.
"""

import argparse
from typing import Any

import numpy as np

import interpret_client
from interpret_client import pictures


def attribution_sheet(client: interpret_client.Client, model: str, row: Any) -> Any:
    """A contact sheet: the input, then one heatmap for each method that the model allows."""
    info = client.model(model)
    about = {"inputs": row, "layout": info.input_layout, "bounds": info.bounds}
    cells = {"input": pictures.image(row[0], info.bounds, info.input_layout)}
    for plugin in client.plugins("attribution"):
        try:
            result = client.run(plugin.name, model, row, seed=0)
        except (interpret_client.FailedPrecondition, interpret_client.InvalidRequest) as error:
            print(f"{plugin.name} is left out: {error}")
            continue
        if result.tensors["attributions"].shape[-1] == row.shape[-1]:  # not about a layer's values
            cells[plugin.name] = result.picture(**about)
    return pictures.sheet(cells, columns=6, side=176)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("inputs", help="a .npy file")
    parser.add_argument("output", help="the picture, a .png file")
    parser.add_argument("--row", type=int, default=0)
    parser.add_argument("--address", default="localhost:50051")
    arguments = parser.parse_args()
    row = np.load(arguments.inputs)[arguments.row : arguments.row + 1]
    with interpret_client.connect(arguments.address) as client:
        attribution_sheet(client, arguments.model, row).save(arguments.output)


if __name__ == "__main__":
    main()
