"""Nothing is installed with the product whose licence nobody allowed."""

from __future__ import annotations

from tests.helpers.licences import installed, is_allowed, licence


def test_each_licence_is_allowed() -> None:
    found = {name: licence(package) for name, package in installed().items()}
    assert {"torch", "pydicom", "sqlalchemy", "pydantic-core"} <= set(found)
    assert {name: said for name, said in found.items() if not is_allowed(name, said)} == {}


def test_what_is_not_free_is_found() -> None:
    for said in (
        "GPL-3.0-only",
        "GNU Affero General Public License v3",
        "MIT AND GPL-2.0-only",
        "Other/Proprietary License",
        "",
    ):
        assert not is_allowed("something", said)
