"""Settings: one class, which each process loads once at its entry point. This file is the operator's manual.

Sources, strongest first: arguments, environment (`MILLRACE_*`, and `DATABASE_URL`/`REDIS_URL`), files that variables with the
suffix `_FILE` name, `millrace.toml`, defaults.
"""

from __future__ import annotations

import re
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from core.errors import ConfigError
from core.memory_sizes import AUTO, parse_device_memory
from core.service_urls import check_database_url, check_files_url, check_redis_url, directory_of
from core.setting_errors import PREFIX, TOML_FILE, describe_settings, warn_of_unknown
from core.setting_files import SettingFiles

ROOT: Final = Path(__file__).resolve().parent.parent
MIB: Final = 1 << 20
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,@*]+/?", re.IGNORECASE)
_MAX_SLOTS: Final = 256
ENVELOPE_BYTES: Final = 1 << 16  # of a batch line, around its body


def split_commas(text: str) -> tuple[str, ...]:
    """Split a setting with several values."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _slots(value: object) -> object:
    """A number as text, as environments have it, and one message where a union would give one for each of its members."""
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if number == AUTO or (type(number) is int and 1 <= number <= _MAX_SLOTS):
        return number
    raise ValueError(f"must be a whole number from 1 to {_MAX_SLOTS}, or auto, not {value!r}")


def _check_networks(text: str) -> str:
    for part in split_commas(text):
        ip_network(part)
    return text


def _check_device_memory(text: str) -> str:
    parse_device_memory(text)
    return text


def _check_origins(text: str) -> str:
    for part in split_commas(text):
        if part not in ("*", "null") and not _ORIGIN.fullmatch(part):
            raise ValueError(
                f"{part!r} is not an origin: write scheme://host or scheme://host:port, without a path, or *"
            )
    return text


def _check_only_place(text: str, info: ValidationInfo) -> str:
    if info.data.get("files_dir") is not None:
        raise ValueError("and files_dir are both set: remove one, since files have one place")
    return text


class Settings(BaseSettings):
    """All settings of an operator."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        toml_file=TOML_FILE,
        extra="forbid",
        populate_by_name=True,
        frozen=True,
    )

    state_dir: Path = Field(
        ROOT / ".state", description="Directory of data, sockets and logs of the single-machine stack."
    )
    models_dir: Path = Field(
        ROOT / "models",
        description="Directory of model files: a YAML file, or only a GGUF file, for each served model.",
    )
    files_dir: Path | None = Field(
        None, description="Directory of uploaded and result files; default: `files` in state_dir."
    )
    files_url: Annotated[str, AfterValidator(check_files_url), AfterValidator(_check_only_place)] | None = Field(
        None,
        description="URL of the place of these files, in place of files_dir: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
        "az://CONTAINER/PREFIX or file:///DIRECTORY. Credentials come from the variables of the cloud's own tools.",
    )
    database_url: Annotated[str, AfterValidator(check_database_url)] | None = Field(
        None,
        repr=False,
        validation_alias=AliasChoices("MILLRACE_DATABASE_URL", "DATABASE_URL"),
        description="URL of a Postgres to use instead of the bundled one: postgresql://user@host/name.",
    )
    redis_url: Annotated[str, AfterValidator(check_redis_url)] | None = Field(
        None,
        repr=False,
        validation_alias=AliasChoices("MILLRACE_REDIS_URL", "REDIS_URL"),
        description="URL of a Valkey or Redis (6.2 or later) to use instead of the bundled one: redis://host:6379/0.",
    )
    key_prefix: str = Field(
        "millrace:", description="Prefix of every key and channel in Redis, so that deployments can share one."
    )
    log_level: str = Field(
        "info",
        pattern="^(debug|info|warning|error)$",
        description="Lowest level that is logged: debug, info, warning or error.",
    )

    web: bool = Field(True, description="Serve the web page at /. Without it, / answers with the addresses as JSON.")
    access_log: bool = Field(
        True, description="Log a line per request; those of probes (/health, /readyz, /metrics) at level debug."
    )
    trace_lines: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of batch lines with a span of their own, from 0 to 1, while traces are exported.",
    )
    log_bytes: int = Field(
        16 * MIB,
        ge=0,
        description="Size in bytes at which a log of `serve` or of a worker is rotated; three old ones are kept. 0 is never.",
    )

    host: str = Field("127.0.0.1", description="Address on which the api listens.")
    open_without_keys: bool = Field(
        False, description="Serve other machines without authentication while no API key exists."
    )
    cors_origins: Annotated[str, AfterValidator(_check_origins)] = Field(
        "",
        description="Origins whose pages may call the api from a browser, separated by commas, such as https://app.example; "
        "* for all, which then need API keys. Empty: none.",
    )
    key_cache_seconds: float = Field(
        5,
        ge=0,
        le=10,
        description="Seconds for which an api process caches a key; a revoked key works no longer than that.",
    )
    refusals_per_minute: int = Field(
        60, ge=1, description="Failed authentications per remote address and minute; further ones get a 429."
    )
    calls_per_minute: int = Field(
        6000, ge=0, description="Calls without a model per key and minute, unless the key has a limit; 0 is no limit."
    )
    keyless_calls_per_minute: int = Field(
        0, ge=0, description="Calls without a model per address and minute where no key is needed; 0 is no limit."
    )
    batches_per_hour: int = Field(
        2000, ge=0, description="Batches that a tenant may create with its keys per hour; 0 is no limit."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port on which the api listens; 0 picks a free one.")
    head_seconds: float = Field(20, gt=0, description="Seconds within which the request line and headers must arrive.")
    body_pause_seconds: float = Field(
        30, gt=0, description="Seconds that a request body may pause; after that it must arrive at 1 KiB/s or more."
    )
    unread_seconds: float = Field(
        30,
        gt=0,
        description="Seconds after which a client that reads less than 1 KiB/s of its response is disconnected.",
    )
    body_bytes: int = Field(
        4 * MIB, ge=1024, description="Maximum size of a JSON request body in bytes, and of a body in a batch line."
    )
    file_bytes: int = Field(512 * MIB, ge=1024, description="Maximum size of an uploaded file in bytes.")
    batch_file_bytes: int = Field(
        200 * MIB, ge=1024, description="Maximum size of an uploaded batch input file in bytes."
    )
    upload_bytes: int = Field(
        8192 * MIB, ge=1024, description="Maximum size of a file that is uploaded in parts, in bytes."
    )
    upload_part_bytes: int = Field(64 * MIB, ge=1024, description="Maximum size of a part of such an upload in bytes.")
    upload_seconds: float = Field(3600, gt=0, description="Seconds within which an upload in parts must be completed.")
    pending_upload_bytes: int = Field(
        32768 * MIB, ge=1024, description="Maximum of bytes that a tenant has in parts of open uploads."
    )
    storage_bytes: int = Field(
        0, ge=0, description="Maximum of bytes of a tenant's files, unless the tenant has its own limit; 0 is no limit."
    )
    free_disk_bytes: int = Field(
        512 * MIB, ge=0, description="Bytes that must stay free on the disk; uploads that would leave less are refused."
    )
    idempotency_hours: float = Field(24, gt=0, description="Hours for which an Idempotency-Key returns its object.")
    batch_lines: int = Field(50_000, ge=1, description="Maximum of lines in a batch.")
    batch_inputs: int = Field(50_000, ge=1, description="Maximum of inputs to embed over all lines of a batch.")
    error_lines: int = Field(100, ge=1, description="Maximum of invalid lines that the errors of a failed batch list.")
    keep_alive_seconds: float = Field(
        15,
        gt=0,
        description="Seconds without an event after which a stream sends a comment and reads the row of its job.",
    )
    chats_wait_for_workers: bool = Field(
        False,
        description="Queue a chat for a model that no worker has, instead of refusing it after silence_seconds: for workers that "
        "are started when work waits.",
    )
    chat_timeout_seconds: float = Field(
        570, gt=0, description="Seconds that a chat waits for its answer; SDKs time out at 600."
    )

    device_memory: Annotated[str, AfterValidator(_check_device_memory)] = Field(
        AUTO,
        description="Memory for the models of each device: auto, a size such as 8GiB, or sizes by device: "
        "cuda:0=20GiB,cpu=8GiB. auto is 0.8 of the memory that a worker may use on the CPU, and 0.9 of a GPU's free memory.",
    )
    slots: Annotated[int | Literal["auto"], BeforeValidator(_slots)] = Field(
        "auto",
        description="Sequences that an engine decodes in parallel, unless the model file sets a number; auto: the fastest "
        "number on its device, as far as memory holds them.",
    )
    tuning: bool = Field(
        True,
        description="Measure the fastest settings of a model, in seconds and beside its work, when it is first loaded on a "
        "device.",
    )
    chat_threads: int = Field(32, ge=1, le=512, description="Chat jobs that a worker runs at a time.")
    batch_lanes: int = Field(
        2,
        ge=1,
        le=8,
        description="Shards of a model that a worker runs at a time, so that no slot is idle between them.",
    )
    shard_lines: int = Field(
        128,
        ge=1,
        description="Lines of a shard, which a worker takes under one lease; up to four times as many in a large batch of short "
        "lines.",
    )
    share_identical_lines: bool = Field(
        True, description="Lines of a batch with the same body and temperature 0 run once and share the answer."
    )
    lease_seconds: float = Field(
        60, ge=1, description="Seconds without a heartbeat after which another worker may take a shard or job."
    )
    heartbeat_seconds: float = Field(
        10, gt=0, description="Seconds between two heartbeats of a worker, which renew its leases."
    )
    commit_lines: int = Field(512, ge=1, description="Maximum of results that one transaction writes.")
    commit_seconds: float = Field(
        0.5, gt=0, description="Maximum of seconds between the end of a line and the write of its result."
    )
    line_attempts: int = Field(
        3, ge=1, description="Engine crashes with a line after which it fails with engine_crash."
    )
    quarantine_hours: float = Field(
        24, gt=0, description="Hours for which a request is blocked that crashes the engine repeatedly."
    )
    engine_crashes: int = Field(
        6,
        ge=1,
        description="Engine crashes within 10 minutes without a blocked request; with more the model is degraded.",
    )
    job_attempts: int = Field(
        3, ge=1, description="Attempts of a chat job, each ended by the loss of its worker, after which it fails."
    )
    engine_restart_seconds: float = Field(
        0.5, gt=0, description="Seconds before a crashed engine restarts; doubles with each crash, up to 30."
    )
    engine_hang_seconds: float = Field(
        60,
        gt=0,
        description="Seconds after which an engine that is stuck is restarted; a step has longer on a slow model. "
        "An engine without any reply is restarted after twice that time.",
    )

    residence_seconds: float = Field(
        30,
        ge=0,
        description="Seconds that a model stays in memory at least before it leaves for one that a batch waits for.",
    )
    residence_loads: float = Field(
        10, ge=0, description="The same, as a multiple of the time that its load took; the longer of both counts."
    )
    chat_patience_seconds: float = Field(
        20,
        ge=0,
        description="Seconds after which a chat gets the place of a model that is busy with chats, once these have ended.",
    )
    batch_patience_seconds: float = Field(
        300, ge=0, description="Seconds after which a batch that waits for its model gets the place of one in use."
    )

    sweep_seconds: float = Field(
        5, gt=0, description="Seconds between two sweeps for lost tickets, expired leases and deadlines."
    )
    ticket_seconds: float = Field(
        15, gt=0, description="Seconds after which work that has not begun gets another ticket."
    )
    poll_seconds: float = Field(
        20, gt=0, description="Fallback polling interval in seconds, when tickets do not arrive."
    )
    silence_seconds: float = Field(
        60,
        gt=0,
        description="Seconds without a poll of a worker, or without a tick of an engine, after which a model is not ready.",
    )
    missing_model_seconds: float = Field(
        600,
        gt=0,
        description="Seconds after which the lines and jobs of a model whose files are gone fail with model_not_found.",
    )
    drain_seconds: float = Field(25, ge=1, description="Seconds that a process has to finish its work after SIGTERM.")
    file_days: float = Field(
        30, gt=0, description="Days for which batch input and output files without an expiry are kept."
    )
    history_days: float = Field(
        0,
        ge=0,
        description="Days after their end for which batches with their lines, and requests without `store`, are kept; 0 is "
        "for ever.",
    )

    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of /metrics of a worker or clerk; 0 picks a free one, none serves none. The second device of a worker "
        "has the next port, and so on; in `serve` the clerk has the one after them.",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address on which workers and clerks serve /metrics, without a key."
    )
    metrics_tenants: int = Field(
        100,
        ge=0,
        description="Tenants that have a label of their own in the metrics of a worker process; all others are `other`.",
    )

    webhook_hosts: str = Field(
        "",
        description="Hosts that may receive webhooks, separated by commas: names, .example.com for all below it, * for all; "
        "without any, webhooks are off.",
    )
    webhook_networks: Annotated[str, AfterValidator(_check_networks)] = Field(
        "",
        description="Private networks that may receive webhooks, separated by commas, such as 10.1.0.0/16; there also by http.",
    )
    webhook_hours: float = Field(72, gt=0, description="Hours after which the delivery of a webhook event is given up.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use arguments, environment, files of variables and TOML, in this order, and no .env file."""
        return init_settings, env_settings, SettingFiles(settings_cls), TomlConfigSettingsSource(settings_cls)

    @property
    def is_loopback(self) -> bool:
        """Does the api listen on a loopback address?"""
        return is_loopback(self.host)

    @property
    def line_bytes(self) -> int:
        """Maximum size of a line of a batch input file in bytes: the largest body in an envelope."""
        return self.body_bytes + ENVELOPE_BYTES

    @property
    def files_root(self) -> Path | None:
        """The directory of the file store; None when it is in object storage."""
        if self.files_url is not None:
            return directory_of(self.files_url)
        return self.files_dir or self.state_dir / "files"


def is_loopback(host: str) -> bool:
    """Is this a loopback address, or `localhost`?"""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(**overrides: Any) -> Settings:  # Any: the fields' own types, checked by the class
    """Load the settings. Raises ConfigError, which names each wrong one, where it was set, and the reason."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigError(describe_settings(error, Settings.model_fields, overrides)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{TOML_FILE} cannot be read: {error}.") from None


def unknown_variables() -> list[str]:
    """Return a warning for each environment variable that looks like a setting and is none."""
    return warn_of_unknown(Settings.model_fields)
