"""Markov chain Monte Carlo on the latents of every trial."""

from pyrodyn.infer.mcmc.latents import MCMCSample, mcmc_sample

__all__ = ["MCMCSample", "mcmc_sample"]
