"""Scores of images; the only wing that loads torch."""
