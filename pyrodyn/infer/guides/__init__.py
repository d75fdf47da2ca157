"""Guides other than a model's own, and the check that every guide passes.

* ``check_guide``: whether a guide fits its model; ``site_checks`` and ``parameter_checks`` hold the
  single checks of sites, shapes and supports, and of parameters.
* ``per_trial``: Pyro's automatic guides, which have parameters for each trial of a recording.
* ``laplace``, ``mixture``: the posterior over an initial state that determines the whole path;
  ``initial_condition`` is what they share.
* ``flow``: a normalising flow over an initial state, trained with the encoder.
* ``refined``: gradient steps from a guide's posterior of each trial to that trial's own.
* ``mapped_sites``, ``solution_cache``: what these are made of.

A model's own guide is amortised and the first choice. `RefinedGuide` removes what amortisation
costs, `LaplaceStart` suits long trials of one mode, `MixtureStart` sparse counts that several
initial states explain. These three are solved for the trials at hand and need no training;
`FlowStart` is trained and then reads new trials as fast as the model's own::

    found = pyrodyn.predict(model, recording, guide=LaplaceStart(model))
    fitted = pyrodyn.fit(model, recording, guide=FlowStart(model))
"""
