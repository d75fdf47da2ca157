"""Training: `fit`, and the parts that it gives to a Lightning Trainer.

* ``fit``: arguments are checked, the Trainer runs, a `Fit` comes back (``fitted``).
* ``recommended``: the settings of a fit where none are given.
* ``schedule``: learning rates, stopping, growing horizon and noise annealing.
* ``module``, ``batches``, ``callbacks``, ``trainer``: the training step, the order of trials, the
  best weights and checkpoints, the Trainer itself.
* ``weight_average``: the running average of the weights.
* ``checkpoint``: which run a checkpoint belongs to; ``saving``: a `Fit` on disk.
* ``diagnostics``: signs that a fit did not end well.
* ``allocator``: memory kept between steps.

::

    fitted = pyrodyn.fit(model, train, valid, max_epochs=200)
    fitted.history["valid_loss"].plot()
"""
