"""The network, its card and checkpoint, its preprocessing, and how far an image lies from what it knows."""
