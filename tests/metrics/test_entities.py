"""Against a second scorer, which walks pairs of tags as conlleval's description does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxlm.metrics import entities

TAGS = ['O'] + [f'{mark}-{kind}' for mark in 'BIES' for kind in ('X', 'Y')]


def chunk_ends(before, tag):
  (a, x), (b, y) = before, tag
  if a in ('E', 'S'):
    return True
  if a in ('B', 'I') and b in ('B', 'S', 'O'):
    return True
  return a != 'O' and x != y


def chunk_starts(before, tag):
  (a, x), (b, y) = before, tag
  if b in ('B', 'S'):
    return True
  if a in ('E', 'S', 'O') and b in ('E', 'I'):
    return True
  return b != 'O' and x != y


def conlleval(targets, predicted):
  """(right, found, true) numbers of chunks, counted in one pass, as the script counts them."""
  split = lambda tag: (tag[0], tag[2:])
  right = found = true = 0
  correct_so_far = False
  for target, prediction in zip(targets, predicted, strict=True):
    before = [('O', ''), ('O', '')]
    for pair in [*zip(target, prediction, strict=True), ('O', 'O')]:
      now = [split(tag) for tag in pair]
      ends = [chunk_ends(b, t) for b, t in zip(before, now, strict=True)]
      starts = [chunk_starts(b, t) for b, t in zip(before, now, strict=True)]
      if correct_so_far:
        if ends[0] and ends[1] and before[0][1] == before[1][1]:
          right, correct_so_far = right + 1, False
        elif ends[0] != ends[1] or now[0][1] != now[1][1]:
          correct_so_far = False
      if starts[0] and starts[1] and now[0][1] == now[1][1]:
        correct_so_far = True
      true, found = true + starts[0], found + starts[1]
      before = now
  return right, found, true


@st.composite
def sentences(draw):
  lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
  tags = lambda n: draw(st.lists(st.sampled_from(TAGS), min_size=n, max_size=n))
  return [(tags(n), tags(n)) for n in lengths]


@settings(max_examples=300)
@given(sentences())
def test_any_tags_are_counted_as_conlleval_counts_them(pairs):
  targets, predicted = [t for t, _ in pairs], [p for _, p in pairs]
  right, found, true = conlleval(targets, predicted)
  scores, types = entities.scores(targets, predicted)
  assert scores['entity_precision_micro'] == pytest.approx(right / found if found else 0)
  assert scores['entity_recall_micro'] == pytest.approx(right / true if true else 0)
  f1 = 2 * right / (found + true) if right else 0
  assert scores['entity_f1_micro'] == pytest.approx(f1)
  assert sum(kind['targets'] for kind in types.values()) == true


def test_one_sentence_in_three_schemes():
  wanted = [('X', 0, 2), ('X', 2, 3), ('Y', 4, 5)]
  for tags in (
    'I-X I-X B-X O I-Y',  # IOB1: B only where two of a kind touch.
    'B-X I-X B-X O B-Y',
    'B-X E-X S-X O S-Y',
    'B-X L-X U-X O U-Y',
  ):
    assert entities.entities(tags.split()) == wanted


def test_what_is_no_scheme():
  assert entities.is_scheme(['O', 'B-X', 'I-creative-work'])
  assert not entities.is_scheme(['NOUN', 'O']) and not entities.is_scheme(['B-'])
