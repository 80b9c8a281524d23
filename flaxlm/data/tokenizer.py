"""Text to token ids and back: SentencePiece, WordPiece, byte-level BPE, characters, bytes.

Ids are the same for every tokenizer trained here: pad 0, eos 1, unk 2, bos 3, cls 4, sep 5, mask 6,
the sentinels <extra_id_N>, then pieces. A published vocabulary keeps its own. Text never yields a
special id. Text is not normalised (no Unicode folding, no collapsed spaces), so that decoding
returns it and bits per byte mean the bytes of the text itself; what is not in the vocabulary falls
back to its bytes (SentencePiece). WordPiece, and published vocabularies, treat text as they do.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from flaxlm import distributed, terminal
from flaxlm.config.data import TokenizerConfig
from flaxlm.config.schema import Config
from flaxlm.data import cache, tokenizer_codecs, tokenizer_published, tokenizer_training
from flaxlm.data.splits import Documents
from flaxlm.data.tokenizer_codecs import Codec
from flaxlm.data.tokenizer_training import special_pieces
from flaxlm.errors import UserError

# The files of each kind, in the folder that `save` writes.
FILES = {
  'sentencepiece': ('tokenizer.model',),
  'wordpiece': ('vocab.txt',),
  'byte_bpe': ('vocab.json', 'merges.txt'),
  'tokenizer_json': ('published.json',),
  'characters': ('characters.json',),
  'bytes': (),
}


class Tokenizer:
  """Text to int32 ids and back.

  `files` are the tokenizer's own files by name, as bytes; with `spec` (kind and options) they say
  everything about it. Public: vocab_size, pad_id, eos_id, unk_id, bos_id, cls_id, sep_id, mask_id,
  sentinel_ids (tuple), special_ids (frozenset), fingerprint (sha256, hex), pieces_hold_spaces
  (whether the space before a word is part of its first piece).

  In a published vocabulary another special token may stand in for a role that it lacks; a role
  that none can stand in for (a mask) raises UserError where it is used.
  """

  def __init__(self, spec: dict[str, Any], files: dict[str, bytes] | None = None):
    self.spec, self.files = spec, files or {}
    names = special_pieces(spec.get('sentinels', 0))
    self._codec = _codec(spec, self.files, names)
    if 'special' in spec:  # A published vocabulary.
      ids, self._roles = spec['special'], spec['roles']
      self.sentinel_ids = tuple(spec['sentinel_ids'])
      self.vocab_size = spec['size']
    else:
      ids = self._codec.special_ids or dict(zip(names, range(len(names)), strict=True))
      self._roles = {
        role: ids[name] for role, name in zip(tokenizer_published.ROLES, names, strict=False)
      }
      self.sentinel_ids = tuple(ids[name] for name in names[len(self._roles) :])
      self.vocab_size = self._codec.vocab_size
    self._special_names = {id: name for name, id in ids.items()}
    self.special_ids = frozenset(ids.values())
    self.pieces_hold_spaces = self._codec.pieces_hold_spaces
    self.fingerprint = _fingerprint(spec, self.files)

  def __reduce__(self) -> tuple:
    return Tokenizer, (self.spec, self.files)

  def _role(self, role: str) -> int:
    id = tokenizer_published.role_id(self._roles, role)
    if id is None:
      raise UserError(
        f'config.tokenizer.path: the vocabulary has no {role} token; '
        f'--config.tokenizer.add={role} gives it an id after its own'
      )
    return id

  pad_id = property(lambda self: self._role('pad'))
  eos_id = property(lambda self: self._role('eos'))
  unk_id = property(lambda self: self._role('unk'))
  bos_id = property(lambda self: self._role('bos'))
  cls_id = property(lambda self: self._role('cls'))
  sep_id = property(lambda self: self._role('sep'))
  mask_id = property(lambda self: self._role('mask'))

  @property
  def sentinel_marks(self) -> dict[str, int]:
    """How sentinels are written in a text, for `encode_marked`."""
    return {f'<extra_id_{i}>': id for i, id in enumerate(self.sentinel_ids)}

  @functools.cached_property
  def starts_word(self) -> np.ndarray:
    """bool [vocab_size]: whether an id begins a word, as far as it tells by itself.

    A word has the white space before it with it. A special token is a word; so is a character of a
    script that is written without spaces. WordPiece knows words and punctuation marks.
    """
    begins = np.ones(self.vocab_size, bool)
    found = self._codec.starts_word()
    begins[: len(found)] = found[: self.vocab_size]
    begins[list(self.special_ids)] = True
    return begins

  def encode(self, text: str) -> np.ndarray:
    """Token ids of the text, without any special token: int32 [n]."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text."""
    return self._codec.encode_batch(texts)

  def encode_with_offsets(self, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Token ids of the text, int32 [n], and where each stands: text[start:end], in characters.

    Spaces round a piece are not counted in, unless it is all spaces. Pieces that share a character
    (its bytes) all get the whole of it; one that stands for nothing in the text is empty.
    """
    ids, offsets = self._codec.encode_with_offsets(text)
    found = []
    for start, end in offsets:
      piece = text[start:end]
      if piece.strip():
        start, end = end - len(piece.lstrip()), start + len(piece.rstrip())
      found.append((start, end))
    return ids, found

  def encode_marked(self, text: str, marks: Mapping[str, int]) -> np.ndarray:
    """Token ids of a text in which the strings of `marks` stand for ids: int32 [n].

    What follows a mark is encoded as within the text, not as its beginning. Where pieces hold the
    space before a word, a mark stands for that too, as a masked word or span has it.
    """
    pattern = '|'.join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
    space = ' ?' if self.pieces_hold_spaces else ''
    parts = re.split(f'{space}({pattern})', text) if marks else [text]
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
    unk_id = self._roles.get('unk', -1)
    for id in [*(int(i) for i in ids), None]:
      if id is not None and id not in self.special_ids:
        run.append(id)
        continue
      if run and (id is None or keep_special or id == unk_id):
        parts.append(self._codec.decode(run, first=not parts))
        run = []
      if id is not None and keep_special:
        parts.append(self._special_names[id])
      elif id == unk_id:
        parts.append('\ufffd')
    return ''.join(parts)

  def piece(self, id: int) -> str:
    """What one id stands for, readable."""
    if not 0 <= id < self.vocab_size:
      raise IndexError(f'token id {id} of {self.vocab_size}')
    return self._special_names.get(id) or self._codec.piece(int(id))

  def save(self, directory: str) -> None:
    """Writes tokenizer.json and the tokenizer's files."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in self.files.items():
      (directory / name).write_bytes(content)
    text = json.dumps(self.spec | {'vocab_size': self.vocab_size, 'fingerprint': self.fingerprint})
    (directory / 'tokenizer.json').write_text(text + '\n')

  @classmethod
  def load(cls, path: str, add: Sequence[str] = (), sentinels: int = 100) -> 'Tokenizer':
    """Loads what `save` wrote, or a published vocabulary: its folder or one of its files.

    Those are vocab.txt (WordPiece), vocab.json and merges.txt (byte-level BPE), a SentencePiece
    .model, or a tokenizer.json. tokenizer_config.json and special_tokens_map.json are read beside
    them. Ids stay as published; only the roles in `add` (pad, mask, ..., or `sentinels`: that many)
    get new ids after them. Raises UserError for files that are missing, damaged or not known.
    """
    path = epath.Path(path).expanduser()
    saved = _saved_spec(path / 'tokenizer.json')
    if not saved:
      spec, files = tokenizer_published.read(path)
      return cls(tokenizer_published.grow(spec, add, sentinels), files)
    fingerprint = saved.pop('fingerprint')
    saved.pop('vocab_size', None)
    there = [name for name in FILES.get(str(saved.get('name')), ()) if (path / name).exists()]
    files = {name: (path / name).read_bytes() for name in there}
    if _fingerprint(saved, files) != fingerprint:
      raise UserError(f'{path}: its files are not those that tokenizer.json was written with')
    tokenizer = cls(saved, files)
    if not add:
      return tokenizer
    return cls(tokenizer_published.grow(tokenizer.published_spec(), add, sentinels), files)

  def extends(self, older: 'Tokenizer') -> bool:
    """Whether this is another tokenizer and more special tokens, with ids after all of its own."""
    grown = ('size', 'special', 'roles', 'sentinel_ids')
    mine, theirs = self.published_spec(), older.published_spec()
    rest = lambda spec: {key: value for key, value in spec.items() if key not in grown}
    ids = dict(mine['special'])
    kept = {name: ids.pop(name, None) for name in theirs['special']}
    return (
      self.files == older.files
      and rest(mine) == rest(theirs)
      and kept == theirs['special']
      and mine['roles'] | theirs['roles'] == mine['roles']
      and bool(ids)
      and min(ids.values()) >= older.vocab_size
    )

  def published_spec(self) -> dict[str, Any]:
    """The spec in which special tokens and roles stand with their ids."""
    if 'special' in self.spec:
      return self.spec
    ids = {name: id for id, name in self._special_names.items()}
    return self.spec | {
      'size': self.vocab_size,
      'special': ids,
      'roles': self._roles,
      'sentinel_ids': list(self.sentinel_ids),
    }


def _fingerprint(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
  """A hash of all that makes a tokenizer."""
  digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
  for name in sorted(files):
    digest.update(name.encode() + b'\0' + files[name])
  return digest.hexdigest()


def _codec(spec: Mapping[str, Any], files: Mapping[str, bytes], names: Sequence[str]) -> Codec:
  """What cuts text; `names` are the special tokens that a tokenizer trained here begins with."""
  if spec['name'] == 'sentencepiece':
    return tokenizer_codecs.SentencePiece(files['tokenizer.model'], spec, names)
  if spec['name'] == 'characters':
    return tokenizer_codecs.Characters(files['characters.json'], len(names))
  if spec['name'] == 'bytes':
    return tokenizer_codecs.Bytes(len(names))
  from flaxlm.data import tokenizer_library

  return tokenizer_library.LibraryCodec(spec, files, names)


def _saved_spec(file: epath.Path) -> dict[str, Any] | None:
  """The spec that `save` wrote; None if there is none: a published tokenizer.json has no name."""
  spec = tokenizer_published.read_if_there(file)
  return spec if 'fingerprint' in spec else None


def train(
  config: TokenizerConfig, texts: Iterable[str], mixed: Sequence[tuple[float, Iterable[str]]] = ()
) -> Tokenizer:
  """Trains the tokenizer of `config`; the same text gives the same result.

  mixed: (weight, texts) of the sources of a mixture.
  """
  return Tokenizer(*tokenizer_training.train(config, texts, mixed))


def train_on(config: TokenizerConfig, documents: Documents) -> Tokenizer:
  """The tokenizer of `config` for documents, perhaps of a mixture."""
  parts = zip(documents.weights, documents.sources.values(), strict=True)
  return train(config, documents.texts(), [(weight, part.texts()) for weight, part in parts])


def for_corpus(config: Config, documents: Documents | None) -> Tokenizer:
  """The tokenizer of an experiment: `config.tokenizer.path`, or one trained on the training text.

  documents: not read, and may be None, where there is a path. A trained tokenizer is kept in the
  cache under the hash of the text and of the options it was trained with.
  """
  options = config.tokenizer
  if options.path:
    loaded = Tokenizer.load(options.path, options.add, options.sentinels)
    # Recipes set none, or leave the default, for a tokenizer that they would train.
    known = (0, TokenizerConfig().sentinels, len(loaded.sentinel_ids))
    if 'sentinels' not in options.add and options.sentinels not in known:
      raise UserError(
        'config.tokenizer.sentinels: would do nothing: the vocabulary of config.tokenizer.path '
        f'keeps its {known[-1]}, unless --config.tokenizer.add=sentinels gives it new ones'
      )
    return loaded
  key = cache.key(
    {'tokenizer': dataclasses.asdict(options), 'text': documents.identity, 'format': 1}
  )
  directory = cache.directory(config.data) / 'tokenizers' / key
  distributed.prepare(
    (directory / 'tokenizer.json').exists,
    lambda: _train_into(directory, options, documents),
    f'train a tokenizer on {documents.name}',
  )
  return Tokenizer.load(directory)


def _train_into(directory: epath.Path, options: TokenizerConfig, documents: Documents) -> None:
  if options.name != 'bytes':  # nothing to learn
    terminal.phase('data', f'training a {options.name} tokenizer on {documents.name}')
  tokenizer = train_on(options, documents)
  if options.name in tokenizer_training.PIECES and tokenizer.vocab_size < options.vocab_size:
    terminal.warn(
      f'config.tokenizer.vocab_size: the text yields only {tokenizer.vocab_size} pieces, '
      f'not {options.vocab_size}'
    )
  with cache.staged(directory) as temporary:
    tokenizer.save(temporary)
