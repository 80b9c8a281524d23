"""What worker processes import in the tests of them: little, so that they start at once."""

import dataclasses
import os
import signal

import numpy as np

from flaxlm.config.data import DataConfig, TokenizerConfig
from flaxlm.config.schema import Config
from flaxlm.data import pipeline, tokenizer
from flaxlm.data.packing import Stream
from flaxlm.errors import UserError


class Reading:
  """An objective that shows the tokens and one random number a piece; it fails as it is told."""

  def __init__(self, fault=''):
    self.span, self.gap, self.fault = 16, 0, fault
    self.recurrent, self.of_row = False, None
    self.streams = {
      'inputs': Stream(16, ('inputs',), prefix=''),
      'drawn': Stream(16, ('drawn', 'target_weights')),
    }

  def features(self, piece, rng):
    tokens = piece.read(piece.start, piece.stop)
    drawn = rng.integers(1, 1 << 30, 1)
    if self.fault and drawn[0] % 8 == 0:
      if self.fault == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
      raise UserError('one line') if self.fault == 'user' else Unfit('a', 'b')
    return {'inputs': tokens, 'drawn': drawn, 'target_weights': np.full(1, 0.5)}


class Unfit(Exception):
  """An exception that does not survive pickling: it takes two arguments and keeps one."""

  def __init__(self, first, second):
    super().__init__(f'{first} with {second}')


class Closed(Reading):
  """It cannot be sent anywhere."""

  def __init__(self):
    super().__init__()
    self.function = lambda: None


def make(folder, objective=None, **data):
  rng = np.random.default_rng(0)
  texts = [''.join(rng.choice(list('abcdefgh'), n)) for n in rng.integers(1, 90, 60)]
  (folder / 'x.txt').write_text('\n\n'.join(texts))
  config = Config(
    data=DataConfig(train=str(folder / 'x.txt'), cache_dir=str(folder / 'cache'), **data),
    total_steps=1,
    global_batch_size=4,
    tokenizer=TokenizerConfig(name='bytes'),
  )
  made = tokenizer.train(TokenizerConfig(name='bytes'), [])
  return pipeline.train_pipeline(config, made, objective or Reading())


def with_workers(data, number, **changes):
  options = dataclasses.replace(data.config.data, num_workers=number, **changes)
  data.config = dataclasses.replace(data.config, data=options)
  return data
