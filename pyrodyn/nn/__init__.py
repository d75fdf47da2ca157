"""Deterministic pieces: encoders, recurrent cells, readouts. No Pyro, no randomness."""
