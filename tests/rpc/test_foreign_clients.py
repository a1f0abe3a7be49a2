"""Clients that know nothing but the .proto files, in processes of their own."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from interpret_api.generate import SOURCES
from interpret_server.registry import Registry
from interpret_server.testing import classifier, serve

PROLOGUE = """
import json, struct, sys
folder, address, *rest = sys.argv[1:]
sys.path.insert(0, folder)
import grpc

def floats(data):
    return list(struct.unpack(f"<{len(data) // 4}f", data))
"""

LOAD_RUN_STREAM = """
from interpret_api.v1 import interpret_service_pb2 as runs, interpret_service_pb2_grpc as run_stubs
from interpret_api.v1 import model_service_pb2 as models, model_service_pb2_grpc as model_stubs
from interpret_api.v1 import types_pb2 as types
assert runs.__file__.startswith(folder)

def parts(path):
    header = models.UploadHeader(name="net", manifest_json='{"shape": [2], "bounds": [0, 1]}')
    yield models.UploadModelRequest(header=header)
    yield models.UploadModelRequest(chunk=open(path, "rb").read())

with grpc.insecure_channel(address) as channel:
    loaded = model_stubs.ModelServiceStub(channel).UploadModel(parts(rest[0])).model
    data = struct.pack("<2f", 0, 1)
    tensor = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[1, 2], data=data)
    request = runs.RunRequest(
        model="net",
        plugin="saliency",
        inputs=types.Inputs(tensor=tensor),
        targets=[types.Target(class_index=1)],
    )
    stub = run_stubs.InterpretServiceStub(channel)
    result = stub.Run(request).result
    events = list(stub.RunStream(runs.RunStreamRequest(request=request)))
print(json.dumps({
    "classes": loaded.classes,
    "sha256": loaded.sha256,
    "run": floats(result.tensors["attributions"].data),
    "stream": floats(events[-1].result.tensors["attributions"].data),
    "results": sum(event.WhichOneof("event") == "result" for event in events),
}))
"""

CHUNKED = """
from interpret_api.v1 import chunked_service_pb2 as chunked
from interpret_api.v1 import chunked_service_pb2_grpc as chunked_stubs
from interpret_api.v1 import interpret_service_pb2 as runs, interpret_service_pb2_grpc as run_stubs
from interpret_api.v1 import types_pb2 as types
assert chunked.__file__.startswith(folder)

ROWS, SIZE = 16000, 50000
data = struct.pack(f"<{2 * ROWS}f", *(i / (2 * ROWS) for i in range(2 * ROWS)))

def request(tensor):
    target = types.Target(class_index=1)
    inputs = types.Inputs(tensor=tensor)
    return runs.RunRequest(model="net", plugin="saliency", inputs=inputs, targets=[target])

def messages():
    tensor = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[ROWS, 2], part=1)
    header = chunked.RequestHeader(run=request(tensor), part_sizes=[len(data)])
    yield chunked.CallRequest(header=header)
    for start in range(0, len(data), SIZE):
        chunk = chunked.Chunk(part=1, data=data[start:start + SIZE])
        yield chunked.CallRequest(chunk=chunk)

with grpc.insecure_channel(address) as channel:
    first, *rest = chunked_stubs.ChunkedServiceStub(channel).Call(messages())
    whole = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[ROWS, 2], data=data)
    expected = run_stubs.InterpretServiceStub(channel).Run(request(whole)).result
result = first.header.run.result
received = b"".join(message.chunk.data for message in rest)
print(json.dumps({
    "sizes": list(first.header.part_sizes),
    "part": result.tensors["attributions"].part,
    "equal": received == expected.tensors["attributions"].data,
    "row": floats(received[:8]),
}))
"""

OPEN_INFERENCE = """
from interpret_api.open_inference import grpc_predict_v2_pb2 as pb
from interpret_api.open_inference import grpc_predict_v2_pb2_grpc as stubs
assert pb.__file__.startswith(folder)

with grpc.insecure_channel(address) as channel:
    stub = stubs.GRPCInferenceServiceStub(channel)
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="net"))
    (described,) = metadata.inputs
    tensor = pb.ModelInferRequest.InferInputTensor(
        name=described.name, datatype=described.datatype, shape=[1, 2]
    )
    request = pb.ModelInferRequest(model_name="net", inputs=[tensor])
    request.raw_input_contents.append(struct.pack("<2f", 0, 1))
    raw = stub.ModelInfer(request)
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([0, 1])
    typed = stub.ModelInfer(request)
print(json.dumps({
    "outputs": [output.name for output in raw.outputs],
    "raw": floats(raw.raw_output_contents[0]),
    "typed": list(typed.outputs[0].contents.fp32_contents),
}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules that protoc makes of the .proto files alone."""
    folder = tmp_path_factory.mktemp("foreign")
    protos = [str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCES}"]
    command += [f"-I{files('grpc_tools') / '_proto'}"]
    command += [f"--python_out={folder}", f"--grpc_python_out={folder}", *protos]
    subprocess.run(command, check=True)
    # Without these files the installed package of that name would be found first.
    for package in {Path(proto).parent for proto in protos} | {Path("interpret_api")}:
        (folder / package / "__init__.py").touch()
    return folder


def client(code: str, compiled: Path, address: str, *arguments: str) -> dict[str, object]:
    """What a script prints, run without this package's source roots."""
    run = subprocess.run(
        [sys.executable, "-c", PROLOGUE + code, str(compiled), address, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    answer: dict[str, object] = json.loads(run.stdout)
    return answer


@pytest.fixture(scope="module")
def linear() -> object:
    """Logits `W x` with W = [[1, 2], [3, 5]], of two numbers."""
    import torch

    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    return layer


def test_a_client_made_from_the_protos_loads_runs_and_streams(
    compiled: Path, linear: object, tmp_path: Path
) -> None:
    import hashlib

    import torch

    from interpret_plugins.attribution.saliency import Saliency

    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(linear), str(path))
    registry = Registry()
    registry.add(Saliency, "interpret-server")
    with serve(registry) as address:
        answer = client(LOAD_RUN_STREAM, compiled, address, str(path))
    assert answer == {
        "classes": 2,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "run": [3, 5],
        "stream": [3, 5],
        "results": 1,
    }


def test_a_plain_open_inference_client_gets_predictions(compiled: Path, linear: object) -> None:
    net = classifier(linear, (2,), name="net")
    with serve(Registry(), {"net": net}) as address:
        answer = client(OPEN_INFERENCE, compiled, address)
    assert answer == {"outputs": ["logits", "probabilities"], "raw": [2, 5], "typed": [2, 5]}


def test_a_client_made_from_the_protos_sends_and_reads_chunks(
    compiled: Path, linear: object
) -> None:
    from interpret_plugins.attribution.saliency import Saliency

    registry = Registry()
    registry.add(Saliency, "interpret-server")
    net = classifier(linear, (2,), name="net")
    with serve(registry, {"net": net}) as address:
        answer = client(CHUNKED, compiled, address)
    assert answer == {"sizes": [128000], "part": 1, "equal": True, "row": [3, 5]}
