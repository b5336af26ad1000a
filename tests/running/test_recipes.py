"""The recipes of docs/recipes.md, as they stand there, between a node and the programs they are for."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pacs_node.demo.peers import NodeProcess, free_port
from tests.conftest import radiograph, save
from tests.helpers.commands import configure, wait_for
from tests.helpers.peers import Orthanc, orthanc, program

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENTED, re.DOTALL)


@dataclass
class Site:
    """Orthanc with a documented script, and a node that it sends to."""

    pacs: Orthanc
    folder: Path
    port: int

    def take_in(self, number: int) -> None:
        """Put a radiograph into Orthanc, as over its REST API."""
        file = save(radiograph(study=str(number), number=number), self.folder / f"{number}.dcm")
        self.pacs.post_file(file)

    def reports(self) -> list[Any]:
        """Return the tags of all reports in Orthanc."""
        tags = [self.pacs.json(f"/instances/{name}/simplified-tags") for name in self.pacs.instances()]
        return [one for one in tags if one["Modality"] == "SR"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("recipes"), free_port()
    (known,) = blocks("json")
    each, stable = blocks("lua")
    keys = json.loads(known.replace("11112", str(port)))
    del keys["DicomPort"], keys["DicomAet"]
    script = folder / keys["LuaScripts"][0]
    script.write_text(each + stable)
    keys |= {"LuaScripts": [str(script)], "StableAge": 1}
    with orthanc(folder / "orthanc", **keys) as pacs:
        configure(folder, f"sqlite:///{folder / 'results.sqlite'}", pacs.port, port)
        with NodeProcess(folder / "config.toml", folder / "node.log") as node:
            node.wait_until_ready()
            yield Site(pacs, folder, port)


def test_orthanc_sends_radiographs_on_and_gets_one_report_for_each_study(site: Site) -> None:
    for number in (1, 2):
        site.take_in(number)
    wait_for(lambda: len(site.reports()) == 2, "two reports")
    # What comes back is sent on by no script: another report would be a revision
    site.take_in(3)
    wait_for(lambda: len(site.reports()) >= 3, "the third report")
    assert sorted(one["InstanceNumber"] for one in site.reports()) == ["1", "1", "1"]


def test_a_study_is_sent_by_hand(site: Site) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    site.take_in(9)
    wait_for(lambda: any(one["InstanceNumber"] for one in site.reports()), "a report")
    study = site.pacs.json("/studies")[0]
    (line,) = [one for one in "".join(blocks("sh")).splitlines() if one.startswith("curl")]
    asked = line.replace("http://127.0.0.1:8042", site.pacs.url).replace("ORTHANC_ID", study)
    done = subprocess.run(shlex.split(asked), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["FailedInstancesCount"] == 0


def test_dcmtk_sends_and_reads(site: Site, tmp_path: Path) -> None:
    sending, reading = [one for one in blocks("sh") if "storesc" in one]
    save(radiograph(study="20", number=20), tmp_path / "chest.dcm")
    before = len(site.reports())
    command = [program("storescu"), *sending.replace("11112", str(site.port)).split()[1:]]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    wait_for(lambda: len(site.reports()) > before, "its report")
    named = next(
        name
        for name in site.pacs.instances()
        if site.pacs.json(f"/instances/{name}/simplified-tags")["Modality"] == "SR"
    )
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "REPORT").write_bytes(site.pacs.get(f"/instances/{named}/file"))
    line = next(one for one in reading.splitlines() if one.startswith("dsr2html"))
    subprocess.run([program("dsr2html"), *line.split()[1:]], cwd=tmp_path, check=True, capture_output=True)
    assert "Pneumonia: " in (tmp_path / "report.html").read_text()
    assert "-od" in reading


def test_logrotate_takes_its_part(tmp_path: Path) -> None:
    logrotate = shutil.which("logrotate", path="/usr/sbin:/usr/bin")
    if logrotate is None:
        pytest.skip("needs logrotate")
    (section,) = blocks("text")
    file = tmp_path / "pacs-node.conf"
    file.write_text(section)
    done = subprocess.run([logrotate, "--debug", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
