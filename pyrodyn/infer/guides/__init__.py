"""Guides other than a model's own, and the check that every guide passes.

* ``check_guide``: whether a guide fits its model; ``site_checks`` and ``parameter_checks`` hold the
  single checks of sites, shapes and supports, and of parameters.
* ``per_trial``: Pyro's automatic guides, which have parameters for each trial of a recording.
* ``laplace``, ``mixture``: the posterior over an initial state that determines the whole path;
  ``initial_condition`` is what they share.

A model's own guide is amortised and the first choice. `LaplaceStart` suits long trials of one mode,
`MixtureStart` sparse counts that several initial states explain::

    found = pyrodyn.predict(model, recording, guide=LaplaceStart(model))
"""
