"""Settings of the server, read once at the edge: a TOML file, overridden by flags."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
ExecutionName = Literal["auto", "exact", "fast", "recorded"]
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.%]+\]|[^\s:\[\]/]+):(\d{1,5})")
_MIB = 1 << 20


class ConfigError(Exception):
    """The settings cannot be used; the message is one sentence that names the key."""


class Settings(BaseModel):
    """How the server runs. Relative paths in a file are meant from the file's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    address: str = Field("127.0.0.1:50051", description="host:port; port 0 picks a free one.")
    model_repository: Path | None = Field(
        None, description="Folder of models, as <name>/<version>/model.{pt,onnx,pt2}."
    )
    data_root: Path | None = Field(
        None, description="Folder of the data sets that calls may name instead of sending inputs."
    )
    audit_root: Path | None = Field(
        None,
        description="Folder that audits are kept in; made when it is first used. If not given, "
        "interpret-server/audits in the user's folder of state.",
    )
    audit_database: str | None = Field(
        None, description="URL of the database of audits, for SQLAlchemy; SQLite if not given."
    )
    repository_poll: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="Seconds between two looks for changed models; 0 looks on SIGHUP alone.",
    )
    require_models: bool = Field(
        False, description="Do not start unless every model of the repository loads."
    )
    device: str = Field(
        "auto", description="auto, cpu, cuda or cuda:0; several, with commas, serve side by side."
    )
    trust_models: bool = Field(
        False, description="Run models in the server's own process, without a sandbox."
    )
    require_sandbox: bool = Field(
        False, description="Do not start where the kernel lacks a part of the sandbox."
    )
    threads: int = Field(0, ge=0, description="Computing threads of a worker; 0: one per core.")
    worker_memory_mb: int | None = Field(
        None,
        ge=1024,
        description="Address space of a worker on the CPU; the machine's memory if not given.",
    )
    gpu_memory_fraction: float = Field(
        0.0, ge=0, le=1, description="Part of a GPU's memory for each worker; 0: what is free."
    )
    memory_budget_mb: int | None = Field(
        None,
        ge=1,
        description="Memory of all workers over which models sleep until they are called.",
    )
    load_seconds: float = Field(180.0, gt=0, description="Longest that a file may take to load.")
    step_seconds: float = Field(
        300.0, gt=0, description="Longest that one step may take before its worker is stopped."
    )
    plugin_dirs: tuple[Path, ...] = Field((), description="Folders of single-file plugins.")
    max_queue: int = Field(256, ge=1, description="Calls that may wait; more are refused.")
    max_queue_mb: int = Field(1024, ge=1, description="Most inputs of calls that wait, in MiB.")
    max_batch: int = Field(64, ge=1, description="Most rows in one forward pass.")
    max_step: float = Field(
        0.25, gt=0, description="Seconds that a step should take at most; larger batches are cut."
    )
    execution: ExecutionName = Field(
        "auto",
        description="How a model runs: auto, exact (no rounding of ours), fast, or recorded.",
    )
    max_message_mb: int = Field(64, ge=1, le=2047, description="Largest message, in MiB.")
    max_request_mb: int = Field(
        256,
        ge=1,
        description="Most tensors and images of a chunked request, or rows of a data set, in MiB.",
    )
    max_upload_mb: int = Field(2048, ge=1, description="Largest uploaded model file, in MiB.")
    max_audit_mb: int = Field(16384, ge=1, description="Most samples of an audit, in MiB.")
    max_running_audits: int = Field(
        1, ge=1, le=64, description="Audits that run at once; others wait for their turn."
    )
    grace: float = Field(
        10.0, ge=0, description="Seconds that running calls may go on after a signal to stop."
    )
    log_level: LogLevel = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("address")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        match = _ADDRESS.fullmatch(value)
        if not match or int(match[1]) > 65535:
            raise ValueError(f"{value!r} is not host:port, such as 127.0.0.1:50051")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        for item in value.split(","):
            if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", item):
                raise ValueError(f"{item!r} is none of auto, cpu, cuda and cuda:0")
        return value

    @model_validator(mode="after")
    def _one_process(self) -> Self:
        if self.trust_models and self.require_sandbox:
            raise ValueError(
                "trust_models: there is no sandbox then, which require_sandbox asks for"
            )
        if self.trust_models and "," in self.device:
            raise ValueError("device: with trust_models there is one device")
        return self

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices, one by one."""
        return tuple(self.device.split(","))

    @field_validator("model_repository", "data_root")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"{value} is not a folder")
        return value

    @property
    def audit_folder(self) -> Path | None:
        """The folder of audits; None where there is no home to keep it in."""
        if self.audit_root is not None:
            return self.audit_root
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        try:
            state = state if state.is_absolute() else Path.home() / ".local" / "state"
        except RuntimeError:
            return None
        return state / "interpret-server" / "audits"

    @property
    def worker_memory_bytes(self) -> int:
        """Most address space of one worker in bytes."""
        if self.worker_memory_mb is not None:
            return self.worker_memory_mb * _MIB
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    @property
    def memory_budget_bytes(self) -> int | None:
        """Memory of all workers together in bytes, or None for no limit."""
        return None if self.memory_budget_mb is None else self.memory_budget_mb * _MIB

    @property
    def max_queue_bytes(self) -> int:
        """Most bytes of inputs of calls that wait."""
        return self.max_queue_mb * _MIB

    @property
    def max_message_bytes(self) -> int:
        """Largest message in bytes."""
        return self.max_message_mb * _MIB

    @property
    def max_request_bytes(self) -> int:
        """Most bytes of tensors and images of a request in chunks, or of rows of a data set."""
        return self.max_request_mb * _MIB

    @property
    def max_upload_bytes(self) -> int:
        """Largest uploaded model file in bytes."""
        return self.max_upload_mb * _MIB

    @property
    def max_audit_bytes(self) -> int:
        """Most bytes of the samples of an audit."""
        return self.max_audit_mb * _MIB


def load_settings(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a TOML file, with flags taking precedence; a flag of None was not given.

    Raises:
        ConfigError: naming each key that is unknown or wrong.
    """
    values = {} if file is None else _read(file)
    values |= {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_sentence, error.errors()))) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} is not a TOML file: {error}") from None
    folder = file.parent
    for key in ("model_repository", "data_root", "audit_root"):
        if isinstance(path := values.get(key), str):
            values[key] = folder / path
    if isinstance(paths := values.get("plugin_dirs"), list):
        values["plugin_dirs"] = [folder / path if isinstance(path, str) else path for path in paths]
    return values


def _sentence(item: Any) -> str:
    key = ".".join(map(str, item["loc"]))
    if not key:
        return str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{key} is not a setting; there are {', '.join(Settings.model_fields)}"
    return f"{key}: {item['msg'].removeprefix('Value error, ')}"
