"""Mixtures: exact shares of every prefix, an order of its own for each source, on any hosts."""

import collections
import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import test_pipeline
import tiny

from flaxlm.config.data import DataConfig, TokenizerConfig
from flaxlm.config.schema import Config, EvaluationConfig
from flaxlm.data import mixture, pipeline, splits, tokenizer, tokenizer_training
from flaxlm.data.tokenizer_training import mixed_sample
from flaxlm.errors import UserError


@hypothesis.given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_every_prefix_has_its_shares_to_less_than_a_row(weights):
  """Counted one by one, over two cycles; numbers of a source go up by one."""
  order = mixture.Interleave(weights)
  shares, counts = np.array(weights) / sum(weights), np.zeros(len(weights), int)
  for place in range(2 * order.cycle):
    source, number = order[place]
    assert number == counts[source]
    counts[source] += 1
    assert (abs(counts - (place + 1) * shares) < 1 - 1e-9).all()
    if place % 7 == 0:
      assert order.counts(place + 1) == counts.tolist()


def test_weights_are_taken_as_they_are_written():
  assert mixture.Interleave((0.7, 0.2, 0.1)).parts == (7, 2, 1)
  assert mixture.Interleave((3.0, 3.0)).parts == (1, 1)
  assert mixture.Interleave((1e-3, 1.0)).cycle == 1001
  far = mixture.Interleave((0.7, 0.3))
  assert far[10**12] == (far[0][0], 7 * 10**11 + far[0][1])
  with pytest.raises(UserError, match='config.data.weights.*round them'):
    mixture.Interleave((0.333333, 0.666667))


# Rows of eight tokens.
Reading = functools.partial(test_pipeline.Reading, span=8)
LETTERS = {'a': 'abc', 'b': 'mno', 'c': 'xyz'}


@pytest.fixture
def made():
  return tokenizer.train(TokenizerConfig(name='bytes'), [])


@pytest.fixture
def config(tmp_path):
  """Three sources of different sizes, told apart by their letters; weights 5:3:2."""
  rng = np.random.default_rng(0)
  for (name, letters), number in zip(LETTERS.items(), (40, 7, 90), strict=True):
    texts = [''.join(rng.choice(list(letters), n)) for n in rng.integers(5, 40, number)]
    (tmp_path / f'{name}.txt').write_text('\n\n'.join(texts))
  places = ','.join(f'{name}={tmp_path}/{name}.txt' for name in LETTERS)
  return Config(
    data=DataConfig(train=places, weights=(0.5, 0.3, 0.2), cache_dir=str(tmp_path / 'cache')),
    total_steps=1,
    global_batch_size=4,
    evaluation=EvaluationConfig(batch_size=6),
    tokenizer=TokenizerConfig(name='bytes'),
  )


def source_of(row, made):
  text = made.decode(row)
  (name,) = [name for name, letters in LETTERS.items() if set(text) <= set(letters)]
  return name


def changed(config, **changes):
  return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def test_batches_have_exact_counts_and_each_source_its_own_epochs(config, made):
  train = pipeline.train_pipeline(config, made, Reading())
  rows = dict(zip(train.rows.names, train.rows.sources, strict=True))
  shares, seen = {'a': 0.5, 'b': 0.3, 'c': 0.2}, collections.Counter()
  texts, drawn = collections.defaultdict(list), []
  for step in range(60):
    batch = train.batch(step)
    for row, segments in zip(batch['inputs'], batch['segment_ids'], strict=True):
      real = row[segments > 0]
      name = source_of(real, made)
      seen[name] += 1
      texts[name].append(real.tobytes())
      assert all(abs(seen[n] - share * seen.total()) < 1 for n, share in shares.items())
    drawn += batch['drawn'][batch['drawn'] > 0].tolist()
  assert seen == {'a': 120, 'b': 72, 'c': 48} and len(set(drawn)) == len(drawn)
  for name, source in rows.items():
    every = [
      np.concatenate([p.read(p.start, p.stop) for p in source[row]]).tobytes()
      for row in range(len(source))
    ]
    for start in range(0, len(texts[name]) - len(every) + 1, len(every)):
      assert sorted(texts[name][start : start + len(every)]) == sorted(every)
  first = [texts['b'][i * len(rows['b']) :][: len(rows['b'])] for i in range(2)]
  assert len(rows['b']) < 36 and first[0] != first[1]


def test_a_mixture_depends_on_the_step_only_and_not_on_hosts(config, made):
  whole = pipeline.train_pipeline(config, made, Reading())
  straight = [whole.batch(step) for step in range(9)]
  again = pipeline.train_pipeline(config, made, Reading())
  for step in (8, 0, 5):
    np.testing.assert_array_equal(again.batch(step)['drawn'], straight[step]['drawn'])
  for count in (2, 4):
    hosts = [pipeline.train_pipeline(config, made, Reading(), ((i,), count)) for i in range(count)]
    for step in (0, 7):
      for key in straight[step]:
        joined = np.concatenate([host.batch(step)[key] for host in hosts])
        np.testing.assert_array_equal(joined, straight[step][key])
  assert again.describe(3).count('row') == 4 and 'a: row' in again.describe(3)


def test_windows_are_of_the_sources_in_their_shares(config, made):
  train = pipeline.train_pipeline(changed(config, sampling='windows'), made, Reading())
  rows = [
    source_of(row[segments > 0], made)
    for step in range(25)
    for row, segments in zip(
      *[train.batch(step)[k] for k in ('inputs', 'segment_ids')], strict=True
    )
  ]
  for n in range(1, 101):
    assert abs(rows[:n].count('b') - 0.3 * n) < 1
  assert train.describe(0).count('document') == 4


def test_streams_stay_with_their_source(config, made):
  config = changed(config, sampling='streams')
  with pytest.raises(UserError, match='global_batch_size=4 must be a multiple of 10'):
    pipeline.train_pipeline(config, made, Reading())
  config = dataclasses.replace(config, global_batch_size=10)
  train = pipeline.train_pipeline(config, made, Reading())
  order = train._order
  for b in range(10):
    walk = [order[step * 10 + b][1] for step in range(40)]
    sources = {train.rows._find(row)[0] for row in walk}
    assert len(sources) == 1
    (source,) = sources
    own = [train.rows._find(row)[1] for row in walk]
    number = len(train.rows.sources[source])
    assert all(after == (before + 1) % number for before, after in zip(own, own[1:], strict=False))
  counts = collections.Counter(train.rows._find(order[b][1])[0] for b in range(10))
  assert counts == {0: 5, 1: 3, 2: 2}


def test_streams_need_a_row_each(config, made):
  def train(config, batch_size):
    config = dataclasses.replace(changed(config, sampling='streams'), global_batch_size=batch_size)
    return pipeline.train_pipeline(config, made, Reading())

  with pytest.raises(UserError, match=r'b has only \d+ rows for 60 of 200; .* at most \d+$'):
    train(config, 200)
  alone = changed(config, train=config.data.train.split(',')[1].removeprefix('b='), weights=())
  number = len(train(alone, 1).rows)
  assert train(alone, number).batch(0)['inputs'].shape == (number, 8)
  with pytest.raises(UserError, match=f'b.txt has only {number} rows .* at most {number}$'):
    train(alone, number + 1)


def test_each_source_has_a_held_out_part_of_its_own(config, made):
  evals = pipeline.eval_pipelines(config, made, Reading())
  assert list(evals) == ['a', 'b', 'c']
  train = splits.training(config.data)
  assert {n: d.num_documents for n, d in train.sources.items()} == {'a': 36, 'b': 6, 'c': 81}
  assert train.num_documents == 123 == len(list(train.texts()))
  for name, held_out in evals.items():
    for batch in held_out.batches():
      assert set(made.decode(batch['inputs'][batch['segment_ids'] > 0])) <= set(LETTERS[name])
    together = {*held_out_texts(config, name), *train.sources[name].texts()}
    assert len(together) == held_out.store.num_documents + train.sources[name].num_documents
  kept = changed(config, validation=config.data.train.split(',')[0].partition('=')[2])
  assert splits.training(kept.data).num_documents == 137
  assert list(splits.validation(kept.data)) == ['validation']


def held_out_texts(config, name):
  return list(splits.validation(config.data)[name].texts())


def test_another_weight_or_source_is_another_tokenizer(config):
  one = splits.training(config.data).identity
  other = splits.training(changed(config, weights=(0.5, 0.2, 0.3)).data).identity
  assert one != other


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'weights': (1.0, 2.0)}, 'config.data.weights: 2 for the 3 sources'),
    ({'train': 'embedded'}, 'config.data.weights: .*NAME=PLACE,NAME=PLACE'),
    ({'train': 'a=x.txt,a=y.txt'}, 'config.data.train: NAME=PLACE'),
    ({'train': 'train=x.txt', 'weights': ()}, "config.data.train: 'train' is not a name"),
    ({'train': 'a=nosuch.txt', 'weights': ()}, 'nosuch.txt does not exist'),
  ],
)
def test_mistakes(config, changes, message):
  with pytest.raises(UserError, match=message):
    splits.training(changed(config, **changes).data)


def test_labelled_rows_cannot_be_mixed(config):
  with pytest.raises(UserError, match='only running text can be mixed'):
    splits.rows(config.data)


def test_a_tokenizer_learns_from_the_sources_in_their_shares():
  rng = np.random.default_rng(0)
  text = lambda letter, n: [letter * int(k) for k in rng.integers(100, 900, n)]
  sources = [(0.6, text('a', 400)), (0.3, text('b', 3000)), (0.1, text('c', 4))]
  sample = mixed_sample(sources, 100_000)
  size = collections.Counter()
  for chunk in sample:
    size[chunk[0]] += len(chunk)
  total = size.total()
  assert 0.9e5 < total < 1.1e5
  assert {letter: round(n / total, 1) for letter, n in size.items()} == {
    'a': 0.6,
    'b': 0.3,
    'c': 0.1,
  }
  assert mixed_sample(sources, 100_000) == sample


def test_pieces_follow_the_weights():
  """Of two vocabularies that do not fit, the one with the weight is learned."""
  words = lambda letters: [
    ''.join(np.random.default_rng(i).choice(list(letters), 6)) for i in range(80)
  ]
  corpora = [' '.join(words('abcdefg')) + ' ', ' '.join(words('pqrstuv')) + ' ']
  found = []
  for weights in ((0.95, 0.05), (0.05, 0.95)):
    config = TokenizerConfig(name='byte_bpe', vocab_size=320, sentinels=0, train_megabytes=0.02)
    mixed = [(w, [text] * 40) for w, text in zip(weights, corpora, strict=True)]
    _, files = tokenizer_training.train(config, [], mixed)
    merges = files['merges.txt'].decode()
    found.append(sum(merges.count(c) for c in 'abcdefg') > sum(merges.count(c) for c in 'pqrstuv'))
  assert found == [True, False]


@pytest.mark.parametrize('place', ['bert.py:mini', 't5.py:mini', 'mixture.py'])
def test_every_objective_over_running_text_is_mixed(place, tmp_path):
  """The batches have the shapes they have without, and rows of both sources."""
  folder = tiny.write_corpus(tmp_path)
  tokenizer.train(TokenizerConfig(name='bytes', sentinels=20), []).save(folder / 'bytes')
  mixed = (
    ('data.train', f'a={folder}/text.txt,b={folder}/other.txt'),
    ('data.weights', '1,3'),
    ('tokenizer.path', f'{folder}/bytes'),
  )
  alone = tiny.experiment(place, folder, mixed[2:]).train_data.batch(0)
  train = tiny.experiment(place, folder, mixed).train_data
  shapes = {key: value.shape for key, value in alone.items()}
  assert shapes == {key: value.shape for key, value in train.batch(0).items()}
  for step in range(3):
    assert train.describe(step).count('a: row') == 1
    assert train.describe(step).count('b: row') == 3
