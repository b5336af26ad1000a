"""PACS Node: chest X-rays in by C-STORE, pneumonia scores in SQL, structured reports back to the PACS."""

from importlib.metadata import version

__version__ = version("pacs-node")
