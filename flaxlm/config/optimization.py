"""The update rule and its schedule."""

import dataclasses

from flaxlm.config.field import SET, field

MUON = {'name': ('muon',)}
DECAYED = {'name': ('adamw', 'adamwscale', 'adafactor', 'lion', 'muon')}
WITH_ADAM = ('adamw', 'adamwscale', 'muon')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Gradient transformation and learning-rate schedule."""

  name: str = field(
    'adamw',
    'update rule',
    choices=('adamw', 'adamwscale', 'adafactor', 'lion', 'muon', 'sgd'),
  )
  learning_rate: float = field(
    1e-3, 'peak learning rate; with `noam` the factor of its peak', above=0.0
  )
  schedule: str = field(
    'cosine',
    'shape after the warm-up; `noam`: rsqrt whose peak is learning_rate / sqrt(emb_dim * '
    'warmup_steps); `wsd`: constant, then linear',
    choices=('constant', 'linear', 'cosine', 'rsqrt', 'noam', 'wsd'),
  )
  warmup_steps: int = field(100, 'steps of linear warm-up', low=0)
  decay_share: float = field(
    0.1,
    'last part of the run, over which the rate falls',
    above=0.0,
    high=1.0,
    when={'schedule': ('wsd',)},
  )
  end_ratio: float = field(
    0.1,
    'last learning rate over the peak',
    low=0.0,
    high=1.0,
    when={'schedule': ('linear', 'cosine', 'wsd')},
  )
  b1: float = field(
    0.9, 'decay of the first moment', low=0.0, below=1.0, when={'name': (*WITH_ADAM, 'lion')}
  )
  b2: float = field(
    0.95,
    'decay of the second moment; of the momentum in lion',
    low=0.0,
    below=1.0,
    when={'name': (*WITH_ADAM, 'lion')},
  )
  eps: float = field(
    1e-8, 'added to the root of the second moment', above=0.0, when={'name': WITH_ADAM}
  )
  momentum: float = field(0.0, 'momentum of SGD', low=0.0, below=1.0, when={'name': ('sgd',)})
  muon_momentum: float = field(
    0.95, 'momentum of Muon; b1, b2 and eps are of its Adam', low=0.0, below=1.0, when=MUON
  )
  parameter_scale: bool = field(
    True, "multiply a parameter's updates by its RMS", when={'name': ('adafactor',)}
  )
  weight_decay: float = field(0.1, 'decoupled decay', low=0.0, when=DECAYED)
  decay_exclude: tuple[str, ...] = field(
    ('bias$', 'scale$'),
    'regular expressions: leaves whose path matches one are not decayed',
    when=DECAYED | {'weight_decay': (SET,)},
  )
  ema_decay: float = field(
    0.0,
    'decay of an exponential moving average of the parameters that train, (1 + step) / (10 + step) '
    'where that is less; 0: none is kept',
    low=0.0,
    below=1.0,
  )
  clip_norm: float = field(1.0, 'largest global norm of the gradient; 0: no clipping', low=0.0)
