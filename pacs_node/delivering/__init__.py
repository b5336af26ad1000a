"""Reports to their destinations."""
