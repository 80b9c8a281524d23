"""An experiment small enough for tests of what goes on around the step: linear regression."""

import dataclasses
import functools
import hashlib
import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from flaxlm import sharding
from flaxlm.config import tree
from flaxlm.training import guard, loop
from flaxlm.training.interrupt import Interrupts
from flaxlm.training.optimizer import make_optimizer
from flaxlm.training.partition import EVERYTHING
from flaxlm.training.writers import read_metrics
from flaxlm.types import GUARD, Mean, TrainState

WIDTH = 6
EXACT = ('step', 'split', 'loss', 'learning_rate', 'grad_norm', 'perplexity')


def make_config(**changes):
  """A config of 20 steps; keys with a double underscore reach into nodes: checkpoint__keep_last."""
  config_dict = tree.new()
  fields = {
    'total_steps': 20,
    'global_batch_size': 8,
    'checkpoint__every_steps': 5,
    'evaluation__every_steps': 10,
    'logging__every_steps': 1,
    'optimizer__warmup_steps': 3,
    'optimizer__learning_rate': 0.05,
    **changes,
  }
  for key, value in fields.items():
    *nodes, leaf = key.split('__')
    functools.reduce(getattr, nodes, config_dict)[leaf] = value
  return tree.from_config_dict(config_dict)


class Tokenizer:
  def __init__(self, fingerprint='tokens'):
    self.fingerprint = fingerprint

  def save(self, directory):
    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    (path / 'tokenizer.json').write_text(json.dumps(self.fingerprint))


class Data:
  """Rows x [B, WIDTH] and y [B].

  poison: the batch that holds a NaN, or several -> by what their x are multiplied; missing: batches
  that are not there, so that those after them come earlier.
  """

  def __init__(self, seed=0, poison=None, on_batch=None, batches=5, missing=()):
    self.seed, self.on_batch, self.count, self.missing = seed, on_batch, batches, missing
    self.poison = poison if isinstance(poison, dict) else {poison: np.nan}
    self.num_bytes, self.num_positions, self.batch_size = 1000, 8, 8
    self.seen, self.corpus = [], 'rows'

  def batch(self, step):
    for absent in sorted(self.missing):
      step += step >= absent
    rng = np.random.default_rng((self.seed, step))
    x = rng.normal(size=(8, WIDTH)).astype(np.float32)
    y = x @ np.arange(WIDTH, dtype=np.float32) / WIDTH
    if step in self.poison:
      x[0] *= self.poison[step]
    return {'x': x, 'y': y}

  first_rows = batch

  def iterate(self, start):
    while True:
      if self.on_batch:
        self.on_batch(start)
      self.seen.append(start)
      yield self.batch(start)
      start += 1

  def describe(self, step):
    return f'rows of step {step}'

  def __len__(self):
    return self.count

  def share(self, batches):
    return batches / self.count

  def batches(self, max_batches=None):
    return map(self.batch, range(self.count if max_batches is None else max_batches))


class Objective:
  terms = ('loss',)
  likelihood = True
  perplexity = 'loss'


class Experiment:
  """What the loop and the evaluator need of flaxlm.training.experiment.Experiment."""

  def __init__(self, config, train_data=None, layers=2):
    self.config, self.layers = config, layers
    self.tokenizer, self.objective = Tokenizer(), Objective()
    self.task, self.examples = None, {}
    self.partition = EVERYTHING
    self.mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    self.total_steps = config.total_steps
    self.optimizer, self.schedule = make_optimizer(config.optimizer, self.total_steps)
    self.train_data = train_data or Data()
    self.eval_data = {'validation': Data(seed=1), 'other': Data(seed=2, batches=2)}
    self.held_out = {'validation': 'text'}
    self.sharding = sharding.replicated(self.mesh)
    self.train_step = jax.jit(self._train_step, donate_argnums=0)
    self.eval_step = jax.jit(
      lambda params, batch, memory: ({'loss': self._loss(params, batch)}, {}, memory)
    )
    self.empty_memory = lambda rows: None

  def _init(self):
    keys = jax.random.split(jax.random.key(self.config.seed), 2)
    trunk = {
      'layers': {'kernel': jax.random.normal(keys[0], (self.layers, WIDTH, WIDTH)) / WIDTH**0.5},
      'scale': jnp.ones(WIDTH),
    }
    params = {'trunk': trunk, 'head': {'kernel': jax.random.normal(keys[1], (WIDTH,))}}
    extras = {GUARD: guard.fresh()} if self.config.guard.is_on else {}
    return TrainState(jnp.int32(0), params, self.optimizer.init(params), extras)

  def init_state(self):
    return jax.jit(self._init, out_shardings=self.sharding)()

  @property
  def abstract_state(self):
    return jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self.sharding),
      jax.eval_shape(self._init),
    )

  @property
  def stored_parts(self):
    return {'params': self.abstract_state.params}

  def weights(self, params, extras=None):
    return params

  def put(self, batch):
    return jax.device_put(batch, self.sharding)

  @staticmethod
  def _loss(params, batch):
    hidden = batch['x']
    for kernel in params['trunk']['layers']['kernel']:
      hidden = hidden @ kernel
    errors = hidden * params['trunk']['scale'] @ params['head']['kernel'] - batch['y']
    return Mean(jnp.sum(errors**2), jnp.float32(len(errors)))

  def _train_step(self, state, batch):
    def loss(params):
      mean = self._loss(params, batch)
      return mean.total / mean.weight, mean

    (_, mean), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = jnp.stack([jnp.linalg.norm(g.ravel()) for g in jax.tree.leaves(grads)])
    metrics = {
      'loss': mean,
      'grad_norm': jnp.linalg.norm(norms),
      'leaf_norms': norms,
      'tokens': jnp.int32(8),
    }
    after = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    if self.config.guard.is_on:
      loss = mean.total / mean.weight
      after, judged = guard.settle(self.config.guard, state, after, loss, metrics['grad_norm'])
      metrics |= judged
    return after, metrics


def fit(workdir, data=None, **changes):
  """Trains in this process, which signals reach; the final state."""
  experiment = Experiment(make_config(**changes), data)
  with Interrupts() as interrupts:
    return loop.fit(experiment, workdir, [('total_steps', '20')], interrupts)


def exact(workdir):
  """What a resumed run must repeat; wall-clock rates may differ."""
  return [{k: line[k] for k in EXACT if k in line} for line in read_metrics(workdir)]


def stop_at(step, signum=signal.SIGTERM):
  """Data that send this process a signal when they are asked for the batch of a step."""

  def on_batch(number):
    if number == step:
      os.kill(os.getpid(), signum)
      time.sleep(0.05)

  return Data(on_batch=on_batch)


def stuck():
  """Runs no Python for hours, as a compilation does for minutes."""
  print('waiting', file=sys.stderr, flush=True)
  hashlib.pbkdf2_hmac('sha256', b'x', b'x', 10**9)


def main(workdir, trouble=''):
  """A run to be stopped: `python linear_experiment.py WORKDIR [TROUBLE]`."""
  config = make_config(
    total_steps=60, checkpoint__every_steps=7, evaluation__every_steps=9,
    checkpoint__grace_seconds=2.0 if trouble == 'stuck step' else 25.0,
  )  # fmt: skip

  def on_batch(step):
    time.sleep(0.02)
    if trouble == 'stuck step' and step == 12:
      stuck()

  experiment = Experiment(config, Data(on_batch=on_batch))
  if trouble == 'stuck evaluation':
    experiment.eval_step = lambda *_: stuck()
  if trouble == 'killed save':
    rename = os.rename

    def killed(source, target):
      """At the rename that makes what was written for step 14 a checkpoint."""
      if os.path.basename(target) == '14':
        os.kill(os.getpid(), signal.SIGKILL)
      rename(source, target)

    os.rename = killed
  with Interrupts() as interrupts:
    loop.fit(experiment, workdir, (), interrupts)


if __name__ == '__main__':
  main(*sys.argv[1:])
