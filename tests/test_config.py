"""Settings: what config.toml and the environment may say, and the sentence that a slip in them gets."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pacs_node.config import ENVIRONMENT_PREFIX, Destination, Modality, Settings, load
from pacs_node.errors import ConfigError
from tests.helpers import configuration

CONFIG = Path(__file__).resolve().parents[1] / "config.toml"
TEXT = CONFIG.read_text(encoding="utf-8").partition("# One block for each PACS")[0]
DESTINATION = '[[destinations]]\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = 4242\n'
Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide settings that the developer's own shell may hold."""
    for variable in os.environ:
        if variable.upper().startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(variable)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a config.toml and returns its path."""

    def _write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def keys(values: Mapping[str, Any], above: str = "") -> set[str]:
    """Return all keys of nested tables, written with dots."""
    found: set[str] = set()
    for name, value in values.items():
        found |= keys(value, f"{above}{name}.") if isinstance(value, dict) else {above + name}
    return found


def refusal(path: Path | None) -> str:
    """Return the sentence with which the settings are refused."""
    with pytest.raises(ConfigError) as refused:
        load(path)
    return str(refused.value)


# config.toml is the reference


def test_the_committed_file_lists_every_setting_and_nothing_else() -> None:
    uncommented = re.sub(r"^# (\w+ = )", r"\1", TEXT, flags=re.MULTILINE)
    blocks = {"destinations", "modalities"}
    assert keys(tomllib.loads(uncommented)) == keys(Settings().model_dump(exclude=blocks))


def test_the_committed_file_states_the_defaults() -> None:
    assert Settings(**tomllib.loads(CONFIG.read_text(encoding="utf-8"))) == Settings()


def test_the_committed_file_explains_every_key() -> None:
    lines = [line for line in TEXT.splitlines() if re.match(r"(# )?\w+ = ", line)]
    assert len(lines) > 30
    assert [line for line in lines if " # " not in line.removeprefix("# ")] == []


def test_the_example_of_a_destination_is_complete_and_valid(write: Write) -> None:
    example = CONFIG.read_text(encoding="utf-8").partition("# [[destinations]]")
    blocks = re.sub(r"^# (\w+ = |\[\[)", r"\1", example[2], flags=re.MULTILINE)
    text = "[[destinations]]" + blocks
    assert set(tomllib.loads(text)["modalities"][0]) == set(Modality.model_fields)
    assert set(tomllib.loads(text)["destinations"][0]) == set(Destination.model_fields)
    (destination,) = load(write(text)).destinations
    assert (destination.name, destination.ae_title, destination.port) == ("PACS", "ORTHANC", 4242)


def test_nothing_configured_is_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None).node == Settings().node.model_copy(update={"state_folder": tmp_path})
    assert load(None).destinations == ()


def test_config_toml_of_the_current_folder_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write('[node]\nae_title = "HERE"').parent)
    assert load(None).node.ae_title == "HERE"


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().node.port = 104


# Slips in the file


AE_TITLE = "an AE title has 1 to 16 characters, without backslash and accents"
SLIPS = [
    ("[recieve]\nmax_pdu_bytes = 4096", "unknown key recieve (did you mean receive?)."),
    ('[node]\nae_titel = "A"', "unknown key node.ae_titel (did you mean ae_title?)."),
    ("[zzz]", "unknown key zzz."),
    ("[node]\nzzz = 1", "unknown key node.zzz."),
    (DESTINATION + "prot = 1", "unknown key destinations.0.prot (did you mean port?)."),
    ("[node]\nport = 70000", "node.port must be at most 65535, not 70000."),
    ('[node]\nport = "dicom"', "node.port must be a whole number, not 'dicom'."),
    ("node = 5", "node is a section: begin it with a line [node], not 5."),
    ('[node]\nae_title = "SEVENTEEN_LETTERS"', f"node.ae_title cannot be 'SEVENTEEN_LETTERS': {AE_TITLE}."),
    ('[node]\nae_title = "  "', f"node.ae_title cannot be '  ': {AE_TITLE}."),
    ('[node]\nae_title = "A\\\\B"', f"node.ae_title cannot be 'A\\\\B': {AE_TITLE}."),
    ("[node]\nae_title = 7", "node.ae_title must be text in quotes, not 7."),
    ('[node]\nstation_name = "Röntgen"', "node.station_name cannot be 'Röntgen': it has 1 to 64 ASCII"),
    (
        '[node]\ntimezone = "Europe/Nowhere"',
        'node.timezone cannot be used: write a name such as "Europe/Berlin"',
    ),
    ('[node]\ntimezone = "01:00"', 'node.timezone cannot be used: write a name such as "Europe/Berlin"'),
    (
        '[node]\ntimezone = "/etc/passwd"',
        'node.timezone cannot be used: write a name such as "Europe/Berlin"',
    ),
    ('[node]\npurpose = "CLINICAL"', 'node.purpose must be "RESEARCH" or "PRODUCT", not \'CLINICAL\'.'),
    ('[receive]\ncalling_ae_titles = ["A", ""]', f"receive.calling_ae_titles cannot be '': {AE_TITLE}."),
    (
        '[receive]\ncalling_ae_titles = ["@10.0.0.0/8"]',
        f"receive.calling_ae_titles cannot be '@10.0.0.0/8': {AE_TITLE}.",
    ),
    (
        '[receive]\naddresses = ["10.0.0.1/24"]',
        'receive.addresses cannot be used: write addresses or networks such as "10.0.0.7" or "10.0.0.0/24".',
    ),
    (
        '[receive]\ncalling_ae_titles = "A"',
        'receive.calling_ae_titles is a list: write ["A", "B"], not \'A\'.',
    ),
    ('[receive]\nrequire_called_ae_title = "si"', "receive.require_called_ae_title must be true or false"),
    ("[receive]\nidle_seconds = 0", "receive.idle_seconds must be more than 0, not 0."),
    ("[receive]\nmax_associations = 0", "receive.max_associations must be at least 1, not 0."),
    ("[receive]\nmin_free_mebibytes = -1", "receive.min_free_mebibytes must be at least 0, not -1."),
    ("[spool]\npath = 3", "spool.path must be a path in quotes, not 3."),
    ("[study]\nquiet_seconds = -1", "study.quiet_seconds must be at least 0, not -1."),
    ("[study]\nquiet_seconds = nan", "study.quiet_seconds must be at"),
    ('[study]\nquiet_seconds = "10s"', "study.quiet_seconds must be a number, not '10s'."),
    ("[work]\nlease_seconds = -5", "work.lease_seconds must be at least 1, not -5."),
    ("[deliver]\nretry_seconds = -0.5", "deliver.retry_seconds must be more than 0, not -0.5."),
    ("[deliver]\ngive_up_hours = inf", "deliver.give_up_hours must be at most 8760, not inf."),
    ('[classifier]\ndevice = "gpu"', 'classifier.device cannot be \'gpu\': write "auto", "cpu", "cuda" or'),
    ('[log]\nlevel = "LOUD"', 'log.level must be "DEBUG", "INFO", "WARNING" or "ERROR", not \'LOUD\'.'),
    ("[log]\nlevel = 10", "log.level must be"),
    (
        'destinations = "PACS"',
        "destinations needs a block of its own for each: begin it with a line [[destinations]]",
    ),
    ('[destinations]\nae_title = "A"', "destinations needs a block of its own for each"),
    ('[[destinations]]\nae_title = "A"\nport = 104', "[[destinations]] 1, host is missing."),
    (DESTINATION.replace("4242", "0"), "[[destinations]] 1, port must be at least 1, not 0."),
    (
        DESTINATION + 'send = ["film"]',
        '[[destinations]] 1, send must be "report", "pdf" or "heatmap", not \'film\'.',
    ),
    (DESTINATION + DESTINATION, "destinations cannot be used: two destinations have the same name."),
    (DESTINATION + 'name = ""', "[[destinations]] 1, name cannot be '': it has 1 to 32 ASCII characters."),
]


@pytest.mark.parametrize(("text", "sentence"), SLIPS, ids=[sentence for _, sentence in SLIPS])
def test_a_slip_is_refused_with_a_sentence_that_names_the_key(text: str, sentence: str, write: Write) -> None:
    path = write(text)
    said = refusal(path)
    assert said.startswith(f"In {path} or the environment: {sentence}")
    assert said.endswith(".")
    assert "\n" not in said


def test_every_slip_is_named_at_once(write: Write) -> None:
    said = refusal(write('[node]\nport = 70000\nae_title = ""\n[studdy]\nquiet_seconds = 1'))
    for key in ("node.port", "node.ae_title", "studdy"):
        assert key in said


@pytest.mark.parametrize("content", [b"[node\n", b"[node]\nport = 1\nport = 2", b'[node]\nhost = "\xff"'])
def test_a_file_that_is_no_toml_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path} is no valid TOML: ")


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    missing = tmp_path / "absent.toml"
    assert refusal(missing) == f"Cannot read {missing}: No such file or directory; check --config."
    assert refusal(tmp_path) == f"Cannot read {tmp_path}: Is a directory; check --config."


# The environment


def test_the_environment_overrides_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write('[study]\nquiet_seconds = 5\n[node]\nae_title = "FILE"\nport = 104')
    monkeypatch.setenv("PACS_NODE_STUDY__QUIET_SECONDS", "30")
    monkeypatch.setenv("PACS_NODE_NODE__AE_TITLE", "ENVIRONMENT")
    settings = load(path)
    assert settings.study.quiet_seconds == 30
    assert settings.node.ae_title == "ENVIRONMENT"
    assert settings.node.port == 104  # its neighbours in the file stay


def test_the_environment_can_hold_lists_and_destinations_as_json(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACS_NODE_RECEIVE__CALLING_AE_TITLES", '["MODALITY1", "MODALITY2"]')
    monkeypatch.setenv("PACS_NODE_DESTINATIONS", '[{"ae_title": "ORTHANC", "host": "pacs", "port": 4242}]')
    settings = load(write(""))
    assert settings.receive.calling_ae_titles == ("MODALITY1", "MODALITY2")
    assert settings.destinations == (Destination(ae_title="ORTHANC", host="pacs", port=4242),)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PACS_NODE_RECEIVE__CALLING_AE_TITLES", "MODALITY1"),
        ("PACS_NODE_DESTINATIONS", "ORTHANC@pacs:4242"),
        ("PACS_NODE_NODE", "PACS"),
    ],
)
def test_a_list_in_the_environment_that_is_no_json_is_refused(
    variable: str, value: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert refusal(write("")).startswith(f"The environment variable {variable} is not valid JSON")


@pytest.mark.parametrize(
    "variable", ["PACS_NODE_PORT", "PACS_NODE_STUDDY__QUIET_SECONDS", "PACS_NODE_", "pacs_node_stdy"]
)
def test_an_unknown_variable_is_refused(variable: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    assert refusal(write("")) == (
        f"The environment variable {variable} is not known; see config.toml for the keys."
    )


def test_slips_in_the_environment_are_named_like_those_in_the_file(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACS_NODE_NODE__PORT", "dicom")
    monkeypatch.setenv("PACS_NODE_STUDY__QUIET_SECOND", "30")
    said = refusal(write(""))
    assert "node.port must be a whole number" in said
    assert "unknown key study.quiet_second (did you mean quiet_seconds?)" in said


# Paths


def test_relative_paths_belong_to_the_folder_of_the_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        '[spool]\npath = "in"\n[classifier]\nmodel = "m.safetensors"\n[database]\nurl = "sqlite:///r.db"'
    )
    monkeypatch.chdir("/")
    settings = load(path)
    assert settings.spool.path == tmp_path / "in"
    assert settings.classifier.model == tmp_path / "m.safetensors"
    assert settings.database.url == f"sqlite:///{tmp_path}/r.db"


def test_a_config_file_named_by_a_relative_path_gives_absolute_paths(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("")
    monkeypatch.chdir(tmp_path.parent)
    settings = load(Path(tmp_path.name) / "config.toml")
    assert settings.spool.path == tmp_path / "spool"
    assert settings.database.url == f"sqlite:///{tmp_path}/pacs_node.sqlite"


@pytest.mark.parametrize(
    "url", ["sqlite:////var/r.db", "sqlite:///:memory:", "sqlite://", "postgresql://u:p@db/results"]
)
def test_other_database_urls_stay_as_they_are(url: str, write: Write) -> None:
    assert load(write(f'[database]\nurl = "{url}"')).database.url == url


def test_absolute_paths_and_the_home_folder_stay_what_they_are(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/pacs")
    settings = load(write('[spool]\npath = "/srv/spool"\n[classifier]\nmodel = "~/m.safetensors"'))
    assert settings.spool.path == Path("/srv/spool")
    assert settings.classifier.model == Path("/home/pacs/m.safetensors")


def test_what_the_node_writes_stands_in_the_state_folder_and_the_model_beside_the_file(
    write: Write, tmp_path: Path
) -> None:
    settings = load(write('[node]\nstate_folder = "state"\n[classifier]\nmodel = "m.safetensors"'))
    assert settings.node.state_folder == tmp_path / "state"
    assert settings.spool.path == tmp_path / "state" / "spool"
    assert settings.database.url == f"sqlite:///{tmp_path}/state/pacs_node.sqlite"
    assert settings.classifier.model == tmp_path / "m.safetensors"


def test_the_state_folder_moves_no_absolute_path(write: Write) -> None:
    urls = '[spool]\npath = "/srv/spool"\n[database]\nurl = "sqlite:////srv/r.db"'
    settings = load(write(f'[node]\nstate_folder = "/var/lib/pacs-node"\n{urls}'))
    assert (settings.spool.path, settings.database.url) == (Path("/srv/spool"), "sqlite:////srv/r.db")


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_every_way_to_name_sqlite_has_its_file_in_the_state_folder(
    scheme: str, write: Write, tmp_path: Path
) -> None:
    path = write(f'[database]\nurl = "{scheme}:///r.db?timeout=5"')
    assert load(path).database.url == f"{scheme}:///{tmp_path}/r.db?timeout=5"


@pytest.fixture
def in_etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes the settings of a service."""
    monkeypatch.setattr("pacs_node.config.SERVICE_SETTINGS", tmp_path / "etc")
    path = tmp_path / "etc" / "pacs-node" / "config.toml"
    path.parent.mkdir(parents=True)

    def _write(text: str) -> Path:
        path.write_text(text)
        return path

    return _write


def test_settings_in_etc_put_no_images_there(in_etc: Write) -> None:
    settings = load(in_etc('[classifier]\nmodel = "m.safetensors"'))
    assert settings.spool.path == Path("/var/lib/pacs-node/spool")
    assert settings.database.url == "sqlite:////var/lib/pacs-node/pacs_node.sqlite"
    assert settings.classifier.model == in_etc("").parent / "m.safetensors"


@pytest.mark.parametrize("kept", ["spool", "pacs_node.sqlite"])
def test_a_node_that_keeps_its_images_or_database_in_etc_finds_them_after_an_upgrade(
    kept: str, in_etc: Write
) -> None:
    folder = in_etc("").parent
    (folder / kept).mkdir()
    settings = load(in_etc(""))
    assert settings.spool.path == folder / "spool"
    assert settings.database.url == f"sqlite:///{folder}/pacs_node.sqlite"


def test_other_files_in_etc_are_no_state(in_etc: Write) -> None:
    (in_etc("").parent / "elsewhere").mkdir()
    text = '[spool]\npath = "/srv/spool"\n[database]\nurl = "postgresql://u:p@db/results"'
    assert load(in_etc(text)).node.state_folder == Path("/var/lib/pacs-node")


# Destinations


def test_a_destination_is_named_by_its_ae_title_where_it_has_no_name(write: Write) -> None:
    second = DESTINATION.replace("ORTHANC", "  ARCHIVE ")
    settings = load(write(DESTINATION + second + 'name = "Main archive"'))
    assert [one.name for one in settings.destinations] == ["ORTHANC", "Main archive"]
    assert settings.destinations[1].ae_title == "ARCHIVE"  # spaces around it mean nothing (PS3.5 6.2)
    assert settings.destinations[0].send == ("report",)


def test_two_destinations_may_share_an_ae_title_under_two_names(write: Write) -> None:
    settings = load(write(DESTINATION + DESTINATION + 'name = "second"'))
    assert [one.name for one in settings.destinations] == ["ORTHANC", "second"]


def test_the_page_on_configuration_is_the_one_that_settings_and_comments_make() -> None:
    assert configuration.TARGET.read_text(encoding="utf-8") == configuration.page(), (
        "run python -m tests.helpers.configuration"
    )
