"""The token store: what is read is what was tokenised; interruptions and changes."""

import numpy as np
import pytest

from flaxlm.config.data import DataConfig, TokenizerConfig
from flaxlm.data import splits, store, tokenizer
from flaxlm.errors import UserError


@pytest.fixture(scope='module')
def letters():
  return tokenizer.train(TokenizerConfig(name='bytes'), [])


@pytest.fixture
def corpus(tmp_path):
  """(config, texts): 40 documents, of which some are longer than a chunk of the small store."""
  rng = np.random.default_rng(0)
  texts = ['ä' + 'xyz '[i % 3] * int(n) for i, n in enumerate(rng.integers(1, 400, 40))]
  (tmp_path / 'x.txt').write_text('\n\n'.join(texts))
  return DataConfig(train=str(tmp_path / 'x.txt'), cache_dir=str(tmp_path / 'cache')), texts


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(store, 'SHARD_CHARACTERS', 1000)
  monkeypatch.setattr(store, 'BATCH_CHARACTERS', 300)
  monkeypatch.setattr(store, 'CHUNK', 64)


def test_reads_what_was_tokenised(corpus, letters, small):
  config, texts = corpus
  found = store.for_documents(config, splits.everything(config), letters)
  expected = [letters.encode(text) for text in texts]
  assert found.num_documents == 40
  assert found.num_bytes == sum(len(text.encode()) for text in texts)
  assert found.num_tokens == sum(map(len, expected))
  assert found.lengths.tolist() == [len(ids) for ids in expected]
  assert len(list(found.directory.glob('shard-*'))) > 3
  remote = store.TokenStore(found.directory, in_memory=0)
  rng = np.random.default_rng(1)
  for opened in (found, remote):
    for document, ids in enumerate(expected):
      start, stop = sorted(rng.integers(-5, len(ids) + 50, 2).tolist())
      part = opened.read(document, start, stop)
      assert part.dtype == np.int32
      np.testing.assert_array_equal(part, ids[max(start, 0) : max(stop, 0)])
      np.testing.assert_array_equal(opened.read(document, 0, len(ids) + 9), ids)
      assert not len(opened.read(document, len(ids), len(ids) + 3))


def test_wide_vocabularies_keep_their_ids(corpus, small):
  class Wide:
    vocab_size, fingerprint = 70_000, 'wide'

    def encode_batch(self, texts):
      return [np.array([69_999, len(text)], np.int32) for text in texts]

  config, texts = corpus
  found = store.for_documents(config, splits.everything(config), Wide())
  np.testing.assert_array_equal(found.read(3, 0, 2), [69_999, len(texts[3])])


class Counting:
  """A tokenizer that counts the texts it is given, and fails after `limit` of them."""

  def __init__(self, wrapped, limit=10**9):
    self.vocab_size, self.fingerprint = wrapped.vocab_size, wrapped.fingerprint
    self.wrapped, self.limit, self.seen = wrapped, limit, 0

  def encode_batch(self, texts):
    self.seen += len(texts)
    if self.seen > self.limit:
      raise KeyboardInterrupt
    return self.wrapped.encode_batch(texts)


def test_finished_shards_survive_an_interruption(corpus, letters, small):
  config, texts = corpus
  documents = splits.everything(config)
  with pytest.raises(KeyboardInterrupt):
    store.for_documents(config, documents, Counting(letters, limit=25))
  rest = Counting(letters)
  found = store.for_documents(config, documents, rest)
  assert 0 < rest.seen < 30
  for document, text in enumerate(texts):
    np.testing.assert_array_equal(found.read(document, 0, 9999), letters.encode(text))
  again = Counting(letters)
  store.for_documents(config, documents, again)
  assert again.seen == 0


def test_a_changed_corpus_or_tokenizer_makes_another_store(corpus, letters, tmp_path):
  config, texts = corpus
  first = store.for_documents(config, splits.everything(config), letters)
  other = tokenizer.train(TokenizerConfig(name='bytes', sentinels=5), [])
  second = store.for_documents(config, splits.everything(config), other)
  (tmp_path / 'x.txt').write_text('\n\n'.join([*texts, 'one more']))
  third = store.for_documents(config, splits.everything(config), letters)
  part = store.for_documents(config, splits.training(config), letters)
  assert len({str(s.directory) for s in (first, second, third, part)}) == 4
  assert third.num_documents == first.num_documents + 1
  assert part.num_documents == 36
  np.testing.assert_array_equal(second.read(0, 0, 5), first.read(0, 0, 5) - 95)


def test_the_digest_is_of_the_tokens_and_not_of_their_files(corpus, letters, tmp_path, monkeypatch):
  config, texts = corpus
  opened = lambda: store.for_documents(config, splits.everything(config), letters)
  before = opened().digest()
  (tmp_path / 'x.txt').write_text('\n\n'.join(texts) + '\n')
  monkeypatch.setattr(store, 'SHARD_CHARACTERS', 1000)
  assert opened().digest() == before
  (tmp_path / 'x.txt').write_text('\n\n'.join([*texts[:-1], 'z' + texts[-1][1:] + 'z']))
  assert opened().digest() != before  # In one letter, of two bytes as before.


def test_text_without_tokens_is_an_error(corpus):
  class Silent:
    vocab_size, fingerprint = 10, 'silent'

    def encode_batch(self, texts):
      return [np.zeros(0, np.int32) for _ in texts]

  config, _ = corpus
  with pytest.raises(UserError, match='not a single token'):
    store.for_documents(config, splits.everything(config), Silent())


def _removed(path):
  path.unlink()


def _flipped(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 4
  path.write_bytes(content)


def _cut(path):
  path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
  ('name', 'harm'),
  [
    ('tokens/c/0', _removed),
    ('tokens/c/0', _flipped),
    ('tokens/c/0', _cut),
    ('lengths.npy', _cut),
    ('../store.json', _cut),
  ],
)
@pytest.mark.parametrize('in_memory', [0, store.IN_MEMORY])
def test_what_is_damaged_is_not_read(corpus, letters, small, name, harm, in_memory):
  config, _ = corpus
  found = store.for_documents(config, splits.everything(config), letters)
  harm(found.directory / 'shard-000000' / name)
  with pytest.raises(UserError, match=f'{found.directory}: damaged .*delete it'):
    opened = store.TokenStore(found.directory, in_memory)
    for document in range(opened.num_documents):
      opened.read(document, 0, 999)


def test_tokens_that_are_all_zero_are_not_missing(corpus, small):
  class Zero:
    vocab_size, fingerprint = 10, 'zero'

    def encode_batch(self, texts):
      return [np.zeros(2, np.int32) for _ in texts]

  config, _ = corpus
  found = store.for_documents(config, splits.everything(config), Zero())
  assert found.read(1, 0, 9).tolist() == [0, 0]
