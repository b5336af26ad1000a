"""Settings, read once from config.toml and the environment into frozen, checked values.

The file `config.toml` at the top of the repository lists every key with its default and unit.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from classifier.config import TrainSettings, UnknownAge
from db.queue import LONGEST_WAIT_SECONDS
from pacs_node.config_access import TlsSettings
from pacs_node.config_alerts import AlertSettings
from pacs_node.config_messages import sentence
from pacs_node.config_types import AETitle, Caller, NetworkText, Port, PortOrNone, Section
from pacs_node.config_web import VerdictSettings, WebSettings
from pacs_node.errors import ConfigError

ENVIRONMENT_PREFIX = "PACS_NODE_"

# A wait longer than `db.queue.LONGEST_WAIT_SECONDS` would look like a clock that jumped back.
Seconds = Annotated[float, Field(gt=0, le=LONGEST_WAIT_SECONDS)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[ -\[\]-~]+$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=r"^[ -~]+$")]


class NodeSettings(Section):
    """How the node appears on the network and in reports."""

    ae_title: AETitle = "PACS_NODE"
    host: str = "0.0.0.0"
    port: PortOrNone = 11112
    station_name: Label = "PACSNODE"
    timezone: str = ""
    purpose: Literal["RESEARCH", "PRODUCT"] = "RESEARCH"
    state_folder: Path | None = None

    @field_validator("state_folder", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, value: str) -> str:
        if not value or re.fullmatch(r"[+-]\d{4}", value):
            return value
        try:
            return ZoneInfo(value).key
        except (ValueError, OSError, ZoneInfoNotFoundError):
            said = f'write a name such as "Europe/Berlin", or an offset such as "+0100", not {value!r}'
            raise ValueError(said) from None


class ReceiveSettings(Section):
    """Who may send what."""

    require_called_ae_title: bool = False
    calling_ae_titles: tuple[Caller, ...] = ()
    addresses: tuple[NetworkText, ...] = ()
    processes: Annotated[int, Field(ge=0, le=64)] = 0
    max_associations: Annotated[int, Field(ge=1, le=10_000)] = 64
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=2**26)] = 262_144
    address_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    request_seconds: Seconds = 10
    idle_seconds: Seconds = 60
    other_sop_classes: Literal["store", "refuse"] = "store"
    min_free_mebibytes: Annotated[int, Field(ge=0)] = 1024

    @property
    def process_count(self) -> int:
        """How many receivers share the port."""
        return min(self.processes or min(os.cpu_count() or 1, _MOST_BY_DEFAULT), self.max_associations)


class SpoolSettings(Section):
    """Where received objects are stored."""

    path: Path = Path("spool")
    orphan_minutes: Annotated[float, Field(gt=0)] = 10


class DatabaseSettings(Section):
    """The results database, as an SQLAlchemy URL."""

    url: str = "sqlite:///pacs_node.sqlite"


class StudySettings(Section):
    """When a study counts as complete."""

    quiet_seconds: Annotated[float, Field(ge=0, le=LONGEST_WAIT_SECONDS)] = 10


class ReportSettings(Section):
    """What reports look like."""

    answer_in_series_description: bool = False


class RetentionSettings(Section):
    """How long the files of finished studies are kept."""

    days: Annotated[float, Field(ge=0)] = 0


class ClassifierSettings(Section):
    """The model, and what it may score."""

    model: Path | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    engine: Literal["auto", "openvino", "torch"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    unknown_body_part: Literal["refuse", "score"] = "refuse"
    unknown_view: Literal["refuse", "score"] = "refuse"
    unlike_training: Literal["undetermined", "decide"] = "undetermined"
    unknown_age: UnknownAge = "undetermined"
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    decode_seconds: Annotated[float, Field(ge=1, le=3600)] = 30
    decode_mebibytes: Annotated[int, Field(ge=64)] = 2048
    train: TrainSettings = TrainSettings()

    @property
    def is_cautious(self) -> bool:
        """Whether an image unlike the training data is undetermined."""
        return self.unlike_training == "undetermined"

    @field_validator("model", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class WorkSettings(Section):
    """How workers share the queue."""

    poll_seconds: Annotated[float, Field(gt=0, le=10)] = 0.05
    lease_seconds: Annotated[float, Field(ge=1, le=LONGEST_WAIT_SECONDS)] = 60
    silent_seconds: Annotated[float, Field(ge=3, le=3600)] = 60


class DeliverSettings(Section):
    """How long and how often the node tries a destination."""

    retry_seconds: Seconds = 5
    max_retry_seconds: Seconds = 300
    give_up_hours: Annotated[float, Field(gt=0, le=8760)] = 72
    connect_seconds: Seconds = 10
    answer_seconds: Seconds = 60
    commit_seconds: Seconds = 600


class MetricsSettings(Section):
    """Where monitoring asks how the node is."""

    host: str = "127.0.0.1"
    port: PortOrNone = 0


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class LogSettings(Section):
    """What is logged, and how."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    format: Literal["text", "json"] = "text"


class Destination(Section):
    """One PACS that gets the reports."""

    name: Name = ""  # the AE title by default
    ae_title: AETitle
    host: Annotated[str, Field(min_length=1)]
    port: Port
    tls: bool = False
    send: tuple[Literal["report", "pdf", "heatmap"], ...] = ("report",)
    commitment: Literal["auto", "off"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _name_is_ae_title(cls, values: Any) -> Any:
        if isinstance(values, dict) and "name" not in values and "ae_title" in values:
            return {**values, "name": str(values["ae_title"]).strip()}
        return values


class Modality(Section):
    """One application entity that asks for storage commitment, and the address for the answer."""

    ae_title: AETitle
    host: Annotated[str, Field(min_length=1)]
    port: Port
    tls: bool = False


class Settings(BaseSettings):
    """All settings of the node."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__"
    )

    node: NodeSettings = NodeSettings()
    tls: TlsSettings = TlsSettings()
    receive: ReceiveSettings = ReceiveSettings()
    spool: SpoolSettings = SpoolSettings()
    database: DatabaseSettings = DatabaseSettings()
    study: StudySettings = StudySettings()
    report: ReportSettings = ReportSettings()
    retention: RetentionSettings = RetentionSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    work: WorkSettings = WorkSettings()
    deliver: DeliverSettings = DeliverSettings()
    metrics: MetricsSettings = MetricsSettings()
    alerts: AlertSettings = AlertSettings()
    web: WebSettings = WebSettings()
    verdicts: VerdictSettings = VerdictSettings()
    log: LogSettings = LogSettings()
    destinations: tuple[Destination, ...] = ()
    modalities: tuple[Modality, ...] = ()

    @model_validator(mode="after")
    def _listens(self) -> Settings:
        if not (self.node.port or self.tls.port):
            raise ValueError("[node] port = 0 leaves no port to listen on; set it, or [tls] port")
        return self

    @model_validator(mode="after")
    def _peers_can_be_checked(self) -> Settings:
        peers: tuple[Destination | Modality, ...] = (*self.destinations, *self.modalities)
        over_tls = [peer.ae_title for peer in peers if peer.tls]
        if over_tls and self.tls.authorities is None:
            raise ValueError(
                f"{over_tls[0]} has tls = true, but [tls] authorities names no certificates to check its own "
                "with; name the file"
            )
        return self

    def tls_of(self, peer: Destination | Modality) -> TlsSettings | None:
        """Return with what to connect to a peer, if over TLS."""
        return self.tls if peer.tls else None

    @field_validator("destinations")
    @classmethod
    def _names_differ(cls, destinations: tuple[Destination, ...]) -> tuple[Destination, ...]:
        names = [destination.name for destination in destinations]
        if len(set(names)) < len(names):
            raise ValueError("two destinations have the same name")
        return destinations

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file, whose values come as arguments."""
        return (env_settings, init_settings)


SERVICE_SETTINGS = Path("/etc")
SERVICE_STATE = Path("/var/lib/pacs-node")
"""Where a node with its settings in /etc keeps what it writes: /etc is for settings alone (FHS 3.7)."""

_MOST_BY_DEFAULT = 4  # receivers
_BLOCKS: dict[str, type[Section]] = {"destinations": Destination, "modalities": Modality}


def load(path: Path | None) -> Settings:
    """Read the settings.

    Parameters
    ----------
    path
        The file; ``None`` means ``config.toml`` in the current folder if it exists, else the defaults.

    Raises
    ------
    ConfigError
        If the file cannot be read, or has an unknown key or an invalid value.
    """
    if path is None:
        path = Path("config.toml") if Path("config.toml").is_file() else None
    content = {} if path is None else _read(path)
    source = f"{path} or the environment" if path else "the environment"
    try:
        settings = Settings(**content)
    except ValidationError as error:
        raise ConfigError(f"In {source}: {'; '.join(map(_sentence, error.errors()))}.") from error
    except SettingsError as error:
        raise ConfigError(_no_json(error)) from error
    unknown = next(_unknown_variables(), None)
    if unknown:
        raise ConfigError(f"The environment variable {unknown} is not known; see config.toml for the keys.")
    return _anchored(settings, path.absolute().parent if path else Path.cwd())


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}; check --config.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no valid TOML: {error}.") from error


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] != "extra_forbidden":
        return sentence(error)
    near = difflib.get_close_matches(str(error["loc"][-1]), _keys(error["loc"][:-1]), 1, 0.5)
    where = ".".join(map(str, error["loc"]))
    return f"unknown key {where}" + (f" (did you mean {near[0]}?)" if near else "")


def _no_json(error: SettingsError) -> str:
    value = getattr(error.__cause__, "doc", None)
    for variable in sorted(os.environ):
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and os.environ[variable] == value:
            return f'The environment variable {variable} is not valid JSON; write a list as ["A", "B"].'
    return f"The environment has a value that cannot be used: {error}."


def _keys(section: tuple[object, ...]) -> list[str]:
    fields = Settings.model_fields
    for name in section:
        if name in _BLOCKS:
            return list(_BLOCKS[str(name)].model_fields)
        default = fields[str(name)].default if name in fields else None
        fields = type(default).model_fields if isinstance(default, BaseModel) else {}
    return list(fields)


def _unknown_variables() -> Iterator[str]:
    """Yield variables with our prefix that name no key: a typing error there must be noticed too."""
    for variable in sorted(os.environ):
        if variable.upper().startswith(ENVIRONMENT_PREFIX):
            names = variable[len(ENVIRONMENT_PREFIX) :].lower().split("__")
            if any(name not in _keys(tuple(names[:depth])) for depth, name in enumerate(names)):
                yield variable


def _anchored(settings: Settings, folder: Path) -> Settings:
    """Make relative paths absolute: what the node writes is in its state folder; its model is not."""
    wanted = settings.node.state_folder
    state = folder / wanted.expanduser() if wanted else _default_state_folder(settings, folder)
    model = settings.classifier.model
    changes: dict[str, dict[str, object]] = {
        "node": {"state_folder": state},
        "tls": settings.tls.anchored(folder),
        "spool": {"path": state / settings.spool.path.expanduser()},
        "classifier": {"model": folder / model.expanduser() if model else None},
        "database": {"url": _anchored_url(settings.database.url, state)},
        "web": {
            name: folder / file.expanduser() if file else None
            for name, file in (("certificate", settings.web.certificate), ("key", settings.web.key))
        },
    }
    sections = {name: getattr(settings, name).model_copy(update=new) for name, new in changes.items()}
    return settings.model_copy(update=sections)


def _default_state_folder(settings: Settings, folder: Path) -> Path:
    """Return the folder of the file; that of services for a file in /etc without spool or database."""
    if not folder.is_relative_to(SERVICE_SETTINGS):
        return folder
    file = _sqlite_file(settings.database.url.partition("?")[0])
    beside = [settings.spool.path.expanduser(), *([file] if file else [])]
    is_used = any((folder / path).exists() for path in beside if not path.is_absolute())
    return folder if is_used else SERVICE_STATE


def _anchored_url(url: str, folder: Path) -> str:
    file = _sqlite_file(url)
    return url if file is None else f"{url.partition(':///')[0]}:///{folder / file}"


def _sqlite_file(url: str) -> Path | None:
    """Return the file in the URL of an SQLite database; none where it is in memory."""
    scheme, _, file = url.partition(":///")
    is_file = scheme in ("sqlite", "sqlite+pysqlite") and file not in ("", ":memory:")
    return Path(file).expanduser() if is_file else None
