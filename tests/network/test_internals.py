"""What the node uses of pynetdicom that is private: it is there, and one folder alone touches it."""

from __future__ import annotations

import ast
from pathlib import Path

import pynetdicom
import pytest
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AddressInformation, AssociationSocket, RequestHandler

import pacs_node
from pacs_node.network.pynetdicom_internals import PRIVATE_NAMES

PRODUCT = Path(pacs_node.__file__).parent
PARAMETERS = [(owner, name) for owner, names in PRIVATE_NAMES.items() for name in names]


@pytest.mark.parametrize(("owner", "name"), PARAMETERS)
def test_each_private_name_of_pynetdicom_is_still_there(owner: str, name: str) -> None:
    association = Association(pynetdicom.AE("A"), "requestor")
    connection = AssociationSocket(association, address=AddressInformation("127.0.0.1", 0))
    owners: dict[str, object] = {
        "ApplicationEntity": ApplicationEntity,
        "Association": association,
        "AssociationSocket": connection,
        "DULServiceProvider": association.dul,
        "RequestHandler": RequestHandler,
        "pynetdicom": pynetdicom,
    }
    assert isinstance(association.dul, DULServiceProvider)
    assert connection.socket is not None
    connection.socket.close()
    assert hasattr(owners[owner], name)


def private_names(path: Path) -> set[str]:
    """Return the underscored attributes in a file that are not of `self` or `cls`, and such imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pynetdicom"):
            found |= {alias.name for alias in node.names if alias.name.startswith("_")}
    return found


def test_the_network_alone_touches_private_names_of_pynetdicom_and_lists_them_all() -> None:
    listed = {name for names in PRIVATE_NAMES.values() for name in names}
    touched: set[str] = set()
    for path in PRODUCT.rglob("*.py"):
        found = private_names(path)
        if path.parent.name == "network":
            touched |= found
        elif "pynetdicom" in path.read_text(encoding="utf-8"):
            assert not found, f"{path} touches {found}"
        else:
            assert not found & listed, f"{path} touches {found & listed}"
        assert "NamedTemporaryFile" not in path.read_text(encoding="utf-8") or path.parent.name != "receiving"
    assert touched <= listed
    assert listed - touched <= {
        "_create_association",
        "_create_socket",
    }  # which are called by `self` or `super`
