"""What is wrong with a set of texts is said at the start."""

import types

import numpy as np
import pytest
import tiny

from flaxlm.config import recipe
from flaxlm.config.optimization import OptimizerConfig
from flaxlm.data import pipeline, tokenizer
from flaxlm.errors import UserError
from flaxlm.training import checks


def check(place, seed=0, **places):
  """Of a recipe on texts, tokenised as bytes."""
  pairs = [
    ('tokenizer.name', 'bytes'),
    ('evaluation.seed', str(seed)),
    *((f'data.{name}', p) for name, p in places.items()),
  ]
  config = recipe.load(str(tiny.ROOT / 'configs' / place), pairs)
  made = tokenizer.train(config.tokenizer, [])
  objective = checks.objective_class(config)(config, made)
  checks.check_first_batches(
    types.SimpleNamespace(
      config=config,
      train_data=pipeline.train_pipeline(config, made, objective),
      eval_data=pipeline.eval_pipelines(config, made, objective),
    )
  )


def test_unfreezing_that_begins_too_late(capsys):
  trained = {'head': np.zeros(1), 'trunk': {'layers': {'kernel': np.zeros((2, 3))}}}
  distances = {'head': 0, 'trunk/layers/0/kernel': 2, 'trunk/layers/1/kernel': 1}
  checks.check_unfreezing(5, 11, distances, trained)
  assert not capsys.readouterr().err
  checks.check_unfreezing(5, 10, distances, trained)
  assert 'before 1 of 3 leaves move, such as trunk/layers/0/kernel' in capsys.readouterr().err
  trunk = {'trunk': trained['trunk']}
  with pytest.raises(UserError, match='what moves first is frozen, and 5 updates would change'):
    checks.check_unfreezing(5, 100, distances, trunk)
  checks.check_unfreezing(5, 100, {k: v for k, v in distances.items() if v}, trunk)


def test_a_validation_text_without_another_document_is_no_surprise_at_its_evaluation(tmp_path):
  (tmp_path / 'many.txt').write_text('\n\n'.join(f'a document of number {i}' for i in range(9)))
  # Long enough for one pair: its label, which is drawn, may be that B follows A.
  (tmp_path / 'one.txt').write_text('the only document')
  cache, many, one = (str(tmp_path / name) for name in ('cache', 'many.txt', 'one.txt'))
  check('bert.py:mini', train=many, validation=many, cache_dir=cache)
  for seed in range(9):
    with pytest.raises(UserError, match='config.objective.pairs: negatives come from another'):
      check('bert.py:mini', seed, train=many, validation=one, cache_dir=cache)


def test_texts_that_are_too_short_to_learn_from_are_an_error(tmp_path):
  """Spans are corrupted in texts of two tokens and more."""
  (tmp_path / 'x.txt').write_text('\n\n'.join('abcdefg'))
  with pytest.raises(UserError, match="nothing that 'span_corruption' learns from"):
    check('t5.py:mini', train=str(tmp_path / 'x.txt'), cache_dir=str(tmp_path / 'cache'))


@pytest.mark.parametrize(('warmup', 'said'), [(41, True), (40, False)])
def test_a_run_that_ends_in_its_warmup_is_told(capsys, warmup, said):
  checks.warn_of_warmup(OptimizerConfig(warmup_steps=warmup), 40)
  assert ('warmup_steps: 41 steps of warm-up in a run of 40' in capsys.readouterr().err) == said
