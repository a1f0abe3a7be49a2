"""The command `interpret-server`."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .config import ConfigError, Settings, load_settings
from .engine import waiting
from .engine.allocator import freeze_start_up, keep_freed_memory
from .errors import InterpretError

if TYPE_CHECKING:
    from .audits.manager import Audits
    from .data import DataRoot
    from .engine.api import Worker
    from .rpc.server import Server

_PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="interpret-server")
def main() -> None:
    """Serve classifiers over gRPC and explain, visualise and attack them."""


@main.command()
@click.option("--config", type=_PATH, help="TOML file of settings; flags win over it.")
@click.option("--address", help="host:port; port 0 picks a free one. Default 127.0.0.1:50051.")
@click.option(
    "--model-repository", type=_PATH, help="Serve <name>/<version>/model.* of this folder."
)
@click.option("--data-root", type=_PATH, help="Folder of data sets that calls may name.")
@click.option(
    "--audit-root", type=_PATH, help="Folder that audits are kept in. Default: in ~/.local/state."
)
@click.option("--audit-database", metavar="URL", help="Of audits. Default: SQLite in their folder.")
@click.option(
    "--repository-poll",
    type=float,
    metavar="SECONDS",
    help="Look for changed models this often. Default 0: on SIGHUP alone.",
)
@click.option(
    "--require-models",
    is_flag=True,
    default=None,
    help="Do not start unless every model of the repository loads.",
)
@click.option("--device", help="auto, cpu, cuda or cuda:0; several, with commas. Default auto.")
@click.option(
    "--trust-models",
    is_flag=True,
    default=None,
    help="Run models in this process, without a sandbox: for debugging.",
)
@click.option(
    "--require-sandbox",
    is_flag=True,
    default=None,
    help="Do not start where the kernel lacks a part of the sandbox.",
)
@click.option("--threads", type=int, help="Computing threads of a worker. Default: one per core.")
@click.option("--worker-memory-mb", type=int, help="Most memory that one model may address.")
@click.option(
    "--memory-budget-mb", type=int, help="Let idle models sleep while all hold more than this."
)
@click.option("--load-seconds", type=float, help="Longest load of a model. Default 180.")
@click.option("--step-seconds", type=float, help="Longest step of a plugin. Default 300.")
@click.option(
    "--plugin-dir",
    "plugin_dirs",
    type=_PATH,
    multiple=True,
    help="Folder of single-file plugins; may be repeated.",
)
@click.option("--max-queue", type=int, help="Calls that may wait. Default 256.")
@click.option("--max-batch", type=int, help="Most rows in one forward pass. Default 64.")
@click.option(
    "--execution",
    help="auto, exact (bit by bit as the model was read), fast or recorded. Default auto.",
)
@click.option("--log-level", help="debug, info, warning or error. Default info.")
@click.option(
    "--ready-file", type=_PATH, help="Written with the bound address while the server serves."
)
def serve(config: Path | None, ready_file: Path | None, **flags: Any) -> None:
    """Serve until SIGTERM or SIGINT, then let running calls finish.

    SIGHUP loads what has changed in the model repository and tries again what failed.
    """
    flags["plugin_dirs"] = flags["plugin_dirs"] or None
    try:
        settings = load_settings(config, flags)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    if ready_file is not None:
        if not ready_file.absolute().parent.is_dir():
            raise click.ClickException(f"ready-file: {ready_file.parent} is not a folder")
        ready_file.unlink(missing_ok=True)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    keep_freed_memory()
    os.environ.update(waiting.environment())

    def announce(address: str) -> None:
        if ready_file is not None:
            _write(ready_file, address)
        click.echo(f"serving at {address}")

    try:
        asyncio.run(_run(settings, announce))
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


@main.command()
@click.option(
    "--output", type=_PATH, default=Path("demo-output"), show_default=True, help="Folder to fill."
)
def demo(output: Path) -> None:
    """Train, serve, explain and attack a small classifier; leaves a gallery to look at."""
    from interpret_server.demo import main as run

    run(output)


async def _worker(settings: Settings) -> "Worker":
    """Models in processes of their own, or, where they are trusted, in this one."""
    if settings.trust_models:
        return await asyncio.to_thread(_local_worker, settings)
    from .engine.workers.fleet import Fleet
    from .engine.workers.keeper import Patience
    from .engine.workers.nursery import Limits, NurseryError

    _check_sandbox(settings)
    fleet = Fleet(
        devices=settings.devices,
        limits=Limits(
            memory_bytes=settings.worker_memory_bytes,
            gpu_memory_fraction=settings.gpu_memory_fraction,
            threads=settings.threads,
            max_queue=settings.max_queue,
            max_queue_bytes=settings.max_queue_bytes,
            max_batch=settings.max_batch,
            max_step=settings.max_step,
            execution=settings.execution,
        ),
        patience=Patience(load=settings.load_seconds, step=settings.step_seconds),
        plugin_dirs=settings.plugin_dirs,
        memory_bytes=settings.memory_budget_bytes,
    )
    try:
        await fleet.start()
    except NurseryError as error:
        await fleet.close(0)
        raise click.ClickException(str(error)) from None
    return fleet


def _check_sandbox(settings: Settings) -> None:
    from .engine import sandbox

    missing = sandbox.missing()
    if missing and settings.require_sandbox:
        raise click.ClickException(f"require_sandbox: {' '.join(missing)}")
    for sentence in missing:
        logging.getLogger(__name__).warning("the sandbox is incomplete: %s", sentence)


def _local_worker(settings: Settings) -> "Worker":
    from .engine.local import LocalWorker
    from .models.execution import Execution
    from .models.loading import load_classifier
    from .registry import PluginLoadError, Registry

    _check_device(settings.device)
    try:
        registry = Registry.installed()
        for folder in settings.plugin_dirs:
            registry.add_folder(folder)
    except PluginLoadError as error:
        raise click.ClickException(str(error)) from None
    return LocalWorker(
        registry,
        device=settings.device,
        max_queue=settings.max_queue,
        max_queue_bytes=settings.max_queue_bytes,
        max_batch=settings.max_batch,
        max_step=settings.max_step,
        loader=partial(load_classifier, execution=Execution(settings.execution)),
    )


def _check_device(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        count = torch.cuda.device_count()
        if (torch.device(device).index or 0) >= count:
            raise click.ClickException(f"device: there is no {device}; CUDA devices: {count}")


async def _run(settings: Settings, announce: Callable[[str], None]) -> None:
    worker = await _worker(settings)
    freeze_start_up()
    await _serve(settings, worker, announce)


async def _serve(settings: Settings, worker: "Worker", announce: Callable[[str], None]) -> None:
    from .rpc.server import AddressError, Server

    server = Server(
        worker,
        address=settings.address,
        repository=settings.model_repository,
        repository_poll=settings.repository_poll,
        data_root=settings.data_root,
        max_message_bytes=settings.max_message_bytes,
        max_request_bytes=settings.max_request_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        audits=_audits(settings),
    )
    stop = _stop_on_signal()
    if settings.model_repository is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload)
    try:
        address = await server.start()
    except AddressError as error:
        await worker.close(0)
        raise click.ClickException(str(error)) from None
    loading = asyncio.create_task(server.load_repository())
    try:
        await _first(loading, stop)
        if not stop.is_set():
            failures = await loading
            if failures and settings.require_models:
                raise click.ClickException(f"require_models: {'; '.join(failures)}")
            await _resume_audits(settings, server)
            await server.serve()
            announce(address)
            await stop.wait()
    finally:
        loading.cancel()
        await server.stop(settings.grace)


def _audits(settings: Settings) -> "Callable[[Worker, DataRoot | None], Audits] | None":
    folder = settings.audit_folder
    if folder is None:
        return None

    def make(worker: "Worker", data: "DataRoot | None") -> "Audits":
        from .audits.manager import Audits

        return Audits(
            worker,
            root=folder,
            database=settings.audit_database,
            data=data,
            max_bytes=settings.max_audit_bytes,
            running=settings.max_running_audits,
        )

    return make


async def _resume_audits(settings: Settings, server: "Server") -> None:
    """Go on with audits, where there may be some; what was asked for must be there."""
    asked = settings.audit_root is not None or settings.audit_database is not None
    if asked or (settings.audit_folder is not None and settings.audit_folder.exists()):
        try:
            await server.resume_audits()
        except InterpretError as error:
            if asked:
                raise click.ClickException(error.message) from None
            logging.getLogger(__name__).warning("no audits: %s", error.message)


def _stop_on_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process as usual."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def begin() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, begin)
    return stop


async def _first(task: "asyncio.Task[Any]", event: asyncio.Event) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
