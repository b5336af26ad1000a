"""How good a model is, and what a data set holds: figures, plots and pages."""
