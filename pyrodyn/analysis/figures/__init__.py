"""Figures of recordings and of dynamics."""
