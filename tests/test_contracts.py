"""Every file that a config can name keeps its protocol, and every recipe takes a step.

The packages are walked: a new file is tested by existing.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import flax.linen as nn
import numpy as np
import optax
import pytest
import tiny

from flaxlm.config import tree
from flaxlm.config.field import Named, rules_of
from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Stream
from flaxlm.models.family import FAMILIES
from flaxlm.paths import leaf_paths, virtual_paths
from flaxlm.training import resume

OBJECTIVES = tree.named_files('flaxlm.objectives')
MODELS = tree.named_files('flaxlm.models')
TASKS = tree.named_files('flaxlm.tasks')
COMMANDS = [
  info.name
  for info in pkgutil.iter_modules(importlib.import_module('flaxlm.commands').__path__)
  if not info.name.startswith('_')
]


def load(package, name):
  return importlib.import_module(f'flaxlm.{package}.{name}')


def parameters(function):
  """Names of a function's parameters, without self; those with a default in brackets."""
  found = [p for p in inspect.signature(function).parameters.values() if p.name != 'self']
  return [p.name if p.default is p.empty else f'[{p.name}]' for p in found]


def own_classes(module):
  return [
    c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__
  ]


def check_config(cls):
  """A frozen dataclass of documented fields, all with defaults, so that a name alone builds it."""
  assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
  assert issubclass(cls, Named)
  for item in dataclasses.fields(cls):
    assert rules_of(item).doc, item.name
    for sibling, values in (rules_of(item).when or {}).items():
      names = {field.name for field in dataclasses.fields(cls)}
      known = sibling in names or sibling.startswith('config.')
      assert known and isinstance(values, tuple), item.name
  cls()


def test_the_walk_finds_models_objectives_tasks_and_commands():
  assert set(MODELS) >= {'encoder', 'decoder', 'encoder_decoder'}
  assert set(OBJECTIVES) >= {'causal_lm', 'masked_lm', 'span_corruption', 'classification'}
  assert 'text_classification' in TASKS
  assert set(COMMANDS) >= {'tokenizer', 'corpus', 'fill_mask', 'generate', 'plot'}


@pytest.mark.parametrize('name', MODELS)
def test_model(name):
  module = load('models', name)
  check_config(module.Config)
  assert issubclass(module.Config, TransformerConfig)
  assert module.FAMILY in FAMILIES
  assert issubclass(module.Trunk, nn.Module)
  names = parameters(module.Trunk.__call__)
  assert names[:2] == ['batch', '[deterministic]']
  # Decoding reads what it needs by these names.
  wanted = {'encoder': [], 'decoder': ['[cache]'], 'encoder_decoder': ['[cache]', '[memory]']}
  recurrent = ['[cache]'] * hasattr(module.Trunk, 'empty_memory')
  assert names[2:] == wanted[module.FAMILY] + recurrent
  assert module.Trunk.__doc__ and '[B' in module.Trunk.__doc__
  assert [field.name for field in dataclasses.fields(module.Trunk)][0] == 'config'


def trunk_files():
  names = [i.name for i in pkgutil.iter_modules(importlib.import_module('flaxlm.models').__path__)]
  return [name for name in names if hasattr(load('models', name), 'Trunk')]


def test_every_trunk_can_be_named_in_a_config():
  assert trunk_files() == MODELS


def objective_files():
  package = importlib.import_module('flaxlm.objectives')
  names = [info.name for info in pkgutil.iter_modules(package.__path__)]
  own = {name: {c.__name__ for c in own_classes(load('objectives', name))} for name in names}
  return [name for name in names if 'Objective' in own[name] and name != 'base']


def test_every_objective_can_be_named_in_a_config():
  assert objective_files() == OBJECTIVES


@pytest.mark.parametrize('name', OBJECTIVES)
def test_objective(name):
  module = load('objectives', name)
  assert module.__doc__
  check_config(module.Config)
  cls = module.Objective
  assert parameters(cls) == ['config', 'tokenizer']
  assert cls.families and set(cls.families) <= set(FAMILIES)
  assert cls.packing in ('concatenate', 'first_fit')
  assert isinstance(cls.likelihood, bool)
  assert isinstance(cls.perplexity, str)
  assert parameters(cls.head) == ['model']
  assert parameters(cls.weights) == ['batch']
  assert parameters(cls.losses) == ['outputs', 'batch']
  assert len(parameters(cls.features)) == 2 and parameters(cls.features)[1] == 'rng'
  if cls.packing == 'first_fit':
    assert parameters(cls.items) == ['examples'] and parameters(cls.lengths) == ['item']
    assert parameters(cls.predict) == ['outputs', 'batch']
    assert 'text' in cls.needs
  if cls.divergence:
    assert parameters(cls.divergence) == ['first', 'second', 'batch']
  if cls.prompt:
    assert parameters(cls.prompt) == ['text']
  heads = [c for c in own_classes(module) if c.__name__.endswith('Head')]
  for head in heads:
    assert parameters(head.__call__) == ['output', 'batch', 'deterministic']


@pytest.mark.parametrize('name', TASKS)
def test_task(name):
  module = load('tasks', name)
  assert module.__doc__
  check_config(module.Config)
  cls = module.Task
  assert parameters(cls) == ['config']
  assert parameters(cls.parse) == ['row', 'where', '[labelled]']
  assert parameters(cls.discover) == ['examples']
  assert parameters(cls.texts) == ['example'] and 'text' in cls.gives
  for method in (cls.metrics, cls.details, cls.records):
    assert parameters(method) == ['predictions', 'examples']


@pytest.mark.parametrize('name', COMMANDS)
def test_command(name, capsys):
  module = load('commands', name)
  first, _, rest = module.__doc__.partition('\n')
  assert first.endswith('.') and f'python -m flaxlm {name.replace("_", "-")}' in rest
  assert parameters(module.main) == ['argv']
  with pytest.raises(SystemExit) as stopped:
    module.main(['--help'])
  assert stopped.value.code == 0
  assert first in capsys.readouterr().out


# ------------------------------------------------------------------------------------- recipes

# Leaves whose gradient is 0 analytically, by (objective, family), as patterns over virtual paths.
# A bias of the keys adds the same to all scores of a query, which the softmax takes out again.
KEY_BIAS = r'attention/key/bias$'
# The decoder reads a single start token: it attends to itself with probability 1, whatever the
# scores are.
SINGLE_TOKEN = r'decoder/layers/\d+/attention/(query|key)/|decoder_position/'
# So does one bias for all the places or choices that a head's softmax runs over.
HEAD_BIAS = {'span_qa': 'head/span/bias$', 'multiple_choice': 'head/classes/out/bias$'}


def dead_pattern(config):
  pooled = config.objective.name in ('classification', 'regression', 'multi_label')
  single = pooled and config.model.name == 'encoder_decoder'
  patterns = [KEY_BIAS, SINGLE_TOKEN if single else None, HEAD_BIAS.get(config.objective.name)]
  return '|'.join(filter(None, patterns))


# Besides the recipes for two cores and those of tasks: a published size with all that these add
# (bfloat16, dropout, scanned and recomputed layers), and blocks that no `mini` has. The others are
# part of the full tests.
ALWAYS = {'gpt2.py:124m', 't5.py:v1_1_mini', 'modernbert.py:base'}
# Recipes of tasks are alike in their families, so that two show them all.
ALWAYS |= {f'{name}.py:{family}' for name in ('classify', 'text_to_text') for family in FAMILIES}
ALWAYS |= {'tag.py:encoder', 'squad.py:encoder'}


def is_quick(place):
  return place[place.index('.py') + 3 :] in ('', ':mini') or place in ALWAYS


RECIPES = [
  place if is_quick(place) else pytest.param(place, marks=pytest.mark.full)
  for place in tiny.places()
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('contracts'))


_steps = {}


def step(config, folder):
  """(experiment, batch, state after a step, metrics), once for all variants that shrink to one."""
  if config not in _steps:
    experiment = tiny.build(config, folder / 'no_run')
    batch = experiment.train_data.batch(0)
    state = tiny.random_state(experiment)
    state, metrics = experiment.train_step(state, experiment.put(batch))
    _steps[config] = experiment, batch, state, metrics
  return _steps[config]


@pytest.mark.parametrize('place', RECIPES)
def test_every_recipe_takes_a_step(place, folder):
  config = tiny.load(place, folder)
  experiment, batch, state, metrics = step(config, folder)
  # The same command goes on, before and after the rows have decided what it leaves open.
  resume.check_config(experiment.config, config, complete=False)
  resume.check_config(experiment.config, experiment.config)
  assert all(isinstance(s, Stream) for s in experiment.objective.streams.values())
  assert {len(rows) for rows in batch.values()} == {4}
  objective = experiment.objective
  assert isinstance(objective.terms, tuple)
  assert set(objective.weights(batch)) == set(objective.terms)
  assert objective.perplexity in ('', *objective.terms)
  # A member of a mixture may have no row in a batch.
  values = {n: m.value() for n, m in metrics.items() if hasattr(m, 'value') and float(m.weight)}
  assert set(values) >= {'loss', *objective.terms}
  assert np.isfinite(list(values.values())).all() and values['loss'] > 0
  assert int(state.step) == 1
  for path, leaf in leaf_paths(state.params).items():
    assert np.isfinite(leaf).all(), path


@pytest.mark.parametrize('place', RECIPES)
def test_every_parameter_gets_a_gradient(place, folder):
  """Of every layer for itself, read off Adam's first moment: (1 - b1) times the gradient."""
  config = tiny.load(place, folder)
  adam = dataclasses.replace(config.optimizer, name='adamw')
  experiment, _, state, _ = step(dataclasses.replace(config, optimizer=adam), folder)
  moments = leaf_paths(optax.tree_utils.tree_get(state.opt_state, 'mu'))
  assert list(moments) == list(leaf_paths(state.params))
  norms = {}
  for path, leaf in moments.items():
    names = virtual_paths(path, leaf)
    parts = [leaf] if names == [path] else leaf
    norms |= {name: float(np.linalg.norm(part)) for name, part in zip(names, parts, strict=True)}
  total = np.linalg.norm(list(norms.values()))
  dead = re.compile(dead_pattern(config))
  assert not [name for name, norm in norms.items() if not norm and not dead.search(name)]
  # What is declared dead is so, but for rounding.
  rounding = 1e-5 if config.precision == 'float32' else 1e-2
  alive = {n: x / total for n, x in norms.items() if dead.search(n) and x > rounding * total}
  assert not alive


def test_shrinking_keeps_what_makes_a_variant(folder):
  """The published sizes scan and compute in bfloat16, T5 1.1 has gates, BERT is post-norm."""
  configs = [tiny.load(place, folder) for place in tiny.places()]
  for key, values in {
    'scan_layers': {True, False},
    'gated_mlp': {True, False},
    'norm_placement': {'pre', 'post'},
    'remat': {'none', 'full'},
    'position': {'learned', 't5_bias'},
  }.items():
    assert {getattr(config.model, key) for config in configs} >= values
  assert {config.precision for config in configs} == {'float32', 'bfloat16'}
