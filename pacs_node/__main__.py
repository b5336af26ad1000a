"""`python -m pacs_node` is the command `pacs-node`."""

from pacs_node.cli import main

main()
