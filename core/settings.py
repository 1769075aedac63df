"""Settings: one class, read once by each process at its entry point. This file is the operator's manual.

Sources, strongest first: arguments, environment (`MILLRACE_*`, and `DATABASE_URL`/`REDIS_URL`), `millrace.toml`, defaults.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from core.errors import ConfigError

ROOT: Final = Path(__file__).resolve().parent.parent
MIB: Final = 1 << 20


def split_commas(text: str) -> tuple[str, ...]:
    """The parts of a setting that names several things."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_networks(text: str) -> str:
    for part in split_commas(text):
        ip_network(part)
    return text


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix="MILLRACE_", toml_file="millrace.toml", extra="forbid", populate_by_name=True, frozen=True
    )

    state_dir: Path = Field(ROOT / ".state", description="Where the single-machine stack keeps data, sockets and logs.")
    models_dir: Path = Field(ROOT / "models", description="The folder of model files: one YAML per served model.")
    files_dir: Path | None = Field(None, description="Uploaded and produced files; default: `files` in state_dir.")
    database_url: str | None = Field(
        None,
        repr=False,
        validation_alias=AliasChoices("MILLRACE_DATABASE_URL", "DATABASE_URL"),
        description="A Postgres to use instead of the bundled one: postgresql://user@host/name.",
    )
    redis_url: str | None = Field(
        None,
        repr=False,
        validation_alias=AliasChoices("MILLRACE_REDIS_URL", "REDIS_URL"),
        description="A Valkey or Redis (6.2 or later) to use instead of the bundled one: redis://host:6379/0.",
    )
    key_prefix: str = Field(
        "millrace:", description="Starts every key and channel, so that deployments can share a Redis."
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")

    host: str = Field("127.0.0.1", description="The address the api listens on.")
    open_without_keys: bool = Field(
        False, description="Without any API key, listen beyond this machine and let everybody in."
    )
    key_cache_seconds: float = Field(
        5, ge=0, le=10, description="An api process asks for a key again this often: a revoked one ends within it."
    )
    refusals_per_minute: int = Field(
        60, ge=1, description="An address elsewhere without a valid key is told so this often; then, to wait."
    )
    calls_per_minute: int = Field(
        6000, ge=0, description="Calls a key may make that ask no model, unless the key says; 0 is no limit."
    )
    keyless_calls_per_minute: int = Field(
        0, ge=0, description="The same for an address where no key is needed; 0 is no limit."
    )
    batches_per_hour: int = Field(
        2000, ge=0, description="Batches a tenant may create with its keys in an hour; 0 is no limit."
    )
    port: int = Field(8000, ge=0, le=65535, description="The port the api listens on; 0 picks a free one.")
    head_seconds: float = Field(20, gt=0, description="A request's line and headers must be there within this time.")
    body_pause_seconds: float = Field(
        30, gt=0, description="A request's body may pause this long, and trickle no slower than 1 KiB/s after it."
    )
    unread_seconds: float = Field(
        30, gt=0, description="A client that takes less than 1 KiB/s of what waits for it over this long is dropped."
    )
    body_bytes: int = Field(4 * MIB, ge=1024, description="Largest JSON request body in bytes.")
    file_bytes: int = Field(512 * MIB, ge=1024, description="Largest uploaded file in bytes.")
    batch_file_bytes: int = Field(200 * MIB, ge=1024, description="Largest uploaded batch input file in bytes.")
    upload_bytes: int = Field(8192 * MIB, ge=1024, description="Largest file of an upload in parts, in bytes.")
    upload_part_bytes: int = Field(64 * MIB, ge=1024, description="Largest part of such an upload in bytes.")
    upload_seconds: float = Field(3600, gt=0, description="An upload in parts must be completed within this time.")
    pending_upload_bytes: int = Field(
        32768 * MIB, ge=1024, description="Most bytes of a tenant in parts of uploads that are not completed."
    )
    storage_bytes: int = Field(
        0, ge=0, description="Most bytes of a tenant's files, unless the tenant has a cap of its own; 0 is no limit."
    )
    free_disk_bytes: int = Field(
        512 * MIB, ge=0, description="Uploads that would leave less than this free on the disk are refused."
    )
    idempotency_hours: float = Field(24, gt=0, description="An Idempotency-Key stands for its object this long.")
    batch_lines: int = Field(50_000, ge=1, description="Most lines in one batch.")
    batch_inputs: int = Field(50_000, ge=1, description="Most inputs to embed over all lines of one batch.")
    line_bytes: int = Field(MIB, ge=1024, description="Longest line of a batch input file in bytes.")
    error_lines: int = Field(100, ge=1, description="Most bad lines listed in the errors of a failed batch.")
    keep_alive_seconds: float = Field(
        15, gt=0, description="A silent stream sends a comment, and checks the row, this often."
    )
    chat_timeout_seconds: float = Field(
        570, gt=0, description="A chat waits this long for its answer; SDKs give up at 600."
    )

    slots: int = Field(
        8, ge=1, le=256, description="Sequences an engine decodes side by side, unless the model file says."
    )
    chat_threads: int = Field(32, ge=1, le=512, description="Chat jobs one worker takes at a time.")
    batch_lanes: int = Field(
        2, ge=1, le=8, description="Shards of a model a worker runs at a time, so slots never run dry."
    )
    shard_lines: int = Field(128, ge=1, description="Lines a shard holds: what a worker takes under one lease.")
    share_identical_lines: bool = Field(
        True, description="Lines of a batch with the same body and temperature 0 run once and share the answer."
    )
    lease_seconds: float = Field(
        60, ge=1, description="A shard or job unheard of for this long is given to another worker."
    )
    heartbeat_seconds: float = Field(10, gt=0, description="How often a worker renews its leases.")
    commit_lines: int = Field(32, ge=1, description="Results written in one transaction at most.")
    commit_seconds: float = Field(0.5, gt=0, description="A finished line waits at most this long to be written.")
    line_attempts: int = Field(3, ge=1, description="Engine crashes a line survives before it fails with engine_crash.")
    quarantine_hours: float = Field(
        24, gt=0, description="A request that keeps ending the engine is refused for this long."
    )
    engine_crashes: int = Field(
        6,
        ge=1,
        description="Engine crashes within 10 minutes that no request explains; with more the model is degraded.",
    )
    job_attempts: int = Field(3, ge=1, description="Workers that may die under a chat job before it fails.")
    engine_restart_seconds: float = Field(
        0.5, gt=0, description="Pause before a crashed engine restarts; doubles up to 30 s."
    )
    engine_hang_seconds: float = Field(
        60,
        gt=0,
        description="An engine whose step takes longer is started again; one that answers nothing is, after twice that.",
    )

    sweep_seconds: float = Field(
        5, gt=0, description="How often the clerk looks for lost tickets, leases and deadlines."
    )
    ticket_seconds: float = Field(15, gt=0, description="Work not begun this long after its ticket gets another one.")
    poll_seconds: float = Field(
        20, gt=0, description="How often a worker looks for work itself, in case Redis is deaf."
    )
    silence_seconds: float = Field(
        60,
        gt=0,
        description="A worker that has not looked for work, or an engine that has not turned, for so long is not ready.",
    )
    drain_seconds: float = Field(25, ge=1, description="A process told to stop has this long before it leaves.")
    file_days: float = Field(30, gt=0, description="Batch input and output files without an expiry are kept this long.")

    webhook_hosts: str = Field(
        "",
        description="Hosts webhooks may be sent to, with commas: names, .example.com for all below it, * for all; "
        "without any, webhooks are off.",
    )
    webhook_networks: Annotated[str, AfterValidator(_check_networks)] = Field(
        "", description="Private networks webhooks may reach all the same, with commas, such as 10.1.0.0/16; http too."
    )
    webhook_hours: float = Field(72, gt=0, description="A webhook event that nobody takes is given up after this long.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, TOML: in this order, and no .env file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def is_loopback(self) -> bool:
        """Does the api listen to this machine alone?"""
        return is_loopback(self.host)

    @property
    def files_root(self) -> Path:
        """The directory of the file store."""
        return self.files_dir or self.state_dir / "files"


def is_loopback(host: str) -> bool:
    """Is this address, or name, that of the machine itself?"""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(**overrides: Any) -> Settings:  # Any: the fields' own types, checked by the class
    """Read the settings, or say which one is wrong and why."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"Settings are wrong: {wrong}. See core/settings.py for what each one means.") from None
