"""Sequential Monte Carlo: filter, smoother, resampling."""
