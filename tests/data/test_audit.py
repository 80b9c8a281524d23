"""The audit against brute force: every pair of every text compared, on random and real ones."""

import itertools

import numpy as np
import pytest

from flaxlm.config.data import DataConfig
from flaxlm.data import audit, minhash, source

WORDS = [f'w{i}' for i in range(400)]


def corpus(rng, number, other=()):
  """Texts of which some repeat, some differ in a few words, and some come from `other`."""
  found = []
  for _ in range(number):
    kind = rng.random()
    base = found if kind < 0.25 else list(other)
    if kind < 0.5 and base:
      words = base[rng.integers(len(base))].split()
      for place in rng.integers(0, len(words), rng.choice([0, 0, 1, 2, 5])):
        words[place] = WORDS[rng.integers(len(WORDS))]
      text = ' '.join(words)
      found.append(text.upper() if rng.random() < 0.3 else text)
    else:
      found.append(' '.join(rng.choice(WORDS, rng.integers(1, 120))))
  return found


def brute(sets, threshold, ngram):
  """(sets, between) as `audit.Found` has them, by comparing everything with everything."""
  shingles = minhash.Shingles(ngram)
  normal = {name: [minhash.normalise(t) for t in texts] for name, texts in sets.items()}
  held = {text: shingles(text) for texts in normal.values() for text in texts}
  near = {text: set() for text in held}
  for a, b in itertools.combinations(held, 2):
    if minhash.jaccard(held[a], held[b]) >= threshold:
      near[a].add(b)
      near[b].add(a)
  inside, between = {}, {}
  for name, texts in normal.items():
    distinct = set(texts)
    inside[name] = {
      'documents': len(texts),
      'exact': len(texts) - len(distinct),
      'near': sum(bool(near[text] & distinct) for text in distinct),
    }
    if name != 'train':
      train = set(normal['train'])
      between[name] = {
        'documents': len(texts),
        'exact': sum(text in train for text in texts),
        'near': sum(bool(near[text] & train) for text in texts if text not in train),
      }
  return inside, between


def located(sets):
  def reader(name, texts):
    return lambda: ((f'{name}:{i}', text) for i, text in enumerate(texts))

  return {name: reader(name, texts) for name, texts in sets.items()}


@pytest.mark.parametrize(('threshold', 'ngram', 'seed'), [(0.8, 5, 0), (0.5, 2, 1), (0.9, 1, 2)])
def test_random_texts_against_brute_force(threshold, ngram, seed):
  rng = np.random.default_rng(seed)
  train = corpus(rng, 250)
  sets = {'train': train, 'dev': corpus(rng, 80, train), 'test': corpus(rng, 60, train)}
  found = audit.audit(located(sets), threshold, ngram, examples=3)
  inside, between = brute(sets, threshold, ngram)
  assert found.sets == inside and found.between == between and found.complete
  assert all(min(row['exact'], row['near']) > 0 for row in between.values())
  check_examples(found, sets, threshold, ngram, most=3)


def check_examples(found, sets, threshold, ngram, most):
  """Each example is what it says, in the sets and at the places that it names."""
  shingles, kinds = minhash.Shingles(ngram), {}
  for example in found.examples:
    texts = []
    for name, place in zip(example['sets'], example['places'], strict=True):
      where, _, number = place.partition(':')
      assert where == name
      texts.append(minhash.normalise(sets[name][int(number)]))
    key = (example['kind'], *example['sets'])
    kinds[key] = kinds.get(key, 0) + 1
    if example['kind'] == 'exact':
      assert texts[0] == texts[1] and example['places'][0] != example['places'][1]
    else:
      similarity = minhash.jaccard(*map(shingles, texts))
      assert texts[0] != texts[1] and similarity >= threshold
      assert example['similarity'] == pytest.approx(similarity, abs=1e-4)
  assert max(kinds.values()) == most
  assert set(kinds) >= {
    ('exact', 'train', 'train'), ('near', 'train', 'dev'), ('exact', 'train', 'test'),
  }  # fmt: skip


def test_parts_and_long_groups_change_nothing(monkeypatch):
  rng = np.random.default_rng(3)
  train = corpus(rng, 120)
  sets = {'train': train, 'dev': corpus(rng, 60, train)}
  whole = audit.audit(located(sets)).as_dict()
  monkeypatch.setattr(audit, 'ROOM', 400)
  assert audit.audit(located(sets)).as_dict() == whole


def test_nothing_to_find():
  empty = {'train': [], 'dev': ['a b c']}
  found = audit.audit(located(empty))
  assert found.sets['train'] == {'documents': 0, 'exact': 0, 'near': 0}
  assert found.between['dev'] == {'documents': 1, 'exact': 0, 'near': 0} and not found.examples
  assert audit.audit(located({'train': ['x y', 'z']})).sets['train']['exact'] == 0


def test_places_of_documents(tmp_path):
  """Files and lines, counted as an editor counts them."""
  (tmp_path / 'x.txt').write_text('\none\nmore\n\n\ntwo\n\nthree')
  (tmp_path / 'x.tsv').write_text('text\tlabel\na\t1\nb\t0\n')
  place = lambda name, **fields: [
    where.removeprefix(f'{tmp_path}/')
    for where, _ in source.documents(str(tmp_path / name), DataConfig(**fields)).located()
  ]
  assert place('x.txt') == ['x.txt:2', 'x.txt:6', 'x.txt:8']
  assert place('x.txt', documents='file') == ['x.txt']
  assert place('x.tsv') == ['x.tsv:2', 'x.tsv:3']


@pytest.mark.full
def test_real_texts_against_brute_force(data_folder):
  """Chinese reviews, of which many stand in several splits; a sample small enough for all pairs."""
  sets = {}
  for name, file in (('train', 'train.tsv.xz'), ('dev', 'dev.tsv')):
    config = DataConfig(text_column='text_a')
    texts = source.documents(f'{data_folder}/chnsenticorp/{file}', config).texts()
    sets[name] = list(itertools.islice(texts, 0, None, 8 if name == 'train' else 2))[:900]
  found = audit.audit(located(sets))
  assert (found.sets, found.between) == brute(sets, 0.8, 5)
  assert found.between['dev']['exact'] > 5
