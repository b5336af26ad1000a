"""The processes of one machine, and how they fare."""
