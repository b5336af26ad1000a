"""Inputs that nobody would write on purpose: `python -m tests.fuzz images --count N --seed S`."""
