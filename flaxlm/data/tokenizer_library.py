"""WordPiece, byte-level BPE and whatever a tokenizer.json says, through the `tokenizers` library.

Special tokens are taken out of the library's hands: it knows them by names that no text holds, so
that text never yields one, and every id stays what it was.
"""

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from flaxlm.data.tokenizer_codecs import SPACE, Offsets, begins_word
from flaxlm.errors import UserError

# Where text may be cut without changing its pieces. BERT cuts at spaces before anything else; GPT-2
# takes one space to the word behind it, and keeps the others together.
WORDS = {'wordpiece': re.compile(' '), 'byte_bpe': re.compile(r'(?<=\S)(?= \S)')}
MAX_KNOWN = 1 << 19  # Words whose ids are kept, about 200 MB.
UNSPACED_LEADS = bytes(range(0xE3, 0xEA))  # Of U+3000 to U+9FFF.
BEGIN = '\0begin\0'
CONTINUES = '##'  # How WordPiece writes a piece that does not begin a word.


class LibraryCodec:
  """A codec on a tokenizer of the library.

  spec['special'] names the special tokens of a published vocabulary; one that was trained here
  begins with `names`. Those in spec['rowless'] have no row in the model: they are not special, and
  text does not yield them either.
  """

  special_ids = None

  def __init__(self, spec: Mapping[str, Any], files: Mapping[str, bytes], names: Sequence[str]):
    hidden = set(spec.get('special', names)) | set(spec.get('rowless', ()))
    hidden -= {spec.get('unk', '<unk>')}
    try:
      if spec['name'] == 'wordpiece':
        self._tokenizer = wordpiece(vocabulary(files['vocab.txt']), spec, hidden)
      elif spec['name'] == 'byte_bpe':
        self._tokenizer = byte_bpe(files['vocab.json'], files['merges.txt'], spec, hidden)
      else:
        self._tokenizer = whole(json.loads(files['published.json']), hidden)
    except Exception as error:  # The library raises bare Exception for what it cannot read.
      if isinstance(error, UserError):
        raise
      raise UserError(
        f'config.tokenizer.path: {spec["name"]} files cannot be read: {error}'
      ) from None
    state = json.loads(self._tokenizer.to_str())
    kinds = _kinds(state)
    self._byte_level = 'ByteLevel' in kinds
    self._prefix = state['model'].get('continuing_subword_prefix') or ''
    self._wordpiece = state['model']['type'] == 'WordPiece'
    ids = self._tokenizer.get_vocab(with_added_tokens=True)
    self.pieces_hold_spaces = any(len(name) > 1 and name[0] in SPACE + 'Ġ' for name in ids)
    self.vocab_size = max(ids.values(), default=-1) + 1
    self._names = {id: name for name, id in ids.items()}
    self._rest, self._prefix_space = self._tokenizer, spec.get('prefix_space', False)
    if self._prefix_space:
      self._rest = byte_bpe(
        files['vocab.json'], files['merges.txt'], {**spec, 'prefix_space': False}, hidden
      )
    self._metaspace = 'Metaspace' in kinds
    self._words = WORDS.get(spec['name'])
    self._known: dict[str, list[int]] = {}

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    if self._words is None:
      found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
      return [np.array(encoding.ids, np.int32) for encoding in found]
    if self._prefix_space:
      texts = [text if not text or text.startswith(' ') else ' ' + text for text in texts]
    return self._encode_by_words(texts)

  def _encode_by_words(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Each word is cut once and then known: several times as fast as the library on real text."""
    split = [self._words.split(text) for text in texts]
    new = list({word for words in split for word in words if word not in self._known})
    if len(self._known) + len(new) > MAX_KNOWN:
      self._known.clear()
      new = list({word for words in split for word in words})
    found = self._rest.encode_batch_fast(new, add_special_tokens=False)
    self._known |= {word: encoding.ids for word, encoding in zip(new, found, strict=True)}
    chain = itertools.chain.from_iterable
    ids = (list(chain(map(self._known.__getitem__, words))) for words in split)
    return [np.array(found, np.int32) for found in ids]

  @functools.cached_property
  def _behind(self) -> tokenizers.Tokenizer:
    """The same with a token BEGIN, behind which a text is not at its beginning."""
    made = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
    made.encode_special_tokens = self._tokenizer.encode_special_tokens
    made.add_tokens([tokenizers.AddedToken(BEGIN, normalized=False)])
    return made

  def encode_rest(self, text: str) -> np.ndarray:
    if self._metaspace:
      ids = self._behind.encode(BEGIN + text, add_special_tokens=False).ids
      return np.array(ids[1:], np.int32)
    return np.array(self._rest.encode(text, add_special_tokens=False).ids, np.int32)

  def encode_with_offsets(self, text: str) -> tuple[np.ndarray, Offsets]:
    encoding = self._tokenizer.encode(text, add_special_tokens=False)
    # The space that is put before a text stands for nothing in it.
    offsets = [
      (start, start) if piece == SPACE and text[start:end].strip() else (start, end)
      for piece, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True)
    ]
    return np.array(encoding.ids, np.int32), offsets

  def decode(self, ids: list[int], first: bool) -> str:
    text = self._tokenizer.decode(ids, skip_special_tokens=False)
    if first or self._byte_level or text.startswith(' '):
      return text
    name = self._names.get(ids[0], '')
    begins = not name.startswith(CONTINUES) if self._wordpiece else name.startswith(SPACE)
    return ' ' + text if begins else text

  def _bytes(self, id: int) -> bytes | None:
    """What a piece of byte-level BPE holds; None for other pieces."""
    name = self._names.get(id, f'<{id}>')
    if not self._byte_level or any(c not in byte_names() for c in name):
      return None
    return bytes(byte_names()[c] for c in name)

  def piece(self, id: int) -> str:
    content = self._bytes(id)
    if content is None:
      return self._names.get(id, f'<{id}>')
    try:
      text = content.decode()
    except UnicodeDecodeError:  # Part of a character.
      return ''.join(f'<0x{byte:02X}>' for byte in content)
    return SPACE + text[1:] if text.startswith(' ') else text

  def starts_word(self) -> np.ndarray:
    if self._wordpiece:
      names = (self._names.get(id, '') for id in range(self.vocab_size))
      return np.array([not name.startswith(self._prefix) for name in names])
    return np.array([self._begins_word(id) for id in range(self.vocab_size)])

  def _begins_word(self, id: int) -> bool:
    content = self._bytes(id)
    if content is not None and content[:1].isspace():  # Perhaps before a part of a character.
      return True
    # UTF-8 begins characters of Chinese and Japanese with these; the rest may be another piece.
    part = content is not None and content[:1] in UNSPACED_LEADS
    return part or begins_word(self.piece(id).replace(SPACE, ' '))


def vocabulary(content: bytes) -> dict[str, int]:
  """Pieces of a vocab.txt, one a line, by id."""
  lines = content.decode().split('\n')
  if lines and not lines[-1]:
    lines.pop()
  return {line.rstrip('\r'): id for id, line in enumerate(lines)}


def wordpiece(
  ids: Mapping[str, int], spec: Mapping[str, Any], hidden: set[str] = frozenset()
) -> tokenizers.Tokenizer:
  """BERT's tokenizer (Devlin et al. 2019): clean, split at spaces, punctuation and Han, cut."""
  unk = spec.get('unk', '<unk>')
  if unk not in ids:
    raise UserError('config.tokenizer.path: vocab.txt has no [UNK], which WordPiece needs')
  ids = {hide(name) if name in hidden else name: id for name, id in ids.items()}
  made = tokenizers.Tokenizer(
    models.WordPiece(
      ids, unk_token=unk, max_input_chars_per_word=100, continuing_subword_prefix=CONTINUES
    )
  )
  made.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=spec.get('chinese', True),
    strip_accents=spec.get('accents'),
    lowercase=spec['lowercase'],
  )
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece(prefix=CONTINUES, cleanup=True)
  return made


def byte_bpe(
  vocab: bytes, merges: bytes, spec: Mapping[str, Any], hidden: set[str] = frozenset()
) -> tokenizers.Tokenizer:
  """GPT-2's tokenizer (Radford et al. 2019): words with their space, merged from bytes."""
  ids = {hide(name) if name in hidden else name: id for name, id in json.loads(vocab).items()}
  lines = merges.decode().split('\n')
  pairs = [tuple(line.rstrip('\r').split(' ')) for line in lines if line.strip()]
  if lines and lines[0].startswith('#version'):
    pairs.pop(0)
  if any(len(pair) != 2 for pair in pairs):
    bad = next(pair for pair in pairs if len(pair) != 2)
    raise UserError(f'config.tokenizer.path: merges.txt: {" ".join(bad)!r} is not two pieces')
  made = tokenizers.Tokenizer(models.BPE(ids, pairs))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spec.get('prefix_space', False))
  made.decoder = decoders.ByteLevel()
  if spec['lowercase']:
    made.normalizer = normalizers.Lowercase()
  return made


def whole(state: dict[str, Any], hidden: set[str] = frozenset()) -> tokenizers.Tokenizer:
  """What a tokenizer.json describes, without its truncation, padding and template."""
  state = state | {'truncation': None, 'padding': None, 'post_processor': None}
  model = dict(state['model'])
  if isinstance(model['vocab'], dict):
    names = {name: hide(name) if name in hidden else name for name in model['vocab']}
    model['vocab'] = {names[name]: id for name, id in model['vocab'].items()}
  else:
    model['vocab'] = [
      [hide(name) if name in hidden else name, score] for name, score in model['vocab']
    ]
  unk = model.get('unk_token')
  if model.get('type') in ('WordPiece', 'WordLevel') and unk not in model['vocab']:
    # Otherwise the first word that it does not know would tell.
    raise UserError(
      f'config.tokenizer.path: tokenizer.json has no {unk}, which {model["type"]} needs'
    )
  added = [
    token | {'content': hide(token['content'])} if token['content'] in hidden else token
    for token in state.get('added_tokens', [])
  ]
  made = tokenizers.Tokenizer.from_str(json.dumps(state | {'model': model, 'added_tokens': added}))
  made.encode_special_tokens = True  # As text, not as themselves.
  return made


def hide(name: str) -> str:
  """A name for a special token that no text holds."""
  return f'\0{name}\0'


def _kinds(node: Any) -> set[str]:
  """The types of all normalizers, pre-tokenizers and decoders of a tokenizer.json."""
  if isinstance(node, list):
    return set().union(*map(_kinds, node)) if node else set()
  if not isinstance(node, dict):
    return set()
  parts = (value for key, value in node.items() if key not in ('model', 'added_tokens'))
  return set().union({node['type']} if 'type' in node else set(), *map(_kinds, parts))


@functools.cache
def byte_names() -> dict[str, int]:
  """Byte-level BPE writes every byte as one visible character: those, with their bytes."""
  visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in visible]
  found = {chr(byte): byte for byte in visible}
  return found | {chr(256 + i): byte for i, byte in enumerate(others)}
