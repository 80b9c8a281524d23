"""Objectives that only say what a test asks of them."""

from flaxlm.objectives import base


class Objective(base.Objective):
  """Has the given attributes, and the defaults of every objective for the others."""

  streams = {}

  def __init__(self, **attributes):
    vars(self).update(attributes)

  def features(self, item, rng):
    raise NotImplementedError

  head = losses = features
