"""A tokenizer as a tokenizer.json: what the `tokenizers` library, and so transformers, reads.

Its ids are those of the tokenizer here, special tokens included. In one thing the two differ: the
name of a special token within a text is that token there, and text here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from flaxlm.data import tokenizer_library
from flaxlm.data.tokenizer_codecs import SPACE
from flaxlm.data.tokenizer_training import special_pieces

# One text or two with what stands round them: ids of special tokens and the names 'A' and 'B',
# each with its token type.
Template = Sequence[tuple[int | str, int]]
# What both must cut alike before a file is written.
CHECKED = (
  'The quick brown fox, and  a DOG. It was 1,234.5 miles!', ' led by a space', 'and ended ',
  "Ünïcode: Größe, naïve café, İstanbul, ΟΔΟΣ. ``So'' it's", 'a\ttab,\na line\n\n  and more\r\n',
  '汉字 ひらがな 한국어 🙂👍🏽 e\u0301',
  '▁a <0x41> a_b {x} [y] <z>', ' ', '\n', 'x',
)  # fmt: skip


def state_of(tokenizer: Any, single: Template = (), pair: Template = ()) -> dict[str, Any] | None:
  """The content of tokenizer.json; None for a tokenizer that it cannot express.

  tokenizer: a `data.tokenizer.Tokenizer`. Without a template, one that was published keeps its own
  and another adds nothing.
  """
  spec, files = tokenizer.published_spec(), tokenizer.files
  made = _MAKERS[spec['name']](spec, files)
  if made is None or not _add_special(made, spec, tokenizer.pieces_hold_spaces):
    return None
  state = json.loads(made.to_str()) | {'truncation': None, 'padding': None}
  if single:
    names = {id: name for name, id in spec['special'].items()}
    state['post_processor'] = _template(names, single, pair)
  made = tokenizers.Tokenizer.from_str(json.dumps(state))
  found = made.encode_batch_fast(list(CHECKED), add_special_tokens=False)
  own = tokenizer.encode_batch(CHECKED)
  alike = all(a.ids == b.tolist() for a, b in zip(found, own, strict=True))
  return state if alike else None


def _add_special(made: tokenizers.Tokenizer, spec: Mapping[str, Any], spaced: bool) -> bool:
  """Makes special tokens of the spec's; whether each has its id."""
  known = {token.content for token in made.get_added_tokens_decoder().values()}
  special = sorted(spec['special'].items(), key=lambda item: item[1])
  while special and special[-1][0] == f'<unused_{special[-1][1]}>':
    special.pop()  # Rows of the model's table behind its last token.
  # As `Tokenizer.encode_marked`: what stands for text stands for the space before it, too.
  gaps = {spec['roles'].get('mask'), *spec['sentinel_ids']} if spaced else set()
  new = [
    tokenizers.AddedToken(name, special=True, normalized=False, lstrip=id in gaps)
    for name, id in special
  ]
  made.add_special_tokens([token for token in new if token.content not in known])
  return all(made.token_to_id(name) == id for name, id in special)


def _template(names: Mapping[int, str], single: Template, pair: Template) -> dict[str, Any]:
  """The post-processor that puts special tokens round texts."""
  part = lambda what, type: (
    {'Sequence': {'id': what, 'type_id': type}}
    if isinstance(what, str)
    else {'SpecialToken': {'id': names[what], 'type_id': type}}
  )
  used = {what for what, _ in (*single, *pair) if not isinstance(what, str)}
  return {
    'type': 'TemplateProcessing',
    'single': [part(*item) for item in single],
    'pair': [part(*item) for item in pair],
    'special_tokens': {
      names[id]: {'id': names[id], 'ids': [id], 'tokens': [names[id]]} for id in sorted(used)
    },
  }


def _wordpiece(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> tokenizers.Tokenizer:
  return tokenizer_library.wordpiece(tokenizer_library.vocabulary(files['vocab.txt']), spec)


def _byte_bpe(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> tokenizers.Tokenizer:
  return tokenizer_library.byte_bpe(files['vocab.json'], files['merges.txt'], spec)


def _published(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> tokenizers.Tokenizer:
  return tokenizers.Tokenizer.from_str(files['published.json'].decode())


def _own_special(spec: Mapping[str, Any]) -> dict[str, int]:
  """Special tokens before the characters or bytes of a vocabulary that was made here."""
  return {name: id for id, name in enumerate(special_pieces(spec['sentinels']))}


def _characters(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> tokenizers.Tokenizer:
  ids = _own_special(spec)
  ids |= {c: id for id, c in enumerate(json.loads(files['characters.json']), len(ids))}
  made = tokenizers.Tokenizer(models.WordLevel(ids, unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
  made.decoder = decoders.Fuse()
  return made


def _bytes(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> tokenizers.Tokenizer:
  ids = _own_special(spec)
  first = len(ids)
  ids |= {name: first + byte for name, byte in tokenizer_library.byte_names().items()}
  made = tokenizers.Tokenizer(models.BPE(ids, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = decoders.ByteLevel()
  return made


def _sentencepiece(
  spec: Mapping[str, Any], files: Mapping[str, bytes]
) -> tokenizers.Tokenizer | None:
  """Unigram and BPE (Kudo and Richardson 2018), with the normaliser that the model holds."""
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(files['tokenizer.model'])
  types = sentencepiece_model_pb2.ModelProto.SentencePiece
  rules, trained = proto.normalizer_spec, proto.trainer_spec
  plain = rules.add_dummy_prefix and rules.escape_whitespaces
  if not plain or trained.treat_whitespace_as_suffix:
    return None
  if any(piece.type == types.UNUSED for piece in proto.pieces):
    return None
  splits = []
  if trained.model_type == trained.UNIGRAM:
    model = _unigram(proto, types)
    named = types.BYTE, types.CONTROL, types.UNKNOWN
    reserved = [p.piece for p in proto.pieces if p.type in named]
    # The library would take the name of a byte or a special token in a text for it.
    cut = '|'.join(f'{re.escape(name[0])}(?={re.escape(name[1:])})' for name in reserved)
    splits += [pre_tokenizers.Split(Regex(cut), 'merged_with_previous')] if cut else []
  elif trained.model_type == trained.BPE:
    ids = {piece.piece: id for id, piece in enumerate(proto.pieces)}
    unk = next(p.piece for p in proto.pieces if p.type == types.UNKNOWN)
    merges = _merges({p.piece: p.score for p in proto.pieces if p.type == types.NORMAL}, ids)
    options = {'fuse_unk': True, 'byte_fallback': trained.byte_fallback}
    model = models.BPE(ids, merges, unk_token=unk, **options)
  else:
    return None
  made = tokenizers.Tokenizer(model)
  symbols = [piece.piece for piece in proto.pieces if piece.type == types.USER_DEFINED]
  symbols = [symbol for symbol in symbols if symbol not in spec['special']]
  made.normalizer = _normalizer(spec, rules)
  if any(piece.piece == '\n' for piece in proto.pieces):
    # A text that goes on behind a special token is no beginning, with a space before it, to models
    # that were trained here. The first of these leaves the spaces of the text, by then written as
    # such, out of what it looks at.
    whole = {'split': False}
    splits[:0] = [
      pre_tokenizers.Metaspace(' ', 'first', **whole),
      pre_tokenizers.Metaspace(SPACE, 'never', **whole),
    ]
  else:
    made.normalizer = normalizers.Sequence([made.normalizer, normalizers.Prepend(SPACE)])
  if symbols:
    longest = sorted(symbols, key=len, reverse=True)
    splits.append(pre_tokenizers.Split(Regex('|'.join(map(re.escape, longest))), 'isolated'))
  made.pre_tokenizer = pre_tokenizers.Sequence(splits)
  made.decoder = decoders.Sequence(
    [
      decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )  # fmt: skip
  return made


def _unigram(proto: Any, types: Any) -> models.Unigram:
  pieces = [(piece.piece, piece.score) for piece in proto.pieces]
  unk = next(id for id, piece in enumerate(proto.pieces) if piece.type == types.UNKNOWN)
  return models.Unigram(pieces, unk, proto.trainer_spec.byte_fallback)


def _merges(scores: Mapping[str, float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
  """The pairs of pieces that make a piece, the best first."""
  found = []
  for piece, score in scores.items():
    splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    pairs = [(a, b) for a, b in splits if a in scores and b in scores]
    found += [(-score, ids[a], ids[b], a, b) for a, b in pairs]
  return [(a, b) for *_, a, b in sorted(found)]


def _normalizer(spec: Mapping[str, Any], rules: Any) -> normalizers.Normalizer:
  """What `tokenizer_codecs.SentencePiece` does to text, and then what the model does."""
  steps = []
  if spec.get('plain'):
    steps += [_replace(r'\s+', ' '), _replace('^ | $', ''), _replace("``|''", '"')]
  if spec.get('accents'):
    steps += [normalizers.NFKD(), normalizers.StripAccents()]
  if spec['lowercase']:
    # A sigma that ends a word has a form of its own; marks and the like do not end one.
    cased, other = (
      r'[\p{Lu}\p{Ll}\p{Lt}]',
      r"[\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}'.:·‘’․‧︓﹒﹕＇．：\u05f4]*",
    )
    steps.append(_replace(rf'{cased}{other}\KΣ(?!{other}{cased})', 'ς'))
    steps.append(normalizers.Lowercase())
  if rules.precompiled_charsmap:
    steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
  if rules.remove_extra_whitespaces:
    steps += [_replace('^ +| +$', ''), _replace(' {2,}', ' ')]
  steps.append(normalizers.Replace(' ', SPACE))
  return normalizers.Sequence(steps)


def _replace(pattern: str, content: str) -> normalizers.Normalizer:
  return normalizers.Replace(Regex(pattern), content)


_MAKERS = {
  'wordpiece': _wordpiece,
  'byte_bpe': _byte_bpe,
  'tokenizer_json': _published,
  'characters': _characters,
  'bytes': _bytes,
  'sentencepiece': _sentencepiece,
}
