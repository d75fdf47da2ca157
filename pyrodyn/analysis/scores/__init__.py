"""Scores of rates, latents and behaviour."""
