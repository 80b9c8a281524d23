"""Masks filled jointly: best first with one beam, the best of all with many, one program."""

import numpy as np
import pytest
from decoding_setup import draw, masked_model, masked_objective, padded

from flaxlm.decoding import infill
from flaxlm.decoding.infill import Filler

VOCAB, MASK = 12, 6


def filler_of(beams, candidates=3):
  return Filler(
    *masked_model(VOCAB), masked_objective(), MASK, beams=beams, candidates=candidates, rows=2
  )


def text_of(size, masks, seed=0):
  text = draw([size], seed)[0] % MASK
  text[list(masks)] = MASK
  return text


def by_hand(text):
  """log p [M, V] of the masks that are left, by a pass over the row alone; [MASK] is no filling."""
  model, params = masked_model(VOCAB)
  masks = np.flatnonzero(text == MASK)
  batch = padded('encoder', [text]) | {'target_positions': masks[None]}
  output = model.apply({'params': params}, batch)[0]['mlm']
  scores = np.asarray(output.hidden @ output.table.T + output.bias, np.float64)[0, :, :VOCAB]
  log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  log_p[:, MASK] = -np.inf
  return masks, log_p


def test_one_beam_is_best_first():
  texts = [text_of(9, (2, 3, 7)), text_of(20, (5,), 1)]
  found = filler_of(1).fill(texts)
  for text, filled in zip(texts, found, strict=True):
    masks, log_p = by_hand(text)
    np.testing.assert_array_equal(filled.positions, masks)
    np.testing.assert_array_equal(filled.ids, np.argsort(-log_p, kind='stable')[:, :3])
    np.testing.assert_allclose(filled.log_p, -np.sort(-log_p)[:, :3], atol=1e-4)
    row, total = text.copy(), 0.0
    while (row == MASK).any():
      masks, log_p = by_hand(row)
      surest = log_p.max(-1).argmax()
      row[masks[surest]] = log_p[surest].argmax()
      total += log_p[surest].max()
    (filling,) = filled.fillings
    np.testing.assert_array_equal(filling.inputs, row)
    np.testing.assert_allclose(filling.log_p, total, atol=1e-4)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_all_pairs_enumerated(seed):
  """With a beam for every token, two masks get the pair that is best in the order of filling."""
  text = text_of(10, (3, 6), seed)
  found = filler_of(VOCAB, VOCAB).fill([text])[0]
  masks, log_p = by_hand(text)
  first = log_p.max(-1).argmax()
  pairs = {}
  for token in range(VOCAB):
    if token == MASK:
      continue
    row = text.copy()
    row[masks[first]] = token
    second = by_hand(row)[1][0]
    for other in range(VOCAB):
      row[masks[1 - first]] = other
      pairs[tuple(row)] = log_p[first, token] + second[other]
  best = sorted(pairs, key=lambda row: -pairs[row])[:VOCAB]
  assert [tuple(f.inputs) for f in found.fillings] == best
  np.testing.assert_allclose([f.log_p for f in found.fillings], [pairs[b] for b in best], atol=1e-4)


def test_a_mask_is_no_filling():
  (found,) = filler_of(VOCAB, VOCAB).fill([text_of(9, (4,))])
  assert len(found.fillings) == VOCAB - 1 and np.isfinite(found.log_p).all()
  assert MASK not in {filling.inputs[4] for filling in found.fillings}


def test_one_program_fills_many_texts():
  filler = filler_of(2)
  before = infill._top._cache_size()
  for size, masks in ((5, (1,)), (20, (3, 9)), (31, (1, 2, 3, 4))):
    filler.fill([text_of(size, masks)])
  assert infill._top._cache_size() <= before + 1
