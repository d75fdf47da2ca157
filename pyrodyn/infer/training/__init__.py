"""Training: fit and the pieces that it hands to a Lightning Trainer."""
