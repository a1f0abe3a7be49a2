"""Second plugins in sandboxed workers, of a plugin folder and installed ones."""

import json
from pathlib import Path

import pytest
import torch
from fleets import MANIFEST, archive, calling, fleet_of, result, rows

from interpret_server.errors import InvalidRequest

PLUGINS = '''
from dataclasses import dataclass

from pydantic import Field

from interpret_server.plugin import *

@dataclass(frozen=True)
class Maps:
    attributions: object = output("Maps.")

class MineParams(Params):
    factor: float = Field(2.0, ge=0, description="Of the inputs.")

class Mine(Plugin[MineParams, Maps]):
    """The inputs times a factor."""
    name = "mine"
    kind = Kind.ATTRIBUTION

    def run(self, model, batch, params, job):
        for _ in job.track(2):
            maps = batch.inputs * params.factor
        return Maps(maps)

class TwiceParams(Params):
    method: Method = Field(Method(plugin="mine"), description="What is doubled.")

class Twice(Plugin[TwiceParams, Maps]):
    """Twice what another plugin gives."""
    name = "twice"
    kind = Kind.METRIC
    uses = {"method": Kind.ATTRIBUTION}

    def run(self, model, batch, params, job):
        for _ in job.track(1):
            maps = job.plugin(params.method).run(model, batch).attributions
        return Maps(2 * maps)
'''


async def test_second_plugins_run_in_a_sandboxed_worker(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "mine.py").write_text(PLUGINS)
    methods = {"mine": 4.0, '{"plugin": "mine", "params": {"factor": 5}}': 10.0, "saliency": 6.0}
    async with fleet_of(folder) as fleet:
        await fleet.load("net", archive(tmp_path / "net.pt", 3.0), MANIFEST)
        for method, expected in methods.items():
            text = method if method.startswith("{") else json.dumps(method)
            call = calling("net", "twice", rows(1.0), params=f'{{"method": {text}}}')
            found = await result(fleet, call)
            values = torch.frombuffer(
                bytearray(found.tensors["attributions"].data), dtype=torch.float32
            )
            assert torch.equal(values, torch.full((4,), expected))
            assert json.loads(found.provenance.params)["method"]["params"]
        with pytest.raises(
            InvalidRequest, match="there is no plugin 'min'; did you mean mine"
        ) as e:
            await result(fleet, calling("net", "twice", params='{"method": "min"}'))
        assert e.value.violations[0].field == "params.method.plugin"
