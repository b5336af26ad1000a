"""Comparison with a PACS by C-FIND, and fetching what is missing by C-MOVE or C-GET."""
