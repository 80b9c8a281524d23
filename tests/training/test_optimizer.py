"""Schedules at their corners, AdamW against float64 numpy, and what is decayed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxlm.config.optimization import OptimizerConfig
from flaxlm.config.tuning import TuningConfig
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths, nested
from flaxlm.training.layout import Layout, distances
from flaxlm.training.optimizer import decay_factors, make_optimizer, make_schedule


def config(**fields):
  return dataclasses.replace(OptimizerConfig(), **fields)


@pytest.mark.parametrize('name', ['constant', 'linear', 'cosine', 'rsqrt', 'noam', 'wsd'])
def test_warm_up_is_linear_and_reaches_the_peak(name):
  schedule = make_schedule(config(schedule=name, learning_rate=2.0, warmup_steps=4), 20)
  peak = 1.0 if name == 'noam' else 2.0  # Its width is 1, so (1 * 4)^-0.5 times the factor.
  np.testing.assert_allclose(
    [schedule(i) / peak for i in range(4)], [0.25, 0.5, 0.75, 1.0], rtol=1e-6
  )
  assert all(schedule(i) <= peak for i in range(30))


@pytest.mark.parametrize(
  'name,expected',
  [
    ('constant', lambda u: 1.0),
    ('linear', lambda u: 0.25 + 0.75 * (20 - u) / 16),
    ('cosine', lambda u: 0.25 + 0.75 * (1 + np.cos(np.pi * (u - 4) / 16)) / 2),
    ('rsqrt', lambda u: np.sqrt(4 / u)),
    ('noam', lambda u: np.sqrt(4 / u)),
    ('wsd', lambda u: np.minimum(1, 0.25 + 0.75 * (20 - u) / 5)),
  ],
)
def test_shape_after_the_warm_up(name, expected):
  schedule = make_schedule(
    config(schedule=name, learning_rate=1.0, warmup_steps=4, end_ratio=0.25, decay_share=0.25), 20
  )
  counts = np.arange(4, 20)
  peak = 0.5 if name == 'noam' else 1.0
  np.testing.assert_allclose(schedule(counts) / peak, [expected(u + 1) for u in counts], rtol=1e-5)


def test_last_update_has_the_end_ratio_and_later_ones_keep_it():
  for name in ('linear', 'cosine'):
    schedule = make_schedule(config(schedule=name, learning_rate=3.0, end_ratio=0.1), 200)
    np.testing.assert_allclose([schedule(199), schedule(500)], 0.3, rtol=1e-5)


def test_schedule_is_the_same_traced_and_not():
  schedule = make_schedule(config(), 1000)
  counts = jnp.arange(0, 1000, 37)
  np.testing.assert_allclose(jax.jit(schedule)(counts), [schedule(c) for c in counts], rtol=1e-6)


def numpy_adamw(cfg, params, grads, steps_before, moments):
  """One update in float64, leaf by leaf. Loshchilov and Hutter 2019, algorithm 2."""
  norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
  clip = min(1.0, cfg.clip_norm / norm)
  t = steps_before + 1
  rate = cfg.learning_rate * min(1.0, t / cfg.warmup_steps)  # Constant after the warm-up.
  updated = {}
  for path, grad in grads.items():
    first, second = moments[path]
    first = cfg.b1 * first + (1 - cfg.b1) * clip * grad
    second = cfg.b2 * second + (1 - cfg.b2) * (clip * grad) ** 2
    moments[path] = first, second
    direction = first / (1 - cfg.b1**t) / (np.sqrt(second / (1 - cfg.b2**t)) + cfg.eps)
    if not path.endswith(('bias', 'scale')):
      direction = direction + cfg.weight_decay * params[path]
    updated[path] = params[path] - rate * direction
  return updated


def test_adamw_with_clipping_and_decay_is_numpys():
  """Gradients of sizes that are clipped and that are not, within a warm-up and after it."""
  cfg = config(
    learning_rate=0.1, schedule='constant', warmup_steps=2, b1=0.8, b2=0.95, eps=1e-3,
    weight_decay=0.2, clip_norm=1.5,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  shapes = {'a/kernel': (3, 4), 'a/bias': (4,), 'norm/scale': (5,)}
  params = {path: rng.normal(size=shape) for path, shape in shapes.items()}
  optimizer, _ = make_optimizer(cfg, 10)
  single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
  ours = single(nested(params))
  state = optimizer.init(ours)
  moments = {path: (0.0, 0.0) for path in shapes}
  for number, size in enumerate((3.0, 0.1, 1.0)):
    grads = {path: size * rng.normal(size=shape) for path, shape in shapes.items()}
    updates, state = optimizer.update(single(nested(grads)), state, ours)
    ours = optax.apply_updates(ours, updates)
    params = numpy_adamw(cfg, params, grads, number, moments)
    for path, leaf in leaf_paths(ours).items():
      np.testing.assert_allclose(leaf, params[path], rtol=2e-6, atol=2e-6, err_msg=path)


def test_sgd_with_momentum_and_without_clipping():
  cfg = config(
    name='sgd', momentum=0.5, clip_norm=0.0, schedule='constant', warmup_steps=0, learning_rate=0.1
  )
  optimizer, _ = make_optimizer(cfg, 3)
  params = {'w': jnp.zeros(2)}
  state = optimizer.init(params)
  for _ in range(3):
    updates, state = optimizer.update({'w': jnp.array([100.0, 1.0])}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params['w'], [-42.5, -0.425], rtol=1e-6)  # 1 + 1.5 + 1.75


PARAMS = {
  'trunk': {
    'embedding': jnp.ones((5, 4)),
    'layers': {'norm': {'scale': jnp.ones((3, 4))}, 'mlp': {'kernel': jnp.ones((3, 4, 2))}},
  }
}


def test_decay_excludes_leaves_and_single_layers_of_a_stack():
  factors = decay_factors(config(decay_exclude=('scale$', 'layers/1/mlp')), PARAMS)['trunk']
  assert factors['embedding'] is True
  assert factors['layers']['norm']['scale'] is False
  np.testing.assert_array_equal(np.ravel(factors['layers']['mlp']['kernel']), [1, 0, 1])
  cfg = config(decay_exclude=('layers/1/mlp',), weight_decay=0.5, clip_norm=0.0, warmup_steps=0)
  optimizer, schedule = make_optimizer(cfg, 10)
  updates, _ = optimizer.update(
    jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS), PARAMS
  )
  kernel = updates['trunk']['layers']['mlp']['kernel'][:, 0, 0]
  np.testing.assert_allclose(kernel, -schedule(0) * 0.5 * np.array([1, 0, 1]), rtol=1e-6)


def test_a_pattern_that_does_nothing_is_an_error():
  optimizer, _ = make_optimizer(config(decay_exclude=('embeding',)), 10)
  with pytest.raises(UserError, match="decay_exclude: 'embeding' matches no leaf.*embedding"):
    jax.eval_shape(optimizer.init, PARAMS)
  with pytest.raises(UserError, match='not a regular expression'):
    decay_factors(config(decay_exclude=('(',)), PARAMS)
  decay_factors(config(decay_exclude=('position/',)), PARAMS, ['trunk/position/table'])  # frozen
  decay_factors(config(), {'kernel': jnp.ones(3)})  # the default names biases; T5 has none


def test_noam_is_the_published_formula():
  schedule = make_schedule(config(schedule='noam', learning_rate=2.0, warmup_steps=40), 100, 512)
  steps = np.arange(1, 101)
  expected = 2 * 512**-0.5 * np.minimum(steps**-0.5, steps * 40**-1.5)
  np.testing.assert_allclose(schedule(steps - 1), expected, rtol=1e-5)


def test_wsd_is_constant_then_linear():
  cfg = config(schedule='wsd', learning_rate=2.0, warmup_steps=0, decay_share=0.25, end_ratio=0.5)
  found = make_schedule(cfg, 20)(np.array([0, 14, 15, 19, 30]))
  np.testing.assert_allclose(found, [2.0, 2.0, 1.8, 1.0, 1.0], rtol=1e-6)


# ------------------------------------------------------------------------------ other rules

# Two layers of a stack, whose query has one input axis and whose out has two, and a table.
SHAPES = {
  'trunk/stack/layers/query/kernel': (2, 160, 4, 33),
  'trunk/stack/layers/out/kernel': (2, 4, 33, 160),
  'trunk/token/table': (150, 140),
  'head/bias': (7,),
}
INPUTS = {'trunk/stack/layers/query/kernel': 1, 'trunk/stack/layers/out/kernel': 2}
PLAIN = dict(
  schedule='constant', warmup_steps=0, clip_norm=0.0, learning_rate=0.1, weight_decay=0.0
)


def updates_of(cfg, shapes=SHAPES, steps=3):
  """(parameters before the first update, gradients by step, updates by step), as dicts by path."""
  rng = np.random.default_rng(0)
  draw = lambda: {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
  params, gradients = draw(), [draw() for _ in range(steps)]
  optimizer, _ = make_optimizer(cfg, 10, layout=Layout(INPUTS, {}))
  state, found = optimizer.init(params), []
  for gradient in gradients:
    updates, state = optimizer.update(gradient, state, params)
    found.append(updates)
  return params, gradients, found


def matrices(path, leaf):
  """The layers of a stacked kernel, each as a matrix; other leaves as they are."""
  if path not in INPUTS:
    return [leaf]
  rows = int(np.prod(leaf.shape[1 : 1 + INPUTS[path]]))
  return [layer.reshape(rows, -1) for layer in leaf]


def test_lion_is_numpys():
  _, gradients, found = updates_of(config(name='lion', b1=0.9, b2=0.8, **PLAIN))
  for path in SHAPES:
    mean = 0.0
    for gradient, update in zip(gradients, found, strict=True):
      expected = -0.1 * np.sign(0.9 * mean + 0.1 * gradient[path])
      mean = 0.8 * mean + 0.2 * gradient[path]
      np.testing.assert_allclose(update[path], expected, rtol=1e-6)


def test_muon_orthogonalises_each_layers_kernel_and_leaves_the_rest_to_adam():
  """Against optax's own Muon, on each layer for itself as a matrix."""
  params, gradients, found = updates_of(config(name='muon', b2=0.9, muon_momentum=0.8, **PLAIN))
  reference = optax.contrib.muon(0.1, beta=0.8, consistent_rms=0.2)
  adam = optax.adam(0.1, b1=0.9, b2=0.9)
  for path in SHAPES:
    rule = reference if path in INPUTS else adam
    count = len(matrices(path, params[path]))
    for layer in range(count):
      state = rule.init(matrices(path, params[path])[layer])
      for gradient, update in zip(gradients, found, strict=True):
        expected, state = rule.update(
          matrices(path, gradient[path])[layer], state, matrices(path, params[path])[layer]
        )
        actual = matrices(path, update[path])[layer]
        np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-5, err_msg=path)
  query = matrices('trunk/stack/layers/query/kernel', found[0]['trunk/stack/layers/query/kernel'])
  singular = np.linalg.svd(query[0], compute_uv=False)
  assert singular.max() / singular.min() < 3  # Those of the gradient span more than 20 to 1.


@pytest.mark.parametrize(
  'fields,reference',
  [
    ({'name': 'adafactor', 'parameter_scale': True}, optax.adafactor(0.1)),
    (
      {'name': 'adafactor', 'parameter_scale': False},
      optax.adafactor(0.1, multiply_by_parameter_scale=False),
    ),
    (
      {'name': 'adamwscale', 'b1': 0.8, 'b2': 0.9, 'eps': 1e-5},
      optax.chain(
        optax.scale_by_adam(0.8, 0.9, 1e-5), optax.scale_by_param_block_rms(), optax.scale(-0.1)
      ),
    ),
  ],
)
def test_each_layer_is_treated_as_optax_treats_a_matrix(fields, reference):
  shapes = SHAPES | {'trunk/stack/layers/norm/scale': (2, 16)}
  params, gradients, found = updates_of(config(**fields, **PLAIN), shapes)
  for path in shapes:
    split = list if path.endswith('norm/scale') else functools.partial(matrices, path)
    for layer, param in enumerate(split(params[path])):
      state = reference.init(param)
      for gradient, update in zip(gradients, found, strict=True):
        expected, state = reference.update(split(gradient[path])[layer], state, param)
        np.testing.assert_allclose(split(update[path])[layer], expected, rtol=1e-4, err_msg=path)


def test_adafactor_keeps_rows_and_columns_only():
  layout = Layout(INPUTS, {})
  optimizer, _ = make_optimizer(config(name='adafactor', **PLAIN), 10, layout=layout)
  shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()}
  state = jax.eval_shape(optimizer.init, shapes)
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 4 * (160 + 132) + 150 + 140 + 7 + 16


# ------------------------------------------------------------------------------ rates by layer

NAMES = [
  'head/classes/kernel', 'trunk/final_norm/scale', 'trunk/stack/layers/0/mlp/kernel',
  'trunk/stack/layers/2/mlp/kernel', 'trunk/stack/layers/1/mlp/kernel', 'trunk/token/table',
  'trunk/embedding/norm/scale', 'delta/trunk/stack/layers/2/mlp/kernel/a',
]  # fmt: skip


def test_distances_grow_from_the_head_to_the_embeddings():
  assert [distances(NAMES)[name] for name in NAMES] == [0, 0, 3, 1, 2, 4, 4, 1]
  stacks = ['trunk/encoder/layers/1/k', 'trunk/decoder/layers/0/k', 'trunk/decoder/layers/3/k']
  stacks += ['trunk/encoder_norm/scale', 'trunk/decoder_position/table', 'trunk/token/table']
  assert list(distances(stacks).values()) == [1, 4, 1, 0, 5, 5]


def layered(steps, **fields):
  """Values of a leaf at each distance 0 ... 4 after each of `steps` updates of 1.0 each."""
  params = {
    'head': {'kernel': jnp.zeros(2)},
    'trunk': {
      'stack': {
        'layers': {'kernel': jnp.zeros((2, 3, 1))},
        'layers_from_2': {'s': jnp.zeros((1, 1))},
      },
      'token': {'table': jnp.zeros((4, 2))},
    },
  }
  names = ['head/kernel', *(f'trunk/stack/layers/{i}/kernel' for i in range(2))]
  layout = Layout({}, distances([*names, 'trunk/stack/layers/2/s', 'trunk/token/table']))
  every = fields.pop('unfreeze_every', 0)
  cfg = config(name='sgd', **(PLAIN | {'learning_rate': 1.0}))
  optimizer, _ = make_optimizer(
    cfg, 10, layout=layout, tuning=TuningConfig(**fields), unfreeze_every=every
  )
  state, found = optimizer.init(params), []
  for _ in range(steps):
    updates, state = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
    stack = params['trunk']['stack']
    layers = [stack['layers_from_2']['s'][0, 0], *stack['layers']['kernel'][::-1, 0, 0]]
    ends = params['head']['kernel'][0], params['trunk']['token']['table'][0, 0]
    found.append([-float(x) for x in (ends[0], *layers, ends[1])])
  return found


def test_the_rate_decays_from_layer_to_layer():
  np.testing.assert_allclose(layered(1, layer_decay=0.5), [[1, 0.5, 0.25, 0.125, 0.0625]])


@pytest.mark.parametrize(
  'fields, every, expected',
  [({'layer_decay': 0.5}, 0, [0.5, 0.25, 0.03125]), ({}, 2, [0.5, 0, 0])],
)
def test_decay_falls_with_the_layer_and_waits_for_it_too(fields, every, expected):
  params = {
    'head': {'kernel': jnp.ones(2)},
    'trunk': {'stack': {'layers': {'kernel': jnp.ones((3, 1))}}, 'token': {'table': jnp.ones(2)}},
  }
  names = [f'trunk/stack/layers/{i}/kernel' for i in range(3)]
  optimizer, _ = make_optimizer(
    config(name='adamw', **PLAIN | {'learning_rate': 1.0, 'weight_decay': 0.5}), 10,
    layout=Layout({}, distances(['head/kernel', *names, 'trunk/token/table'])),
    tuning=TuningConfig(**fields), unfreeze_every=every,
  )  # fmt: skip
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  layers, table = (updates['trunk'][name] for name in ('stack', 'token'))
  found = [updates['head']['kernel'][0], layers['layers']['kernel'][2, 0], table['table'][0]]
  np.testing.assert_allclose(-np.array(found), expected, atol=1e-7)  # At distances 0, 1, 4.


def test_layers_begin_one_after_another_from_the_top():
  assert layered(5, unfreeze_every=2) == [
    [1, 0, 0, 0, 0], [2, 0, 0, 0, 0], [3, 1, 0, 0, 0], [4, 2, 0, 0, 0], [5, 3, 1, 0, 0],
  ]  # fmt: skip
