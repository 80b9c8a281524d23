"""Batches: a function of seed and step alone, complete, the same on any number of hosts."""

import dataclasses
import itertools
import pickle
import threading

import numpy as np
import pytest
import stubs
import tiny

from flaxlm.config.data import DataConfig, TokenizerConfig
from flaxlm.config.schema import Config, EvaluationConfig
from flaxlm.data import pipeline, tokenizer
from flaxlm.data.packing import Stream
from flaxlm.errors import UserError


class Reading(stubs.Objective):
  """An objective that shows what it was given: tokens, and one random number a piece."""

  def __init__(self, span=16, gap=0):
    self.span, self.gap = span, gap
    self.streams = {
      'inputs': Stream(span, ('inputs',), prefix=''),
      'drawn': Stream(span, ('drawn',)),
    }

  def features(self, piece, rng):
    tokens = piece.read(piece.start, piece.stop)
    if not len(tokens):
      return None
    return {'inputs': tokens, 'drawn': rng.integers(1, 1 << 30, 1).astype(np.int32)}


class Labelled(stubs.Objective):
  """A first-fit objective over examples {'tokens': n}."""

  streams = {'inputs': Stream(10, ('inputs',), prefix='')}

  def lengths(self, item):
    return {'inputs': item}

  def features(self, item, rng):
    return {'inputs': np.full(item, item, np.int32)}


@pytest.fixture
def config(tmp_path):
  rng = np.random.default_rng(0)
  words = ''.join(map(chr, range(97, 123)))
  texts = [''.join(rng.choice(list(words), n)) for n in rng.integers(1, 60, 50)]
  (tmp_path / 'x.txt').write_text('\n\n'.join(texts))
  data = DataConfig(train=str(tmp_path / 'x.txt'), cache_dir=str(tmp_path / 'cache'))
  return Config(
    data=data,
    total_steps=1,
    global_batch_size=4,
    evaluation=EvaluationConfig(batch_size=6),
    tokenizer=TokenizerConfig(name='bytes'),
  )


@pytest.fixture
def made():
  return tokenizer.train(TokenizerConfig(name='bytes'), [])


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_batch_is_a_function_of_seed_and_step(config, made):
  train = pipeline.train_pipeline(config, made, Reading())
  straight = [train.batch(step) for step in range(20)]
  again = pipeline.train_pipeline(config, made, Reading())
  assert all(same(again.batch(step), straight[step]) for step in (13, 0, 19))
  assert not same(straight[0], straight[1])
  other = pipeline.train_pipeline(dataclasses.replace(config, seed=1), made, Reading())
  assert not same(other.batch(0), straight[0])


def test_an_epoch_reads_every_token_once_and_draws_anew(config, made):
  train = pipeline.train_pipeline(config, made, Reading())
  rows = len(train.rows)
  steps = rows // np.gcd(rows, 4)  # Whole epochs of whole batches.
  batches = [train.batch(step) for step in range(steps)]
  tokens = np.concatenate([b['inputs'][b['segment_ids'] > 0] for b in batches])
  expected = np.concatenate(
    [train.rows.store.read(d, 0, 1 << 20) for d in range(train.rows.store.num_documents)]
  )
  epochs = steps * 4 // rows
  assert epochs >= 1 and steps * 4 % rows == 0
  np.testing.assert_array_equal(np.sort(tokens), np.sort(np.tile(expected, epochs)))
  drawn = np.concatenate([b['drawn'][b['drawn'] > 0] for b in batches])
  assert len(set(drawn.tolist())) == len(drawn)
  assert train.steps_per_epoch == rows / 4


def test_hosts_make_their_parts_of_the_same_batch(config, made):
  whole = pipeline.train_pipeline(config, made, Reading())
  evals = pipeline.eval_pipelines(config, made, Reading())
  for count in (2, 4):
    parts = [pipeline.train_pipeline(config, made, Reading(), ((i,), count)) for i in range(count)]
    for step in (0, 7):
      batches = [part.batch(step) for part in parts]
      joined = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
      assert same(joined, whole.batch(step))
  halves = [
    pipeline.eval_pipelines(config, made, Reading(), ((i,), 2))['validation'].batch(0)
    for i in (0, 1)
  ]
  joined = {key: np.concatenate([b[key] for b in halves]) for key in halves[0]}
  assert same(joined, evals['validation'].batch(0))
  with pytest.raises(UserError, match='config.global_batch_size'):
    pipeline.train_pipeline(config, made, Reading(), ((0,), 3))


@pytest.mark.parametrize('prefetch', [0, 1, 3])
def test_prefetching_changes_nothing_and_ends_its_thread(config, made, prefetch):
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, prefetch=prefetch))
  train = pipeline.train_pipeline(config, made, Reading())
  before = threading.active_count()
  batches = train.iterate(5)
  for step, batch in enumerate(itertools.islice(batches, 6), start=5):
    assert same(batch, train.batch(step))
  batches.close()
  assert threading.active_count() == before


def test_errors_of_the_thread_reach_the_caller(config, made):
  class Broken(Reading):
    def features(self, piece, rng):
      raise ZeroDivisionError('in features')

  train = pipeline.train_pipeline(config, made, Broken())
  with pytest.raises(ZeroDivisionError, match='in features'):
    next(train.iterate(0))


def test_evaluation_reads_everything_in_order_and_always_draws_the_same(config, made):
  evals = pipeline.eval_pipelines(config, made, Reading())
  held_out = evals['validation']
  batches = list(held_out.batches())
  assert len(batches) == len(held_out) == -(-len(held_out.rows) // 6)
  tokens = np.concatenate([b['inputs'][b['segment_ids'] > 0] for b in batches])
  expected = [held_out.store.read(d, 0, 1 << 20) for d in range(held_out.store.num_documents)]
  np.testing.assert_array_equal(tokens, np.concatenate(expected))
  assert all(b['inputs'].shape == (6, 16) for b in batches)
  assert held_out.num_bytes == len(tokens)  # One byte a letter.
  # A batch of few rows, the last, holds little of the text.
  read = np.cumsum([np.count_nonzero(b['segment_ids']) for b in batches]) / len(tokens)
  assert [held_out.share(n + 1) for n in range(len(batches))] == read.tolist()
  assert read[0] != 1 / len(batches)
  # Where the first token of a document is not predicted, nor are its bytes.
  bare = pipeline.eval_pipelines(config, made, Reading(gap=-1))['validation']
  assert bare.share(len(bare)) == 1 - bare.store.num_documents / len(tokens)
  assert all(same(a, b) for a, b in zip(batches, held_out.batches(), strict=True))
  assert len(list(held_out.batches(max_batches=1))) == 1
  other = dataclasses.replace(config, seed=5)
  assert same(pipeline.eval_pipelines(other, made, Reading())['validation'].batch(0), batches[0])
  other = dataclasses.replace(config, evaluation=EvaluationConfig(batch_size=6, seed=1))
  drawn = pipeline.eval_pipelines(other, made, Reading())['validation'].batch(0)['drawn']
  assert not np.array_equal(drawn, batches[0]['drawn'])


def test_windows_depend_on_the_step_only(config, made):
  data = dataclasses.replace(config.data, sampling='windows', documents='file')
  config = dataclasses.replace(config, data=data)
  train = pipeline.train_pipeline(config, made, Reading(span=8))
  evals = pipeline.eval_pipelines(config, made, Reading(span=8))
  batches = [train.batch(step) for step in range(30)]
  assert all(same(train.batch(step), batches[step]) for step in (29, 3))
  text = train.rows.store.read(0, 0, 1 << 20)
  offsets = set()
  for batch in batches:
    assert (batch['segment_ids'] == 1).all()
    for row in batch['inputs']:
      found = [i for i in range(len(text) - 7) if np.array_equal(text[i : i + 8], row)]
      assert found
      offsets.update(found)
  assert len({offset % 8 for offset in offsets}) == 8
  assert sum(int((b['segment_ids'] > 0).sum()) for b in evals['validation'].batches()) == (
    evals['validation'].store.num_tokens
  )
  assert train.describe(3).count('document 0') == 4


def test_labelled_items_are_packed_whole(config):
  sizes = list(np.random.default_rng(0).integers(1, 8, 37))
  packed = lambda items, seed: pipeline.PackedItems(Labelled(), items, seed)
  train = pipeline.Pipeline(config, Labelled(), packed(sizes, 0))
  held_out = pipeline.EvalPipeline(config, Labelled(), packed(sizes[:9], None))
  batches = list(held_out.batches())
  count = lambda batch: sum(len(set(row[row > 0].tolist())) for row in batch['segment_ids'])
  assert sum(map(count, batches)) == 9 == len(held_out.rows.items)
  assert held_out.store is held_out.num_bytes is None
  rows = len(train.rows)
  batches = [train.batch(step) for step in range(rows)]  # Four epochs.
  found = np.concatenate([b['inputs'][b['segment_ids'] > 0] for b in batches])
  np.testing.assert_array_equal(
    np.sort(found), np.sort(np.repeat(sizes, np.array(sizes)).repeat(4))
  )
  assert 'items' in train.describe(0)


def test_describe_names_documents(config, made):
  train = pipeline.train_pipeline(config, made, Reading())
  text = train.describe(2)
  assert text.startswith('epoch 0: row ') and text.count('documents') == 4


def test_too_little_text_is_an_error(config, made, tmp_path):
  (tmp_path / 'x.txt').write_text('a\n\nb')
  with pytest.raises(UserError, match='too short'):
    pipeline.train_pipeline(config, made, Reading(gap=-1))


def test_item_random_numbers_are_independent_of_the_order():
  rng = pipeline.ItemRng(7, pipeline.TRAIN)
  draw = lambda *place: rng.at(*place).random(3).tolist()
  first = draw(0, 5, 1)
  places = [(e, r, k) for e in range(3) for r in range(20) for k in range(3)]
  found = {place: tuple(draw(*place)) for place in places}
  assert draw(0, 5, 1) == first == list(found[0, 5, 1])
  values = np.array(list(found.values()))
  assert len(set(values.ravel().tolist())) == values.size
  assert abs(values.mean() - 0.5) < 0.05
  assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.25
  other = pipeline.ItemRng(7, pipeline.EVAL)
  assert other.at(0, 5, 1).random(3).tolist() != first


@pytest.mark.parametrize(
  'place',
  [
    'bert.py:mini',
    pytest.param('mixture.py', marks=pytest.mark.full),
    pytest.param('classify.py:encoder', marks=pytest.mark.full),
    pytest.param('tag.py:encoder', marks=pytest.mark.full),
  ],
)
def test_pipelines_can_be_sent_to_another_process(place, tmp_path):
  """What arrives makes the same batches: of running text, mixtures and labelled rows."""
  folder = tiny.write_corpus(tmp_path)
  changes = (('data.train', f'a={folder}/text.txt,b={folder}/other.txt'),) if 'mix' in place else ()
  data = tiny.experiment(place, folder, changes).train_data
  other = pickle.loads(pickle.dumps(data))
  for step in (0, 7):
    for key, array in data.batch(step).items():
      np.testing.assert_array_equal(other.batch(step)[key], array)
