"""Precision, recall and F1 of whole entities, as conlleval counts them (Tjong Kim Sang 2000).

Tags are O, or a mark and a type, as in B-PER. The marks of IOB1, IOB2 and IOBES (also BILOU and
BMES) are read by the same rules, so that a prediction need not keep to a scheme: an entity begins
at B or S, and at any other tag behind O, behind E or S, or behind another type.
"""

from collections import Counter
from collections.abc import Sequence

# (type, first word, word behind the last)
Entity = tuple[str, int, int]
MARKS = {'B': 'B', 'I': 'I', 'M': 'I', 'E': 'E', 'L': 'E', 'S': 'S', 'U': 'S', 'W': 'S'}


def is_scheme(tags: Sequence[str]) -> bool:
  """Whether all tags are O or have a mark and a type: tags of entities, not parts of speech."""
  return all(tag == 'O' or (tag[:1] in MARKS and tag[1:2] == '-' and tag[2:]) for tag in tags)


def entities(tags: Sequence[str]) -> list[Entity]:
  """The entities of a sentence, from left to right."""
  found: list[Entity] = []
  before, kind, start = 'O', '', 0
  for place, tag in enumerate([*tags, 'O']):
    mark, this = (MARKS[tag[0]], tag[2:]) if tag != 'O' else ('O', '')
    begins = mark in ('B', 'S') or before in ('O', 'E', 'S') or this != kind
    if before != 'O' and (mark == 'O' or begins):
      found.append((kind, start, place))
    if mark != 'O' and begins:
      start = place
    before, kind = mark, this
  return found


def scores(
  targets: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
  """(metrics over all entities, metrics of each type) of tagged sentences.

  `_micro` counts all entities together (conlleval's overall figures), `_macro` is the mean over the
  types that targets or predictions have. A quotient without a denominator counts as 0.

  Args:
    targets, predicted: tags of each sentence.

  Returns:
    entity_precision_micro, entity_recall_micro, entity_f1_micro, entity_f1_macro in [0, 1]; and
    type -> precision, recall, f1, targets (how many entities there are).
  """
  hits, guessed, real = Counter(), Counter(), Counter()
  for target, prediction in zip(targets, predicted, strict=True):
    true, found = set(entities(target)), set(entities(prediction))
    hits.update(kind for kind, _, _ in true & found)
    guessed.update(kind for kind, _, _ in found)
    real.update(kind for kind, _, _ in true)
  types = {}
  for kind in sorted({*guessed, *real}):
    precision, recall, f1 = _quotients(hits[kind], guessed[kind], real[kind])
    types[kind] = {'precision': precision, 'recall': recall, 'f1': f1, 'targets': real[kind]}
  precision, recall, f1 = _quotients(hits.total(), guessed.total(), real.total())
  return {
    'entity_precision_micro': precision,
    'entity_recall_micro': recall,
    'entity_f1_micro': f1,
    'entity_f1_macro': sum(t['f1'] for t in types.values()) / max(len(types), 1),
  }, types


def _quotients(hits: int, guessed: int, real: int) -> tuple[float, float, float]:
  """Precision, recall and their harmonic mean."""
  precision = hits / guessed if guessed else 0.0
  recall = hits / real if real else 0.0
  return precision, recall, 2 * hits / (guessed + real) if hits else 0.0
