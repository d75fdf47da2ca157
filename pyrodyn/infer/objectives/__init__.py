"""Objectives: what a fit minimises."""
