"""From score rows to the bytes of a structured report (TID 1500)."""
