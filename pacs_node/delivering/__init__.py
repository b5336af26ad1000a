"""Sends reports to their destinations."""
