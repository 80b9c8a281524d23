"""BLEU, chrF and ROUGE against their definitions, written out by hand."""

import collections
import math
import re

import pytest

from flaxlm.metrics import generation

OUTPUTS = [
  'the cat sat on the mat today',
  'a dog runs in the park with a red ball',
  'two men are working on a roof of a house',
]
REFERENCES = [
  ['the cat is on the mat today'],
  ['a dog is running in the park with a red ball', 'the dog runs with a ball'],
  ['two men work on the roof of a house'],
]


def ngrams(words, n):
  return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu_by_hand(outputs, references):
  """Geometric mean of clipped precisions up to 4, times the brevity penalty, over the corpus."""
  hits, totals, length, closest = [0] * 4, [0] * 4, 0, 0
  for output, texts in zip(outputs, references, strict=True):
    words, others = output.split(), [text.split() for text in texts]
    length += len(words)
    closest += min((abs(len(o) - len(words)), len(o)) for o in others)[1]
    for n in range(1, 5):
      found = ngrams(words, n)
      most = collections.Counter()
      for other in others:
        most |= ngrams(other, n)
      hits[n - 1] += (found & most).total()
      totals[n - 1] += found.total()
  precision = math.exp(sum(math.log(h / t) for h, t in zip(hits, totals, strict=True)) / 4)
  return 100 * precision * min(1.0, math.exp(1 - closest / length))


def chrf_by_hand(outputs, references):
  """F with beta 2 of character n-grams up to 6 without spaces, over the corpus, one reference."""
  sums = [[0, 0, 0] for _ in range(6)]
  for output, (text,) in zip(outputs, references, strict=True):
    a, b = (re.sub(r'\s', '', t) for t in (output, text))
    for n in range(1, 7):
      x, y = ngrams(a, n), ngrams(b, n)
      counts = (x & y).total(), x.total(), y.total()
      sums[n - 1] = [s + c for s, c in zip(sums[n - 1], counts, strict=True)]
  precision = sum(hit / found for hit, found, _ in sums) / 6
  recall = sum(hit / true for hit, _, true in sums) / 6
  return 100 * 5 * precision * recall / (4 * precision + recall)


def longest_common(a, b):
  table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
  for i, x in enumerate(a):
    for j, y in enumerate(b):
      table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
  return table[-1][-1]


def f_measure(hits, found, true):
  return 2 * hits / (found + true) if hits else 0.0


def test_bleu_and_chrf_of_a_corpus():
  values, signatures = generation.translation(OUTPUTS, REFERENCES)
  assert values['bleu'] == pytest.approx(bleu_by_hand(OUTPUTS, REFERENCES))
  single = [texts[:1] for texts in REFERENCES]
  values, _ = generation.translation(OUTPUTS, single)
  assert values['bleu'] == pytest.approx(bleu_by_hand(OUTPUTS, single))
  assert values['chrf'] == pytest.approx(chrf_by_hand(OUTPUTS, single))
  assert 'tok:13a' in signatures['bleu_signature'] and 'version:' in signatures['chrf_signature']


def test_the_tokenizer_is_in_the_signature_and_counts():
  outputs, references = (
    ['\u732b\u5728\u57ab\u5b50\u4e0a\u3002'],
    [['\u732b\u5728\u57ab\u5b50\u4e0a']],
  )
  words, _ = generation.translation(outputs, references, '13a')
  characters, signatures = generation.translation(outputs, references, 'zh')
  assert 'tok:zh' in signatures['bleu_signature'] and characters['bleu'] > words['bleu']


def test_rouge_of_the_best_reference():
  # No word here has another stem.
  outputs = ['the cat sat on the mat', 'a red ball']
  references = [['the cat on a mat sat', 'a dog'], ['the blue sky']]
  found = generation.rouge(outputs, references)
  pairs = [(o.split(), [t.split() for t in ts]) for o, ts in zip(outputs, references, strict=True)]
  for n, name in ((1, 'rouge1'), (2, 'rouge2')):
    best = [
      max(f_measure((ngrams(o, n) & ngrams(t, n)).total(), len(o) - n + 1, max(len(t) - n + 1, 0))
          for t in ts)
      for o, ts in pairs
    ]  # fmt: skip
    assert found[name] == pytest.approx(sum(best) / 2)
  best = [max(f_measure(longest_common(o, t), len(o), len(t)) for t in ts) for o, ts in pairs]
  assert found['rougeL'] == pytest.approx(sum(best) / 2)


def test_words_are_stemmed():
  assert generation.rouge(['he runs'], [['he running']])['rouge1'] == 1.0


def test_sentences():
  text = 'One here. Two? Yes! Of 3.5 that is all'
  assert generation.sentences(text) == ['One here.', 'Two?', 'Yes!', 'Of 3.5 that is all']
  text = '\u7b2c\u4e00\u3002\u7b2c\u4e8c\uff1f \u7b2c\u4e09'
  assert generation.sentences(text) == ['\u7b2c\u4e00\u3002', '\u7b2c\u4e8c\uff1f', '\u7b2c\u4e09']
