"""How failures, retries, timeouts and cancellation look to a caller of the blocking client."""

import os
import signal
import threading
import time
from collections.abc import Callable

import fake_interpret_server as fakes
import grpc
import numpy as np
import pytest
from fake_interpret_server import Failure, FakeServer
from google.rpc import error_details_pb2

import interpret_client
from interpret_client import Client, InterpretClientError
from interpret_client import errors as client_errors

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.INVALID_ARGUMENT, client_errors.InvalidRequest),
        (Code.OUT_OF_RANGE, client_errors.InvalidRequest),
        (Code.NOT_FOUND, client_errors.NotFound),
        (Code.ALREADY_EXISTS, client_errors.AlreadyExists),
        (Code.FAILED_PRECONDITION, client_errors.FailedPrecondition),
        (Code.RESOURCE_EXHAUSTED, client_errors.Overloaded),
        (Code.CANCELLED, client_errors.Cancelled),
        (Code.DEADLINE_EXCEEDED, client_errors.DeadlineExceeded),
        (Code.UNAVAILABLE, client_errors.Unavailable),
        (Code.UNAUTHENTICATED, client_errors.Unauthenticated),
        (Code.PERMISSION_DENIED, client_errors.PermissionDenied),
        (Code.INTERNAL, client_errors.ServerError),
        (Code.UNKNOWN, client_errors.ServerError),
        (Code.UNIMPLEMENTED, client_errors.ServerError),
    ],
)
def test_every_status_becomes_its_error_with_the_servers_sentence(
    client: Client, fake: FakeServer, code: grpc.StatusCode, expected: type[InterpretClientError]
) -> None:
    info = error_details_pb2.ErrorInfo(reason="A_REASON", metadata={"request_id": "r-1"})
    fake.fail("UnloadModel", Failure(code, "the server's sentence", (info,)))
    with pytest.raises(InterpretClientError) as caught:
        client.unload_model("net")
    assert type(caught.value) is expected
    assert caught.value.message == str(caught.value) == "the server's sentence"
    assert caught.value.reason == "A_REASON"
    assert caught.value.request_id == "r-1"
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_field_violations_arrive(client: Client, fake: FakeServer) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="params.epsilon", description="must be positive")
    fake.fail("Run", Failure(Code.INVALID_ARGUMENT, "one field is wrong", (bad,)))
    with pytest.raises(interpret_client.InvalidRequest) as caught:
        client.run("saliency", "net")
    violation = interpret_client.Violation("params.epsilon", "must be positive")
    assert caught.value.violations == (violation,)


def test_error_without_details_or_words_still_says_something(
    client: Client, fake: FakeServer
) -> None:
    fake.fail("UnloadModel", Failure(Code.DATA_LOSS, ""))
    with pytest.raises(interpret_client.ServerError, match="DATA_LOSS"):
        client.unload_model("net")


def test_overloaded_call_is_repeated_after_the_servers_wait(
    client: Client, fake: FakeServer
) -> None:
    fake.fail("Run", fakes.overloaded(0.05), fakes.overloaded(0.05))
    started = time.monotonic()
    assert client.run("saliency", "net").tensors
    assert len(fake.requests["Run"]) == 3
    assert time.monotonic() - started >= 0.1


def test_third_overload_is_reported_with_the_suggested_wait(
    client: Client, fake: FakeServer
) -> None:
    fake.fail("Run", *[fakes.overloaded(0.02)] * 4)
    with pytest.raises(interpret_client.Overloaded, match="the queue is full") as caught:
        client.run("saliency", "net")
    assert caught.value.retry_after == pytest.approx(0.02)
    assert len(fake.requests["Run"]) == 3


def test_unavailable_call_is_repeated(client: Client, fake: FakeServer) -> None:
    fake.fail("ListModels", Failure(Code.UNAVAILABLE, "the worker died"))
    assert len(client.models()) == 1


@pytest.mark.parametrize(
    ("method", "act"),
    [
        ("LoadModel", lambda client: client.load_model("new")),
        ("UploadModel", lambda client: client.load_model("new", b"model")),
        ("UnloadModel", lambda client: client.unload_model("net")),
        ("RunStream", lambda client: list(client.stream("saliency", "net"))),
    ],
)
def test_calls_that_change_something_and_streams_are_not_repeated(
    client: Client, fake: FakeServer, method: str, act: Callable[[Client], object]
) -> None:
    fake.fail(method, fakes.overloaded())
    with pytest.raises(interpret_client.Overloaded):
        act(client)
    assert len(fake.requests[method]) == 1


def test_other_errors_are_not_repeated(client: Client, fake: FakeServer) -> None:
    fake.fail("Run", Failure(Code.INTERNAL))
    with pytest.raises(interpret_client.ServerError):
        client.run("saliency", "net")
    assert len(fake.requests["Run"]) == 1


def test_wait_longer_than_the_timeout_is_not_begun(fake: FakeServer) -> None:
    fake.fail("Run", fakes.overloaded(60))
    with (
        interpret_client.connect(fake.address, timeout=20) as client,
        pytest.raises(interpret_client.Overloaded),
    ):
        client.run("saliency", "net")
    assert len(fake.requests["Run"]) == 1


def test_one_try_means_no_repetition(fake: FakeServer) -> None:
    fake.fail("Run", fakes.overloaded())
    with (
        interpret_client.connect(fake.address, tries=1) as client,
        pytest.raises(interpret_client.Overloaded),
    ):
        client.run("saliency", "net")


def test_absent_server_is_named() -> None:
    with (
        interpret_client.connect("127.0.0.1:1", timeout=20) as client,
        pytest.raises(interpret_client.Unavailable, match=r"no server answers at 127\.0\.0\.1:1"),
    ):
        client.models()


def test_timeout_ends_a_call_and_reaches_the_server(
    client: Client, fake: FakeServer, inputs: np.ndarray
) -> None:
    with pytest.raises(interpret_client.DeadlineExceeded, match="within the timeout"):
        client.predict("hanging", inputs, timeout=0.5)
    assert fake.cancelled.wait(20)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeout_must_be_positive(client: Client, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        client.run("saliency", "net", timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        interpret_client.connect("localhost:1", timeout=timeout)


def test_message_over_the_servers_limit_is_told_apart_from_overload(
    client: Client, fake: FakeServer
) -> None:
    with pytest.raises(interpret_client.MessageTooLarge, match="send fewer rows"):
        client.predict("net", np.zeros((1 << 19, 4), np.float32))
    assert not fake.requests["Predict"]


def test_request_over_the_servers_limit_is_not_repeated(client: Client, fake: FakeServer) -> None:
    info = error_details_pb2.ErrorInfo(reason="REQUEST_TOO_LARGE")
    fake.fail("Predict", *[Failure(Code.RESOURCE_EXHAUSTED, "send fewer rows", (info,))] * 2)
    with pytest.raises(interpret_client.MessageTooLarge, match="send fewer rows"):
        client.predict("net", np.zeros((1 << 20, 4), np.float32))
    assert fake.chunked == ["predict"]


def test_stream_gives_progress_previews_and_one_result(client: Client, inputs: np.ndarray) -> None:
    events = list(client.stream("saliency", "net", inputs, target=1))
    kinds = [
        [name for name in ("progress", "preview", "result") if getattr(event, name) is not None]
        for event in events
    ]
    assert kinds == [["progress"], ["preview"]] * 3 + [["result"]]
    assert (events[0].progress.done, events[0].progress.total) == (1, 3)
    assert events[3].preview.tensors["images"].max() == 2
    assert events[-1].result.tensors["attributions"].shape == inputs.shape


def test_stream_without_previews_asks_for_none(client: Client, fake: FakeServer) -> None:
    events = list(client.stream("saliency", "net", previews=False))
    assert all(event.preview is None for event in events)
    assert not fake.requests["RunStream"][0].previews


def test_stream_that_ends_without_result_is_an_error(client: Client, fake: FakeServer) -> None:
    fake.truncate_stream = True
    with pytest.raises(interpret_client.ServerError, match="without a result"):
        list(client.stream("saliency", "net"))


def test_leaving_the_loop_cancels_the_call(client: Client, fake: FakeServer) -> None:
    for event in client.stream("saliency", "hanging"):
        assert event.progress is not None
        assert fake.running.wait(20)
        break
    assert fake.cancelled.wait(20)


def test_leaving_the_with_block_cancels_the_call_and_ends_the_stream(
    client: Client, fake: FakeServer
) -> None:
    with client.stream("saliency", "hanging") as stream:
        next(stream)
        assert fake.running.wait(20)
    assert fake.cancelled.wait(20)
    assert list(stream) == []


def test_closing_from_another_thread_ends_a_blocked_reader(
    client: Client, fake: FakeServer
) -> None:
    stream = client.stream("saliency", "hanging", previews=False)
    next(stream)
    threading.Timer(0.2, stream.close).start()
    with pytest.raises(interpret_client.Cancelled, match="the call was cancelled"):
        next(stream)
    assert fake.cancelled.wait(20)


def _interrupt_when(running: threading.Event) -> threading.Thread:
    def act() -> None:
        assert running.wait(20)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_ctrl_c_cancels_a_stream(client: Client, fake: FakeServer) -> None:
    stream = client.stream("saliency", "hanging", previews=False)
    thread = _interrupt_when(fake.running)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    thread.join()
    assert fake.cancelled.wait(20)


def test_ctrl_c_cancels_a_unary_call(client: Client, fake: FakeServer, inputs: np.ndarray) -> None:
    thread = _interrupt_when(fake.running)
    with pytest.raises(KeyboardInterrupt):
        client.predict("hanging", inputs)
    thread.join()
    assert fake.cancelled.wait(20)
    assert len(client.models()) == 1


@pytest.mark.parametrize(
    ("act", "field"),
    [
        (lambda c: c.run("p", "net", target="cat"), "target"),
        (lambda c: c.run("p", "net", target=True), "target"),
        (lambda c: c.run("p", "net", target=1.5), "target"),
        (lambda c: c.run("p", "net", target=[[1], [2]]), "target"),
        (lambda c: c.run("p", "net", target={}), "target"),
        (lambda c: c.run("p", "net", target={"layer": "a", "chanel": 1}), "target"),
        (lambda c: c.run("p", "net", target={"layer": 3}), "target"),
        (lambda c: c.run("p", "net", target={"layer": "a", "channel": 1, "neuron": [1]}), "target"),
        (lambda c: c.run("p", "net", target={"layer": "a", "channel": 1.5}), "target.channel"),
        (lambda c: c.run("p", "net", target={"layer": "a", "class": 1}), "target.class"),
        (lambda c: c.run("p", "net", target={"layer": "a", "neuron": [0.5]}), "target.neuron"),
        (lambda c: c.run("p", "net", target=[{"layer": "a"}, "b"]), "target[1]"),
        (lambda c: c.run("p", "net", seed=-1), "seed"),
        (lambda c: c.run("p", "net", seed=[1, 2**64]), "seed"),
        (lambda c: c.run("p", "net", seed=1.5), "seed"),
        (lambda c: c.run("p", "net", params={"epsilon": float("nan")}), "params"),
        (lambda c: c.run("p", "net", params={"epsilon": object()}), "params"),
        (lambda c: c.run("p", "net", tensors={"mask": np.array(["a"])}), "tensors.mask"),
        (lambda c: c.predict("net", np.zeros((1, 4), np.complex64)), "inputs"),
        (lambda c: c.predict("net", [[1, 2], [3]]), "inputs"),
        (lambda c: c.predict("net", [b"png", np.zeros(4)]), "inputs[1]"),
        (lambda c: c.load_model("new", b""), "source"),
        (lambda c: c.load_model("new", b"model", server_path="net"), "server_path"),
        (lambda c: c.load_model("new", b"model", {"std": object()}), "manifest"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_sent(
    client: Client, fake: FakeServer, act: Callable[[Client], object], field: str
) -> None:
    with pytest.raises(interpret_client.InvalidRequest) as caught:
        act(client)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert str(caught.value).startswith(f"{field}: ")
    assert not any(fake.requests.values())


def test_error_tree_is_rooted_and_complete() -> None:
    documented = [
        cls
        for cls in vars(client_errors).values()
        if isinstance(cls, type) and issubclass(cls, InterpretClientError)
    ]
    for cls in documented:
        assert cls.__name__ in (client_errors.__doc__ or "")
        assert getattr(interpret_client, cls.__name__) is cls
