"""Measures a model and examines data sets: figures, plots and pages."""
