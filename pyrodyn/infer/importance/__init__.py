"""Importance weighting of draws of a guide or of the model."""
