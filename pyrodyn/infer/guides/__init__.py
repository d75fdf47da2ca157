"""Guides that are not a model's own."""
