"""Permutation language modelling: what is predicted, how much of it, in which order."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from objective_setup import batch_of, byte_tokenizer, make, random_documents, rows_of, whole

from flaxlm.data.packing import Piece
from flaxlm.errors import UserError

LEVEL = 1e-4  # Seeds are fixed: a test of a statistic fails at this level or never.
TOKENIZER = byte_tokenizer(0)


def xlnet(**changes):
  options = {'model__token_types': 3, 'model__position': 'transformer_xl'} | changes
  return make('permutation_lm', 'xlnet', TOKENIZER, **options)


@hypothesis.given(
  st.integers(1, 120),
  st.sampled_from([1.0, 1.5, 6.0, 40.0]),
  st.sampled_from([1, 5, 30]),
  st.integers(0, 2**32),
)
def test_nothing_is_lost_and_targets_are_in_an_order(n, one_in, longest, seed):
  objective = xlnet(objective__predict_one_in=one_in, objective__longest_span=longest)
  store = random_documents(TOKENIZER, [n], seed)
  f = objective.features(whole(store), np.random.default_rng(seed))
  t = TOKENIZER
  assert f['inputs'].tolist() == [*store.documents[0], t.sep_id, t.cls_id]
  assert f['token_type_ids'].tolist() == [0] * (n + 1) + [2]
  places = f['target_positions']
  assert n // one_in <= len(places) <= np.ceil(n / one_in)
  assert len(set(places.tolist())) == len(places) and (np.diff(places) > 0).all()
  np.testing.assert_array_equal(f['targets'], store.documents[0][places])
  assert sorted(f['order'][places].tolist()) == list(range(1, len(places) + 1))
  assert f['order'].sum() == f['order'][places].sum()
  assert (f['target_weights'] == 1).all() and 'continues' not in f


@pytest.mark.parametrize('lengths', [[1], [3] * 40, [500], [62, 1, 1, 200, 7] * 5])
def test_every_row_has_room(lengths):
  objective = xlnet()
  store = random_documents(TOKENIZER, lengths)
  batch = batch_of(objective, store)
  assert (batch['order'] > 0).sum() == batch['target_weights'].sum()
  pieces = [f['inputs'][:-2] for row in rows_of(objective, store) for f in row]
  np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(store.documents))
  # Targets lie where their tokens are, behind whatever was packed before them.
  rows, real = np.arange(len(batch['inputs']))[:, None], batch['target_weights'] > 0
  places = batch['target_positions']
  np.testing.assert_array_equal(batch['inputs'][rows, places][real], batch['targets'][real])
  assert (batch['order'][rows, places][real] > 0).all()


def test_statistics_of_targets():
  """One in six, everywhere alike; spans of one to five alike; every order alike."""
  objective, rng, n, draws = xlnet(), np.random.default_rng(0), 300, 2000
  drawn = [objective.draw_targets(n, rng) for _ in range(draws)]
  assert np.mean([len(d) for d in drawn]) == pytest.approx(n / 6, rel=1e-2)
  counts = np.bincount(np.concatenate(drawn), minlength=n)
  # At an end fewer spans reach a place.
  assert scipy.stats.chisquare(counts[10:-10]).pvalue > LEVEL
  # Runs are spans that touch: of s spans between m tokens, each is followed by another s / (s + m)
  # of the time.
  runs = lambda d: np.diff(np.flatnonzero(np.diff(d, prepend=-9, append=n + 9) > 1))
  single = xlnet(objective__longest_span=1)
  alone = np.concatenate([runs(single.draw_targets(n, rng)) for _ in range(500)])
  spans = np.concatenate([runs(d) for d in drawn[:500]])
  assert alone.mean() == pytest.approx(1.2, rel=0.05)
  assert spans.mean() == pytest.approx(3 / (1 - 16.7 / 266.7), rel=0.05)
  ranks = np.array([
    objective.features(whole(random_documents(TOKENIZER, [18])), rng)['order'][:18]
    for _ in range(3000)
  ])  # fmt: skip
  first = ranks.argmax(1) if ranks.max() == 3 else None
  assert first is not None
  assert scipy.stats.chisquare(np.bincount(first, minlength=18)[4:-4]).pvalue > LEVEL


def test_what_goes_on_is_marked_for_a_memory():
  objective = xlnet(model__memory_length=8, data__sampling='streams')
  store, rng = random_documents(TOKENIZER, [50]), np.random.default_rng(0)
  assert objective.recurrent and not xlnet().recurrent
  assert not objective.features(Piece(store, 0, 0, 20), rng)['continues'].any()
  assert objective.features(Piece(store, 0, 20, 50), rng)['continues'].all()


def test_a_memory_needs_rows_that_go_on():
  with pytest.raises(UserError, match="config.data.sampling: a memory needs 'streams'.*'epochs'"):
    xlnet(model__memory_length=8)


def test_a_trunk_of_one_stream_is_refused():
  with pytest.raises(UserError, match="two streams, such as xlnet.*'encoder'"):
    make('permutation_lm', 'encoder', TOKENIZER)
