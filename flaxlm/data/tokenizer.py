"""Text to token ids and back: SentencePiece, characters, bytes.

Ids are the same for every tokenizer trained here: pad 0, eos 1, unk 2, bos 3, cls 4, sep 5, mask 6,
the sentinels <extra_id_N>, then pieces. Text never yields a special id. Text is not normalised
(no Unicode folding, no collapsed spaces), so that decoding returns it and bits per byte mean the
bytes of the text itself; what is not in the vocabulary falls back to its bytes (SentencePiece).
"""

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from flaxlm import terminal
from flaxlm.data import cache
from flaxlm.errors import UserError

SPECIAL = ('<pad>', '</s>', '<unk>', '<s>', '[CLS]', '[SEP]', '[MASK]')
SPACE = '\u2581'  # How SentencePiece writes a space.
# Kana and ideographs, of which words are written without spaces between them.
UNSPACED = re.compile('[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]')
CHUNK = 2000  # Characters of a training sentence; SentencePiece leaves out those over 4192 bytes.


def special_pieces(sentinels: int) -> tuple[str, ...]:
  """The names of the special tokens, in the order of their ids."""
  return SPECIAL + tuple(f'<extra_id_{i}>' for i in range(sentinels))


class Tokenizer:
  """Text to int32 ids and back.

  `files` are the tokenizer's own files by name, as bytes; with `spec` (kind and options) they say
  everything about it. Public: vocab_size, pad_id, eos_id, unk_id, bos_id, cls_id, sep_id, mask_id,
  sentinel_ids (tuple), special_ids (frozenset), fingerprint (sha256, hex).
  """

  def __init__(self, spec: dict[str, Any], files: dict[str, bytes] | None = None):
    self.spec, self.files = spec, files or {}
    names = special_pieces(spec['sentinels'])
    if spec['name'] == 'sentencepiece':
      self._codec = _SentencePiece(self.files['tokenizer.model'], spec, names)
    elif spec['name'] == 'characters':
      self._codec = _Characters(json.loads(self.files['characters.json']), len(names))
    else:
      self._codec = _Bytes(len(names))
    ids = self._codec.special_ids or dict(zip(names, range(len(names)), strict=True))
    self._special_names = {id: name for name, id in ids.items()}
    self.pad_id, self.eos_id, self.unk_id, self.bos_id = (ids[name] for name in SPECIAL[:4])
    self.cls_id, self.sep_id, self.mask_id = (ids[name] for name in SPECIAL[4:])
    self.sentinel_ids = tuple(ids[name] for name in names[len(SPECIAL) :])
    self.special_ids = frozenset(ids.values())
    self.vocab_size = self._codec.vocab_size
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    for name in sorted(self.files):
      digest.update(name.encode() + b'\0' + self.files[name])
    self.fingerprint = digest.hexdigest()

  def encode(self, text: str) -> np.ndarray:
    """Token ids of the text, without any special token: int32 [n]."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text."""
    return self._codec.encode_batch(texts)

  def encode_marked(self, text: str, marks: Mapping[str, int]) -> np.ndarray:
    """Token ids of a text in which the strings of `marks` stand for ids: int32 [n].

    What follows a mark is encoded as within the text, not as its beginning.
    """
    pattern = '|'.join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
    parts = re.split(f'({pattern})', text) if marks else [text]
    ids = [self.encode(parts[0])] if parts[0] else []
    for mark, rest in zip(parts[1::2], parts[2::2], strict=True):
      ids.append(np.array([marks[mark]]))
      if rest:
        ids.append(self._codec.encode_rest(rest))
    return np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)

  def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
    """The text of token ids. Special tokens are dropped, or shown by name; unk is U+FFFD."""
    parts: list[str] = []
    run: list[int] = []
    for id in [*(int(i) for i in ids), None]:
      if id is not None and id not in self.special_ids:
        run.append(id)
        continue
      if run and (id is None or keep_special or id == self.unk_id):
        parts.append(self._codec.decode(run, first=not parts))
        run = []
      if id is not None and keep_special:
        parts.append(self._special_names[id])
      elif id == self.unk_id:
        parts.append('\ufffd')
    return ''.join(parts)

  def piece(self, id: int) -> str:
    """What one id stands for, readable."""
    if not 0 <= id < self.vocab_size:
      raise IndexError(f'token id {id} of {self.vocab_size}')
    return self._special_names.get(id) or self._codec.piece(int(id))

  @functools.cached_property
  def starts_word(self) -> np.ndarray:
    """bool [vocab_size]: whether an id begins a word, as far as it tells by itself.

    A word has the white space before it with it. A special token is a word; so is a character of a
    script that is written without spaces.
    """
    return np.array(
      [id in self.special_ids or self._codec.starts_word(id) for id in range(self.vocab_size)]
    )

  def save(self, directory: str) -> None:
    """Writes tokenizer.json and the tokenizer's files."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in self.files.items():
      (directory / name).write_bytes(content)
    text = json.dumps(self.spec | {'vocab_size': self.vocab_size, 'fingerprint': self.fingerprint})
    (directory / 'tokenizer.json').write_text(text + '\n')

  @classmethod
  def load(cls, path: str, sentinels: int = 100) -> 'Tokenizer':
    """Loads what `save` wrote, or a SentencePiece .model file.

    A .model made elsewhere may lack special tokens; those get ids after its own pieces, as do
    `sentinels` (which a saved tokenizer does not need: it knows its own).
    """
    path = epath.Path(path).expanduser()
    if path.is_file():
      spec = {'name': 'sentencepiece', 'sentinels': sentinels, 'lowercase': False}
      return cls(spec, {'tokenizer.model': path.read_bytes()})
    if not (path / 'tokenizer.json').exists():
      raise UserError(
        f'config.tokenizer.path: {path}: no .model file, nor a directory with tokenizer.json'
      )
    spec = json.loads((path / 'tokenizer.json').read_text())
    fingerprint = spec.pop('fingerprint')
    del spec['vocab_size']
    names = {'sentencepiece': ['tokenizer.model'], 'characters': ['characters.json'], 'bytes': []}
    files = {name: (path / name).read_bytes() for name in names[spec['name']]}
    tokenizer = cls(spec, files)
    if tokenizer.fingerprint != fingerprint:
      raise UserError(f'{path}: its files are not those that tokenizer.json was written with')
    return tokenizer


class _SentencePiece:
  """SentencePiece, with special tokens that its model lacks appended after its pieces."""

  def __init__(self, model: bytes, spec: dict[str, Any], names: Sequence[str]):
    import sentencepiece

    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise UserError(f'config.tokenizer.path: not a SentencePiece model ({error})') from None
    self._lowercase = spec['lowercase']
    self.num_pieces = self.vocab_size = self._model.vocab_size()
    found = {
      '<pad>': self._model.pad_id(),
      '</s>': self._model.eos_id(),
      '<unk>': self._model.unk_id(),
      '<s>': self._model.bos_id(),
    }
    self.special_ids = {}
    for name in names:
      id = found.get(name, self._model.piece_to_id(name))
      if id < 0 or (id == found['<unk>'] and name != '<unk>'):
        id, self.vocab_size = self.vocab_size, self.vocab_size + 1
      self.special_ids[name] = id

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    if self._lowercase:
      texts = [text.lower() for text in texts]
    return self._model.encode(list(texts), return_type='numpy', num_threads=2)

  def encode_rest(self, text: str) -> np.ndarray:
    """Token ids of a text that goes on, without the space that the library puts at a beginning."""
    newline = self._model.piece_to_id('\n')
    ids = self.encode_batch(['\n' + text])[0]
    starts = np.flatnonzero(ids == newline)
    return ids[starts[0] + 1 :] if len(starts) else self.encode_batch([text])[0]

  def decode(self, ids: list[int], first: bool) -> str:
    text = self._model.decode(ids)
    # Decoding drops the space before the first piece, which is real unless the text starts there.
    return text if first or not self.piece(ids[0]).startswith(SPACE) else ' ' + text

  def piece(self, id: int) -> str:
    return self._model.id_to_piece(id)

  def starts_word(self, id: int) -> bool:
    return _begins_word(self.piece(id).replace(SPACE, ' '))


class _Characters:
  """One id a character of the training text; others are unk."""

  special_ids = None

  def __init__(self, characters: Sequence[str], first: int):
    self._characters, self._first = characters, first
    self._codes = np.array([ord(c) for c in characters], np.uint32)  # Sorted.
    self.vocab_size = first + len(characters)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self._encode(text) for text in texts]

  def encode_rest(self, text: str) -> np.ndarray:
    return self._encode(text)

  def _encode(self, text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode('utf-32-le'), np.uint32)
    found = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
    return np.where(self._codes[found] == codes, found + self._first, 2).astype(np.int32)

  def decode(self, ids: list[int], first: bool) -> str:
    return ''.join(self.piece(id) for id in ids)

  def piece(self, id: int) -> str:
    return self._characters[id - self._first]

  def starts_word(self, id: int) -> bool:
    return _begins_word(self.piece(id))


class _Bytes:
  """One id a byte of the UTF-8 text."""

  special_ids = None

  def __init__(self, first: int):
    self._first = first
    self.vocab_size = first + 256

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self._first for text in texts]

  def encode_rest(self, text: str) -> np.ndarray:
    return self.encode_batch([text])[0]

  def decode(self, ids: list[int], first: bool) -> str:
    return bytes(id - self._first for id in ids).decode(errors='replace')

  def piece(self, id: int) -> str:
    return f'<0x{id - self._first:02X}>'

  def starts_word(self, id: int) -> bool:
    return bytes([id - self._first]).isspace()


def _begins_word(text: str) -> bool:
  """White space, or a character of Chinese or Japanese."""
  return text[:1].isspace() or bool(UNSPACED.match(text))


def train(config: Any, texts: Iterable[str]) -> Tokenizer:
  """Trains the tokenizer of `config` (TokenizerConfig); the same text gives the same result."""
  spec = {'name': config.name, 'sentinels': config.sentinels}
  if config.name == 'bytes':
    return Tokenizer(spec)
  if config.name == 'characters':
    characters: set[str] = set()
    for text in texts:
      characters.update(text)
    if not characters:
      raise UserError('config.data.train: no text to take characters from')
    return Tokenizer(spec, {'characters.json': json.dumps(sorted(characters)).encode()})
  spec['lowercase'] = config.lowercase
  return Tokenizer(spec, {'tokenizer.model': _train_sentencepiece(config, texts)})


def _train_sentencepiece(config: Any, texts: Iterable[str]) -> bytes:
  import sentencepiece

  sample = spread_sample(texts, int(config.train_megabytes * 1e6))
  if config.lowercase:
    sample = [text.lower() for text in sample]
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sample),
      model_writer=model,
      vocab_size=config.vocab_size,
      model_type=config.model_type,
      **dict(pad_id=0, eos_id=1, unk_id=2, bos_id=3),
      control_symbols=list(special_pieces(config.sentinels)[4:]),
      user_defined_symbols=['\n'],  # Always one piece: words after it are cut as within a line.
      byte_fallback=True,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,  # Indentation is one piece, not one a space.
      hard_vocab_limit=False,
      num_threads=2,  # Part of the result: sums are added up by thread.
      minloglevel=2,
    )
  except RuntimeError as error:
    least = re.search(r'smaller than required_chars\. \d+ vs (\d+)', str(error))
    if least:
      raise UserError(
        f'config.tokenizer.vocab_size: {config.vocab_size} is too small for the characters, bytes '
        f'and {config.sentinels} sentinels; the least is {least[1]}'
      ) from None
    raise UserError(f'config.tokenizer: SentencePiece cannot be trained: {error}') from None
  return model.getvalue()


def spread_sample(texts: Iterable[str], num_bytes: int) -> list[str]:
  """Chunks of the texts, evenly spread over them, of about `num_bytes` (half of it to all of it).

  One pass, in memory for the sample: where it grows too big, every second chunk goes and from
  there on half as many are taken.
  """
  sample: list[str] = []
  stride, size = 1, 0
  for number, chunk in enumerate(_chunks(texts)):
    if number % stride:
      continue
    sample.append(chunk)
    size += len(chunk.encode())
    if size > num_bytes and len(sample) > 1:
      sample = sample[::2]
      stride *= 2
      size = sum(len(chunk.encode()) for chunk in sample)
  return sample


def _chunks(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    text = text.replace('\0', ' ')  # SentencePiece's trainer takes it for the end.
    start = 0
    while start < len(text):
      stop = start + CHUNK
      if stop < len(text):
        space = max(text.rfind(' ', start + 1, stop), text.rfind('\n', start + 1, stop))
        stop = space if space > 0 else stop
      # Bytes bound what SentencePiece accepts: 2,000 characters of Chinese are over it.
      chunk = text[start:stop].encode()[:4000].decode(errors='ignore')
      start += len(chunk)
      if text[start : start + 1] == ' ':
        start += 1  # SentencePiece puts a space before a sentence itself.
      yield chunk


def for_corpus(config: Any, documents: Any) -> Tokenizer:
  """The tokenizer of an experiment: `config.tokenizer.path`, or one trained on the training text.

  documents: a `holdout.Documents` (`identity`, `texts()`). A trained tokenizer is kept in the
  cache under the hash of the text and of the options it was trained with.
  """
  options = config.tokenizer
  if options.path:
    return Tokenizer.load(options.path, options.sentinels)
  key = cache.key(
    {'tokenizer': dataclasses.asdict(options), 'text': documents.identity, 'format': 1}
  )
  directory = cache.directory(config.data) / 'tokenizers' / key
  if (directory / 'tokenizer.json').exists():
    return Tokenizer.load(directory)
  if options.name != 'bytes':  # nothing to learn
    terminal.phase('data', f'training a {options.name} tokenizer on {documents.name}')
  tokenizer = train(options, documents.texts())
  if options.name == 'sentencepiece' and tokenizer.vocab_size < options.vocab_size:
    terminal.warn(
      f'config.tokenizer.vocab_size: the text yields only {tokenizer.vocab_size} pieces, '
      f'not {options.vocab_size}'
    )
  with cache.staged(directory) as temporary:
    tokenizer.save(temporary)
  return tokenizer
