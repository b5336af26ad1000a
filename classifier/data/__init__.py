"""Data sets: which images there are, of which patient, class and split; reading them."""
