"""Models of several precisions behind one server that runs them in its own process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

import interpret_client
from interpret_api.open_inference import grpc_predict_v2_pb2 as pb
from interpret_api.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from interpret_server.testing import serve

MANIFEST = {"shape": [1, 8, 8], "bounds": [0, 1]}
PRECISIONS = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def address(digit_files: Path) -> Iterator[str]:
    path = digit_files / "digits.pt"
    models = {name: (path, {**MANIFEST, "precision": name}) for name in PRECISIONS}
    with serve(models=models) as address:
        yield address


@pytest.fixture(scope="module")
def digits(digit_files: Path) -> np.ndarray:
    images: np.ndarray = np.load(digit_files / "digits.npy")
    return images[:16]


def test_a_model_and_its_results_tell_their_precision(address: str, digits: np.ndarray) -> None:
    with interpret_client.connect(address) as client:
        models = {model.name: model for model in client.models()}
        for name in PRECISIONS:
            result = client.run("saliency", name, digits[:2])
            assert result.provenance.precision == models[name].precision == name
            assert result.tensors["attributions"].dtype == np.float32
        told = [any("bfloat16" in note for note in models[name].notes) for name in PRECISIONS]
        assert told == [False, True]


def test_models_of_both_precisions_keep_their_answers_beside_each_other(
    address: str, digits: np.ndarray
) -> None:
    with interpret_client.connect(address) as client:

        def attributions(name: str) -> np.ndarray:
            found: np.ndarray = client.run("pgd", name, digits, params={"epsilon": 0.1}).tensors[
                "adversarial"
            ]
            return found

        alone = {name: client.predict(name, digits).logits for name in PRECISIONS}
        gap = np.abs(alone["bfloat16"] - alone["float32"]).max()
        assert 0 < gap < 0.05 * np.abs(alone["float32"]).max()
        with ThreadPoolExecutor(6) as pool:
            attacks = [pool.submit(attributions, name) for name in PRECISIONS]
            names = PRECISIONS * 12
            found = list(pool.map(lambda name: client.predict(name, digits).logits, names))
            assert [attack.result().shape for attack in attacks] == [digits.shape] * 2
        for name, logits in zip(names, found, strict=True):
            if name == "float32":
                np.testing.assert_allclose(logits, alone[name], rtol=1e-5, atol=1e-5)
            else:
                assert np.abs(logits - alone[name]).max() < gap


def test_rows_of_merged_calls_differ_by_bfloat16_noise_at_most(
    address: str, digits: np.ndarray
) -> None:
    wanted = np.eye(10, dtype=np.float32)[[3]]
    with interpret_client.connect(address) as client:

        def gradient(name: str, rows: np.ndarray) -> np.ndarray:
            found = client.gradient(name, rows, np.repeat(wanted, len(rows), 0)).gradient
            assert found is not None
            return found

        together, exact = (gradient(name, digits) for name in reversed(PRECISIONS))
        noise = np.linalg.norm(together - exact)
        with ThreadPoolExecutor(8) as pool:
            merged = [*pool.map(lambda row: gradient("bfloat16", row[None]), digits)]
        assert 0 < noise < 0.2 * np.linalg.norm(exact)
        assert np.linalg.norm(np.concatenate(merged) - together) <= noise


def test_the_open_inference_protocol_tells_the_type_that_it_sends(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for name in PRECISIONS:
            metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=name))
            assert [item.datatype for item in metadata.outputs] == ["FP32", "FP32"]
