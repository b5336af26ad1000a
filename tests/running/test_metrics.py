"""What monitoring sees of a node over HTTP, and the alerts that stand on it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from db.session import Database
from pacs_node.config import DatabaseSettings, MetricsSettings, Settings, SpoolSettings
from pacs_node.demo.peers import NodeProcess, free_port
from pacs_node.errors import PortInUse
from pacs_node.running.metrics import monitoring
from tests.conftest import radiograph
from tests.helpers.commands import command, configure, wait_for
from tests.helpers.peers import program
from tests.helpers.workbench import PACS, Bench

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextmanager
def watched(settings: Settings, *, is_ready: bool = True) -> Iterator[str]:
    """Answer monitoring for settings; yield the address."""
    port = free_port()
    changed = settings.model_copy(update={"metrics": MetricsSettings(port=port)})
    with monitoring(changed, lambda: is_ready) as at:
        assert at == port
        yield f"http://127.0.0.1:{port}"


def get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def values(address: str) -> Values:
    status, text = get(f"{address}/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Values, name: str, **labels: str) -> float:
    return found[f"pacs_node_{name}", frozenset(labels.items())]


@pytest.fixture
def bench(database: Database, database_url: str, tmp_path: Path) -> Bench:
    settings = Settings(
        destinations=(PACS,),
        database=DatabaseSettings(url=database_url),
        spool=SpoolSettings(path=tmp_path / "spool"),
    )
    return Bench(database, tmp_path, settings=settings)


def test_metrics_tell_what_was_received_and_what_came_of_it(bench: Bench) -> None:
    bench.receive(radiograph(number=1))
    bench.receive(radiograph(number=2, view="LL"))
    bench.score()
    bench.report()
    bench.receive(radiograph(study="2"))
    with watched(bench.settings) as address:
        found = values(address)
    assert value(found, "database_up") == 1
    counted = [value(found, "stored", what=what) for what in ("studies", "objects", "scores", "reports")]
    assert counted == [2, 3, 2, 1]
    hour = "images_last_hour"
    assert value(found, hour, sender="MODALITY", decision="positive", reason="") == 1
    assert value(found, hour, sender="MODALITY", decision="not_scored", reason="NOT_FRONTAL") == 1
    assert value(found, hour, sender="MODALITY", decision="waiting", reason="") == 1
    assert value(found, "jobs", kind="score", state="ready") == 1
    assert value(found, "undelivered_reports", destination="PACS", state="pending") == 1
    assert value(found, "oldest_waiting_seconds") >= 0
    assert 0 <= value(found, "seconds_last_hour", stage="score", destination="", quantile="0.5") < 600
    assert 0 <= value(found, "seconds_last_hour", stage="report", destination="", quantile="1") < 600
    assert value(found, "problems") >= 3  # no process is at work


def test_no_patient_is_named(bench: Bench) -> None:
    image = radiograph()
    bench.receive(image)
    bench.score()
    with watched(bench.settings) as address:
        text = get(f"{address}/metrics")[1]
    for secret in (image.PatientID, str(image.PatientName), image.AccessionNumber, image.StudyInstanceUID):
        assert str(secret) not in text


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_node_is_ready_when_its_processes_and_its_database_are(bench: Bench, tmp_path: Path) -> None:
    with watched(bench.settings) as address:
        assert get(f"{address}/healthz") == (200, "alive\n")
        assert get(f"{address}/readyz") == (200, "ready\n")
        assert get(f"{address}/else")[0] == 404
    with watched(bench.settings, is_ready=False) as address:
        assert get(f"{address}/readyz") == (503, "A process is not ready yet.\n")
    gone = bench.settings.model_copy(
        update={"database": bench.settings.database.model_copy(update={"url": f"sqlite:///{tmp_path}/no/db"})}
    )
    with watched(gone) as address:
        assert get(f"{address}/readyz") == (503, "The database does not answer.\n")
        found = values(address)
        assert value(found, "database_up") == 0
        assert get(f"{address}/healthz")[0] == 200


def test_who_asks_and_says_nothing_keeps_nobody_waiting(bench: Bench) -> None:
    with watched(bench.settings) as address:
        port = int(address.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        began = time.monotonic()
        assert get(f"{address}/healthz")[0] == 200
        assert time.monotonic() - began < 9  # seconds, after which the silent ones are sent away
        for connection in silent:
            connection.close()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = Settings(metrics=MetricsSettings(port=other.getsockname()[1]))
        with pytest.raises(PortInUse, match=r"set \[metrics\] host and port"), monitoring(settings, bool):
            pass


def test_a_running_node_answers(tmp_path: Path) -> None:
    port = free_port()
    configure(tmp_path, f"sqlite:///{tmp_path / 'results.sqlite'}", free_port())
    with (tmp_path / "config.toml").open("a") as file:
        file.write(f"\n[metrics]\nport = {port}\n")
    with NodeProcess(tmp_path / "config.toml", tmp_path / "node.log") as node:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(f"{address}/healthz"), "the supervisor to answer")
        node.wait_until_ready()
        assert get(f"{address}/readyz") == (200, "ready\n")
        wait_for(
            lambda: len([1 for name, _ in values(address) if name == "pacs_node_heartbeat_age_seconds"]) >= 3,
            "heartbeats of all roles",
        )
        assert value(values(address), "problems") == 0
    assert command("status", "--config", tmp_path / "config.toml").returncode == 1


def _answers(address: str) -> bool:
    try:
        return get(address)[0] == 200
    except OSError:
        return False


def test_alerts_and_pictures_ask_for_figures_that_exist(bench: Bench) -> None:
    bench.receive(radiograph())
    bench.score()
    bench.report()
    with watched(bench.settings) as address:
        text = get(f"{address}/metrics")[1]
    known = set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))
    for file in ("alerts.yml", "grafana.json"):
        asked = set(re.findall(r"pacs_node_\w+", (MONITORING / file).read_text()))
        assert asked
        assert asked <= known
    assert json.loads((MONITORING / "grafana.json").read_text())["panels"]


def test_the_alert_rules_are_rules(tmp_path: Path) -> None:
    rules = MONITORING / "alerts.yml"
    case = tmp_path / "case.yml"
    case.write_text(_CASE.format(rules=rules))
    for asked in (("check", "rules", rules), ("test", "rules", case)):
        command = [program("promtool"), *map(str, asked)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


_CASE = """
rule_files: ["{rules}"]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'up{{job="pacs-node", instance="a"}}'
        values: '1 1 0x10'
      - series: 'pacs_node_spool_free_bytes{{instance="a"}}'
        values: '1000x20'
      - series: 'pacs_node_spool_floor_bytes{{instance="a"}}'
        values: '1000x20'
      - series: 'pacs_node_jobs{{instance="a", kind="score", state="ready"}}'
        values: '5x20'
    alert_rule_test:
      - eval_time: 1m
        alertname: PacsNodeDown
      - eval_time: 10m
        alertname: PacsNodeWorkFailed
      - eval_time: 6m
        alertname: PacsNodeDown
        exp_alerts:
          - exp_labels: {{severity: critical, instance: a, job: pacs-node}}
            exp_annotations:
              summary: "PACS Node on a does not answer; images are not received."
      - eval_time: 10m
        alertname: PacsNodeSpoolAlmostFull
        exp_alerts:
          - exp_labels: {{severity: warning, instance: a}}
            exp_annotations:
              summary: "1000B are left for images on a."
"""
