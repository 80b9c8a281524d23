"""The token store: a corpus, tokenised once, in shards that are read at random.

Lies in the cache directory under the hash of text and tokenizer, so that a change of either makes
another store. A shard is of about 8 million characters: `tokens` (zarr3, one object), `lengths.npy`
(tokens of each document); it appears as a whole, so an interrupted run goes on after the last one.
What is read was written: chunks have checksums, and files that are damaged or gone are an error.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from flaxlm import distributed, files, terminal
from flaxlm.config.data import DataConfig
from flaxlm.data import cache
from flaxlm.data.splits import Documents
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError

FORMAT = 1
# Characters of text after which a shard ends; with another number, stores that are half built would
# go on in the wrong place, unless FORMAT changes too.
SHARD_CHARACTERS = 8 << 20
CHUNK = 1 << 14  # Tokens that are read at once from a store that is not in memory.
BATCH_CHARACTERS = 1 << 19  # Characters of the texts that are tokenised at once.
IN_MEMORY = 100_000_000  # Tokens up to which a store is read into memory.


class TokenStore:
  """Documents as token ids. Open one with `for_documents` or `TokenStore(directory)`.

  num_documents, num_tokens; num_bytes: of the UTF-8 text; lengths: int64 [num_documents]. Raises
  UserError where its files are damaged or gone.
  """

  def __init__(self, directory: epath.Path, in_memory: int = IN_MEMORY):
    self.directory, self._in_memory = epath.Path(directory), in_memory
    self._chunk = functools.lru_cache(maxsize=2048)(self._read_chunk)
    with cache.intact(self.directory):
      self._open(in_memory)

  def _open(self, in_memory: int) -> None:
    meta = json.loads((self.directory / 'store.json').read_text())
    self.num_documents, self.num_tokens = meta['documents'], meta['tokens']
    self.num_bytes = meta['bytes']
    shards = [self.directory / shard_name(i) for i in range(meta['shards'])]
    self.lengths = np.concatenate([_read_lengths(shard) for shard in shards])
    self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])
    tokens = [_open_tokens(shard) for shard in shards]
    self._shard_starts = np.cumsum([0] + [array.shape[0] for array in tokens])
    if not self._starts[-1] == self._shard_starts[-1] == self.num_tokens:
      raise ValueError('lengths.npy does not fit the tokens')
    self._tokens, self._shards = None, tokens
    if self.num_tokens <= in_memory:
      reads = [array.read() for array in tokens]
      self._tokens = np.concatenate([np.asarray(read.result()) for read in reads])

  def __reduce__(self) -> tuple:
    return TokenStore, (self.directory, self._in_memory)  # Another process opens it for itself.

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of a document, clipped to it: int32 [n]."""
    first = int(self._starts[document])
    end = int(self._starts[document + 1])
    start, stop = first + max(start, 0), min(first + stop, end)
    if self._tokens is not None:
      return self._tokens[start:stop].astype(np.int32)
    parts = [np.zeros(0, np.int32)]
    while start < stop:
      shard = int(np.searchsorted(self._shard_starts, start, side='right')) - 1
      chunk, offset = divmod(start - int(self._shard_starts[shard]), CHUNK)
      part = self._chunk(shard, chunk)[offset : offset + stop - start]
      parts.append(part.astype(np.int32))
      start += len(part)
    return np.concatenate(parts)

  def digest(self) -> str:
    """A hash of the lengths of all documents and, where they are in memory, of the tokens."""
    found = hashlib.sha256(self.lengths.tobytes())
    if self._tokens is not None:
      found.update(self._tokens)
    return found.hexdigest()

  def _read_chunk(self, shard: int, chunk: int) -> np.ndarray:
    tokens = self._shards[shard]
    stop = min((chunk + 1) * CHUNK, tokens.shape[0])
    with cache.intact(self.directory):
      return np.asarray(tokens[chunk * CHUNK : stop].read().result())


def for_documents(config: DataConfig, documents: Documents, tokenizer: Tokenizer) -> TokenStore:
  """The store of `documents`, made if it is not in the cache.

  Raises UserError for a corpus without a single token.
  """
  key = cache.key(
    {'format': FORMAT, 'text': documents.identity, 'tokenizer': tokenizer.fingerprint}
  )
  directory = cache.directory(config) / 'stores' / key
  distributed.prepare(
    (directory / 'store.json').exists,
    lambda: _build(directory, documents, tokenizer),
    f'tokenise {documents.name}',
  )
  return TokenStore(directory)


def shard_name(number: int) -> str:
  return f'shard-{number:06d}'


def _build(directory: epath.Path, documents: Documents, tokenizer: Tokenizer) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
  total = {'documents': 0, 'tokens': 0, 'bytes': 0, 'shards': 0}
  with terminal.bar(f'tokenise {documents.name}', documents.num_documents, 'documents') as bar:
    for number, texts in enumerate(_shards(documents.texts())):
      shard = directory / shard_name(number)
      if not (shard / 'shard.json').exists():
        _write_shard(shard, texts, tokenizer, dtype, bar)
      else:
        bar.advance(len(texts))
      meta = json.loads((shard / 'shard.json').read_text())
      total = {name: total[name] + meta.get(name, 1) for name in total}
  if not total['tokens']:
    raise UserError(f'config.data: {documents.name} has not a single token')
  files.write_text(directory / 'store.json', json.dumps(total))


def _shards(texts: Iterator[str]) -> Iterator[list[str]]:
  shard: list[str] = []
  size = 0
  for text in texts:
    shard.append(text)
    size += len(text)
    if size >= SHARD_CHARACTERS:
      yield shard
      shard, size = [], 0
  if shard:
    yield shard


def _write_shard(
  shard: epath.Path, texts: list[str], tokenizer: Tokenizer, dtype: Any, bar: Any
) -> None:
  ids: list[np.ndarray] = []
  batch: list[str] = []
  size = 0
  for number, text in enumerate(texts, start=1):
    batch.append(text)
    size += len(text)
    if size >= BATCH_CHARACTERS or number == len(texts):
      ids += [i.astype(dtype) for i in tokenizer.encode_batch(batch)]
      bar.advance(len(batch))
      batch, size = [], 0
  tokens = np.concatenate(ids)
  meta = {
    'documents': len(texts),
    'tokens': len(tokens),
    'bytes': sum(len(text.encode()) for text in texts),
  }
  with files.storing(shard), cache.staged(shard) as temporary:
    _write_tokens(temporary, tokens)
    lengths = io.BytesIO()
    np.save(lengths, np.array([len(i) for i in ids], np.int64))
    (temporary / 'lengths.npy').write_bytes(lengths.getvalue())
    (temporary / 'shard.json').write_text(json.dumps(meta))


def _read_lengths(shard: epath.Path) -> np.ndarray:
  return np.load(io.BytesIO((shard / 'lengths.npy').read_bytes()))


def _kvstore(shard: epath.Path) -> Any:
  path = f'{shard}/tokens/'
  return path if files.is_object_store(path) else {'driver': 'file', 'path': path}


def _write_tokens(shard: epath.Path, tokens: np.ndarray) -> None:
  import tensorstore

  # One object a shard (sharding codec), within which CHUNK tokens can be read alone.
  size = max(-(-len(tokens) // CHUNK), 1) * CHUNK
  codecs = [{'name': 'bytes'}, {'name': 'zstd'}, {'name': 'crc32c'}]
  inner = {'chunk_shape': [CHUNK], 'codecs': codecs}
  spec = {
    'driver': 'zarr3',
    'kvstore': _kvstore(shard),
    'store_data_equal_to_fill_value': True,  # What is not there is missing.
    'metadata': {
      'shape': [len(tokens)],
      'data_type': str(tokens.dtype),
      'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': [size]}},
      'codecs': [{'name': 'sharding_indexed', 'configuration': inner}],
    },
  }
  tensorstore.open(spec, create=True).result().write(tokens).result()


def _open_tokens(shard: epath.Path) -> Any:
  import tensorstore

  spec = {
    'driver': 'zarr3',
    'kvstore': _kvstore(shard),
    'recheck_cached_data': 'open',
    'fill_missing_data_reads': False,  # A file that is gone would be read as zeros.
  }
  return tensorstore.open(spec, read=True).result()
