"""From image files to predictions, by the fastest engine that is there."""
