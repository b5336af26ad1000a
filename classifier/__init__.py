"""Pneumonia classifier for chest radiographs: decode, transform, score, and the tools to retrain it."""
