"""The examples of docs/adding.md: a package outside flaxlm, named from configs, as they stand."""

import importlib
import json
import re
import sys

import jax
import numpy as np
import pytest
import tiny

from flaxlm.config import recipe
from flaxlm.evaluation import evaluator
from flaxlm.paths import leaf_paths
from flaxlm.training import loop
from flaxlm.training.experiment import open_model

GUIDE = tiny.ROOT / 'docs' / 'adding.md'
# `mylab/NAME.py` in the text above a block of code says which file it is.
BLOCK = re.compile(r'`((?:mylab|recipes)/\w+\.py)`(?:(?!```).)*```python\n(.*?)```', re.DOTALL)
SMALL = {
  'model.num_layers': 2, 'model.emb_dim': 16, 'model.num_heads': 2, 'model.max_length': 32,
  'tokenizer.vocab_size': 360, 'global_batch_size': 4, 'total_steps': 4,
  'optimizer.schedule': 'constant', 'optimizer.warmup_steps': 0, 'checkpoint.every_steps': 2,
}  # fmt: skip


@pytest.fixture(scope='module')
def package(tmp_path_factory):
  """The folder that holds the guide's files, on the Python path; none lies in the project."""
  folder = tmp_path_factory.mktemp('elsewhere')
  for name, code in BLOCK.findall(GUIDE.read_text()):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(code)
  (folder / 'mylab' / '__init__.py').touch()
  tiny.write_corpus(folder)
  sys.path.insert(0, str(folder))
  importlib.invalidate_caches()
  yield folder
  sys.path.remove(str(folder))


def train(folder, workdir, place, **changes):
  """Trains a recipe with overrides; keys with a double underscore reach into nodes."""
  found = {name.replace('__', '.'): value for name, value in changes.items()}
  overrides = {'data.train': folder / 'text.txt', **SMALL, **found}
  overrides = [(key, str(value)) for key, value in overrides.items()]
  loop.train(recipe.load(str(place), overrides), str(workdir), overrides)


def leaves(workdir):
  return {
    path: np.asarray(leaf) for path, leaf in leaf_paths(open_model(workdir, 'latest')[1]).items()
  }


def test_the_guide_names_every_file(package):
  text = GUIDE.read_text()
  listed = re.findall(r'^\.\./mylab/(\S+\.py) ', text, re.MULTILINE)
  assert sorted(listed) == sorted(name for name, _ in BLOCK.findall(text))


def test_trunk_head_and_objective_of_a_package(package, tmp_path):
  """A few steps, evaluation, a checkpoint that is read again, and a resume that changes nothing."""
  place = tiny.ROOT / 'configs' / 'gpt2.py:mini'
  own = {'model__name': 'mylab.recurrent', 'objective__name': 'mylab.two_ahead'}
  train(package, tmp_path / 'whole', place, **own, model__keep_bias=0.5)
  lines = [json.loads(line) for line in (tmp_path / 'whole/metrics.jsonl').read_text().splitlines()]
  assert {'next_loss', 'second_loss', 'second_accuracy'} <= set(lines[-1])
  result = evaluator.evaluate_workdir(str(tmp_path / 'whole'))
  assert np.isfinite(result['validation']['second_loss'])
  assert result['checkpoint'] == 4
  params = leaves(tmp_path / 'whole')
  assert {'head/second/kernel', 'trunk/keep_1/kernel'} <= set(params)
  train(package, tmp_path / 'parts', place, **own, model__keep_bias=0.5, total_steps=2)
  train(package, tmp_path / 'parts', place, **own, model__keep_bias=0.5)
  resumed = leaves(tmp_path / 'parts')
  jax.tree.map(np.testing.assert_array_equal, params, resumed)


def test_texts_of_a_row_do_not_see_each_other(package):
  """As the guide says of its trunk."""
  from mylab import recurrent

  keep, new = np.random.default_rng(0).uniform(size=(2, 1, 6, 3)).astype(np.float32)
  keep[:, 4] = 0
  state, states = np.zeros(3), []
  for t in range(6):
    state = keep[0, t] * state + new[0, t]
    states.append(state)
  found = recurrent.recurrence(keep, new)
  np.testing.assert_allclose(found[0], states, rtol=1e-5)
  np.testing.assert_allclose(found[0, 4], new[0, 4])


@pytest.mark.full
def test_the_other_examples_train(package, tmp_path):
  configs = tiny.ROOT / 'configs'
  train(package, tmp_path / 'fim', package / 'recipes' / 'fim.py', total_steps=2)
  train(
    package, tmp_path / 'looped', configs / 'bert.py:mini', total_steps=2,
    model__name='mylab.looped_encoder', model__num_loops=3,
  )  # fmt: skip
  train(
    package, tmp_path / 'pairs', configs / 'classify.py:encoder', total_steps=2,
    task__name='mylab.text_pairs', task__second_column='other', num_epochs=None,
    data__train=package / 'rows.tsv',
  )  # fmt: skip
  for name in ('fim', 'looped', 'pairs'):
    assert (tmp_path / name / 'checkpoints' / '2').is_dir()
