"""How each kind of tokenizer cuts text; `data/tokenizer.py` adds special tokens and roles."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flaxlm.errors import UserError

SPACE = '\u2581'  # How SentencePiece writes a space.
# Kana and ideographs, of which words are written without spaces between them.
UNSPACED = re.compile('[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]')
Offsets = list[tuple[int, int]]


def begins_word(text: str) -> bool:
  """White space, or a character of Chinese or Japanese."""
  return text[:1].isspace() or bool(UNSPACED.match(text))


class Codec(Protocol):
  """Text to ids and back; no text yields a special id.

  special_ids: name -> id of the special tokens that it knows itself, or None; pieces_hold_spaces:
  whether the space before a word is part of its first piece.
  """

  vocab_size: int
  special_ids: Mapping[str, int] | None
  pieces_hold_spaces: bool

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text: int32 [n]."""

  def encode_rest(self, text: str) -> np.ndarray:
    """Token ids of a text that goes on, int32 [n]: not as those of a beginning."""

  def encode_with_offsets(self, text: str) -> tuple[np.ndarray, Offsets]:
    """Token ids of a text, int32 [n], and the characters from which to which each stands."""

  def decode(self, ids: list[int], first: bool) -> str:
    """The text of ids, none of them special; first: whether the text begins with them."""

  def piece(self, id: int) -> str:
    """What an id stands for, readable."""

  def starts_word(self) -> np.ndarray:
    """bool [ids]: whether each of the first ids begins a word; special ones do not count."""


class SentencePiece:
  """SentencePiece, with special tokens that its model lacks appended after its pieces.

  A published model keeps its ids: its special tokens are those in spec. What ALBERT and XLNet do to
  text before it (Lan et al. 2020, Yang et al. 2019) is named in spec as well: `plain` makes every
  run of white space one space, writes `` and '' as " and, with `accents`, removes accents;
  `lowercase` folds case.
  """

  pieces_hold_spaces = True

  def __init__(self, model: bytes, spec: Mapping[str, Any], names: Sequence[str]):
    import sentencepiece

    if 'special' in spec:
      model = _without_user_symbols(model, set(spec['special']))
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise UserError(f'config.tokenizer.path: not a SentencePiece model ({error})') from None
    self._lowercase = spec['lowercase']
    self._plain, self._accents = spec.get('plain', False), spec.get('accents', False)
    self.num_pieces = self.vocab_size = self._model.vocab_size()
    self._unk_id = self._model.unk_id()
    found = {
      '<pad>': self._model.pad_id(),
      '</s>': self._model.eos_id(),
      '<unk>': self._unk_id,
      '<s>': self._model.bos_id(),
    }
    self.special_ids = {}
    for name in () if 'special' in spec else names:
      id = found.get(name, self._model.piece_to_id(name))
      if id < 0 or (id == found['<unk>'] and name != '<unk>'):
        id, self.vocab_size = self.vocab_size, self.vocab_size + 1
      self.special_ids[name] = id

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    if self._plain or self._lowercase:
      texts = [self._prepared(text) for text in texts]
    return self._model.encode(list(texts), return_type='numpy', num_threads=2)

  def encode_rest(self, text: str) -> np.ndarray:
    """Token ids of a text that goes on, without the space that the library puts at a beginning."""
    ids = self.encode_batch(['\n' + text])[0]
    for newline in map(self._model.piece_to_id, ('\n', '<0x0A>')):
      starts = np.flatnonzero(ids == newline) if newline != self._unk_id else ()
      if len(starts):
        return ids[starts[0] + 1 :]
    # It knows none, or takes it for a space: the rest is a beginning to it, too.
    return self.encode_batch([text])[0]

  def encode_with_offsets(self, text: str) -> tuple[np.ndarray, Offsets]:
    prepared, origin = self._prepared_with_origin(text)
    pieces = self._model.encode(prepared, return_type='proto').pieces
    # Byte positions of the prepared text -> its characters -> those of the text.
    lengths = np.array([len(c.encode()) for c in prepared], np.int64)
    character = np.repeat(np.arange(len(prepared)), lengths)
    offsets = []
    for piece in pieces:
      start, stop = piece.begin, piece.end
      if start == stop and self._model.is_byte(piece.id):
        stop = start + 1  # The last byte of a character has its text; the others get it too.
      if start == stop:
        at = origin[character[start]][0] if start < len(character) else len(text)
        offsets.append((at, at))
      else:
        first, last = origin[character[start]], origin[character[stop - 1]]
        offsets.append((first[0], last[1]))
    return np.array([piece.id for piece in pieces], np.int32), offsets

  def _prepared(self, text: str) -> str:
    if self._plain:
      text = ' '.join(text.split())
      text = text.replace('``', '"').replace("''", '"')
    if self._accents:
      text = ''.join(map(_without_accents, text)) if not text.isascii() else text
    return text.lower() if self._lowercase else text

  def _prepared_with_origin(self, text: str) -> tuple[str, Offsets]:
    """The prepared text, and of each of its characters from where to where it stood in the text."""
    characters = [(c, (i, i + 1)) for i, c in enumerate(text)]
    if self._plain:
      characters = _collapsed(characters)
      for mark in ('`', "'"):
        characters = _merged(characters, mark, '"')
    if self._accents:
      characters = [(d, at) for c, at in characters for d in _without_accents(c)]
    if self._lowercase:
      # Not by character: a sigma at a word's end has a form of its own.
      whole = ''.join(c for c, _ in characters).lower()
      spread = [at for c, at in characters for _ in c.lower()]
      return whole, spread
    return ''.join(c for c, _ in characters), [at for _, at in characters]

  def decode(self, ids: list[int], first: bool) -> str:
    text = self._model.decode(ids)
    # Decoding drops the space before the first piece, which is real unless the text starts there.
    return text if first or not self.piece(ids[0]).startswith(SPACE) else ' ' + text

  def piece(self, id: int) -> str:
    return self._model.id_to_piece(id)

  def starts_word(self) -> np.ndarray:
    pieces = [self._model.id_to_piece(i) for i in range(self.num_pieces)]
    return np.array([begins_word(p.replace(SPACE, ' ')) or p in _BYTE_SPACES for p in pieces])


def _without_user_symbols(model: bytes, special: set[str]) -> bytes:
  """The model with those of its user-defined symbols that are special out of the text's reach."""
  from google.protobuf.message import DecodeError
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto()
  try:
    proto.ParseFromString(model)
  except DecodeError:
    return model  # SentencePiece itself says what is wrong with it.
  types = sentencepiece_model_pb2.ModelProto.SentencePiece
  found = [p for p in proto.pieces if p.type == types.USER_DEFINED and p.piece in special]
  for piece in found:
    piece.type = types.CONTROL
  return proto.SerializeToString() if found else model


def _without_accents(character: str) -> str:
  """Compatibility decomposition without marks."""
  if character.isascii():
    return character
  parts = unicodedata.normalize('NFKD', character)
  return ''.join(c for c in parts if not unicodedata.category(c).startswith('M'))


def _collapsed(characters: list) -> list:
  """Runs of white space become one space, and none at the ends."""
  found = []
  for character, at in characters:
    if not character.isspace():
      found.append((character, at))
    elif found and found[-1][0] != ' ':
      found.append((' ', at))
  return found[:-1] if found and found[-1][0] == ' ' else found


def _merged(characters: list, mark: str, merged: str) -> list:
  """Every two `mark`s in a row become one `merged`."""
  found, i = [], 0
  while i < len(characters):
    character, (start, stop) = characters[i]
    if character == mark and i + 1 < len(characters) and characters[i + 1][0] == mark:
      character, stop, i = merged, characters[i + 1][1][1], i + 1
    found.append((character, (start, stop)))
    i += 1
  return found


_BYTE_SPACES = {f'<0x{ord(c):02X}>' for c in ' \t\n\r\v\f'}


class Characters:
  """One id a character of the training text; others are unk."""

  special_ids = None
  pieces_hold_spaces = False

  def __init__(self, characters: bytes, first: int):
    self._characters, self._first = json.loads(characters), first
    self._codes = np.array([ord(c) for c in self._characters], np.uint32)  # Sorted.
    self.vocab_size = first + len(self._characters)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self._encode(text) for text in texts]

  def encode_rest(self, text: str) -> np.ndarray:
    return self._encode(text)

  def encode_with_offsets(self, text: str) -> tuple[np.ndarray, Offsets]:
    return self._encode(text), [(i, i + 1) for i in range(len(text))]

  def _encode(self, text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode('utf-32-le'), np.uint32)
    found = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
    return np.where(self._codes[found] == codes, found + self._first, 2).astype(np.int32)

  def decode(self, ids: list[int], first: bool) -> str:
    return ''.join(self.piece(id) for id in ids)

  def piece(self, id: int) -> str:
    return self._characters[id - self._first]

  def starts_word(self) -> np.ndarray:
    return np.array([True] * self._first + [begins_word(c) for c in self._characters])


class Bytes:
  """One id a byte of the UTF-8 text."""

  special_ids = None
  pieces_hold_spaces = False

  def __init__(self, first: int):
    self._first = first
    self.vocab_size = first + 256

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self._first for text in texts]

  def encode_rest(self, text: str) -> np.ndarray:
    return self.encode_batch([text])[0]

  def encode_with_offsets(self, text: str) -> tuple[np.ndarray, Offsets]:
    offsets = [(i, i + 1) for i, c in enumerate(text) for _ in c.encode()]
    return self.encode_batch([text])[0], offsets

  def decode(self, ids: list[int], first: bool) -> str:
    return bytes(id - self._first for id in ids).decode(errors='replace')

  def piece(self, id: int) -> str:
    return f'<0x{id - self._first:02X}>'

  def starts_word(self) -> np.ndarray:
    return np.array([True] * self._first + [bytes([b]).isspace() for b in range(256)])
