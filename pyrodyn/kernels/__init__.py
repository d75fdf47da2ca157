"""The hot loops, forward and backward by hand."""
