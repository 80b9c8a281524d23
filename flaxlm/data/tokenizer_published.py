"""Published vocabularies: which files hold them, what their special tokens are and mean.

Ids stay what they are. A role (pad, eos, ...) is the token that the files declare for it, or one of
a well-known name; which of the others stands in for one that is missing says STAND_INS.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from flaxlm.errors import UserError
from flaxlm.files import nearest_sibling, read_json

MOST_EXTRA = 10_000  # Sentinels; the published vocabularies have 100.
ROLES = ('pad', 'eos', 'unk', 'bos', 'cls', 'sep', 'mask')
NAMES = {
  'pad': ('[PAD]', '<pad>'),
  'eos': ('</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>'),
  'unk': ('[UNK]', '<unk>'),
  'bos': ('<s>', '<|begin_of_text|>', '<bos>', '<|endoftext|>'),
  'cls': ('[CLS]', '<cls>'),
  'sep': ('[SEP]', '<sep>'),
  'mask': ('[MASK]', '<mask>'),
}
# T5 decodes from its pad token; BERT's texts begin with [CLS] and end with [SEP].
STAND_INS = {
  'pad': ('eos', 'sep'),
  'eos': ('sep',),
  'unk': (),
  'bos': ('cls', 'pad', 'eos'),
  'cls': ('bos', 'eos'),
  'sep': ('eos',),
  'mask': (),
}
# Names of the files that hold a vocabulary, the best described first.
FILES = (
  ('tokenizer_json', {'published.json': ('tokenizer.json',)}),
  ('sentencepiece', {'tokenizer.model': ('spiece.model', 'tokenizer.model')}),
  ('wordpiece', {'vocab.txt': ('vocab.txt',)}),
  (
    'byte_bpe',
    {'vocab.json': ('vocab.json', 'encoder.json'), 'merges.txt': ('merges.txt', 'vocab.bpe')},
  ),
)
# Options of how text is read, in tokenizer_config.json.
FLAGS = (
  *('do_lower_case', 'strip_accents', 'tokenize_chinese_chars', 'add_prefix_space'),
  'keep_accents',
)
_SENTINEL = re.compile(r'<extra_id_(\d+)>')


def read(path: epath.Path) -> tuple[dict[str, Any], dict[str, bytes]]:
  """(spec, files) of the vocabulary in a folder, or of one of its files.

  Raises UserError where there is none, or one that cannot be read.
  """
  kind, files, main = _files(path)
  folder = path if path.is_dir() else path.parent
  settings = _settings(folder / 'special_tokens_map.json') | _settings(
    folder / 'tokenizer_config.json'
  )
  spec = {'name': kind}
  try:
    ids, special = _READERS[kind](spec, files, settings)
  except UserError:
    raise
  except (ValueError, KeyError, TypeError, RuntimeError) as error:
    raise UserError(f'config.tokenizer.path: {main}: not a {kind} vocabulary ({error})') from None
  _check_ids(main, ids)
  if not ids:
    raise UserError(f'config.tokenizer.path: {main}: it holds no token')
  base = set(ids)
  added = {int(id): token for id, token in settings.get('added_tokens_decoder', {}).items()}
  ids |= {token['content']: id for id, token in added.items()}
  more = read_if_there(folder / 'added_tokens.json')
  _check_ids(folder / 'added_tokens.json', more)
  ids |= more
  declared = _declared(settings)
  size = 1 + max(ids.values())
  sentinels = [name for name in declared if _SENTINEL.fullmatch(name) and name not in ids]
  # T5 (Raffel et al. 2020) counts its sentinels down from the last id.
  for i, name in enumerate(sorted(sentinels, key=_number, reverse=True)):
    ids[name] = size + i
  for name in declared:
    ids.setdefault(name, 1 + max(ids.values()))
  special |= {token['content'] for token in added.values() if token.get('special')}
  special |= set(declared) | {name for name in ids if _SENTINEL.fullmatch(name)}
  roles = _roles(settings, ids)
  special |= set(roles.values())
  ordinary = [name for name in ids if name not in base and name not in special]
  if ordinary and kind != 'tokenizer_json':
    raise UserError(
      f'config.tokenizer.path: {path}: {ordinary[0]!r} is an ordinary token beside the vocabulary; '
      'only a tokenizer.json says how text yields it'
    )
  spec |= {
    'size': 1 + max(ids.values()),
    'special': {name: ids[name] for name in sorted(special, key=lambda name: ids[name])},
    'roles': {role: ids[name] for role, name in roles.items()},
  }
  if 'unk' in roles:
    spec['unk'] = roles['unk']
  spec['sentinel_ids'] = _sentinel_ids(spec['special'])
  return spec, files


def grow(spec: Mapping[str, Any], add: Sequence[str], sentinels: int) -> dict[str, Any]:
  """The spec with tokens for the roles in `add` (or 'sentinels'), with ids after its own.

  Sentinels are numbered as T5's: <extra_id_0> has the last id. Raises UserError for a role that the
  vocabulary has.
  """
  spec = spec | {'special': dict(spec['special']), 'roles': dict(spec['roles'])}
  for role in add:
    if role not in (*ROLES, 'sentinels'):
      raise UserError(
        f'config.tokenizer.add: {role!r} is not one of {", ".join((*ROLES, "sentinels"))}'
      )
    if role in spec['roles'] or (role == 'sentinels' and spec['sentinel_ids']):
      raise UserError(f'config.tokenizer.add: the vocabulary of config.tokenizer.path has {role}')
    names = [NAMES[role][0]] if role != 'sentinels' else _descending(sentinels)
    for name in names:
      spec['special'][name] = spec['size']
      spec['size'] += 1
    if role != 'sentinels':
      spec['roles'][role] = spec['special'][names[0]]
    else:
      spec['sentinel_ids'] = _sentinel_ids(spec['special'])
  return spec


def role_id(roles: Mapping[str, int], role: str) -> int | None:
  """The id of a role, or of the role that stands in for it."""
  return next((roles[r] for r in (role, *STAND_INS[role]) if r in roles), None)


def _descending(count: int) -> list[str]:
  return [f'<extra_id_{i}>' for i in reversed(range(count))]


def _number(name: str) -> int:
  return int(_SENTINEL.fullmatch(name)[1])


def _sentinel_ids(special: Mapping[str, int]) -> list[int]:
  names = {_number(name): id for name, id in special.items() if _SENTINEL.fullmatch(name)}
  return [names[i] for i in sorted(names)]


def _files(path: epath.Path) -> tuple[str, dict[str, bytes], epath.Path]:
  """The kind of vocabulary, its files by the names under which a tokenizer keeps them, the first's.

  The first of them holds the ids.
  """
  folder = path if path.is_dir() else path.parent
  if path.is_file() and path.name == 'sentencepiece.bpe.model':
    raise UserError(f'config.tokenizer.path: {path}: its ids are shifted; name its tokenizer.json')
  if path.is_file() and path.suffix == '.model':
    return 'sentencepiece', {'tokenizer.model': path.read_bytes()}, path
  for kind, wanted in FILES:
    if path.is_file() and not any(path.name in names for names in wanted.values()):
      continue
    found = {
      own: next((folder / name for name in names if (folder / name).exists()), None)
      for own, names in wanted.items()
    }
    if all(found.values()):
      main, *_ = found.values()
      return kind, {own: file.read_bytes() for own, file in found.items()}, main
    if any(found.values()):
      missing = next(names[0] for own, names in wanted.items() if not found[own])
      raise UserError(f'config.tokenizer.path: {folder}: {missing} is missing')
  if path.is_file() and path.suffix == '.json':
    return 'tokenizer_json', {'published.json': path.read_bytes()}, path
  if path.is_file() and path.suffix == '.txt':
    return 'wordpiece', {'vocab.txt': path.read_bytes()}, path
  names = 'tokenizer.json, spiece.model, vocab.txt, vocab.json and merges.txt'
  if path.exists():
    problem = f'none of {names}' if path.is_dir() else 'no vocabulary file'
  else:
    problem = f'does not exist{nearest_sibling(path)}'
  raise UserError(f'config.tokenizer.path: {path}: {problem}')


def read_if_there(file: epath.Path) -> dict[str, Any]:
  """`read_json`; empty if there is no such file."""
  return read_json(file) if file.exists() else {}


def _settings(file: epath.Path) -> dict[str, Any]:
  """What a file says of special tokens and of how text is read; UserError for wrong types."""
  settings = read_if_there(file)
  added = settings.get('added_tokens_decoder', {})
  wrong = not isinstance(added, dict) or any(
    not (id.isdecimal() and isinstance(token, dict) and isinstance(_content(token), str))
    for id, token in added.items()
  )
  found = {'added_tokens_decoder': 'tokens by their ids'} if wrong else {}
  for role in ROLES:
    token = settings.get(f'{role}_token')
    if token is not None and not isinstance(_content(token), str):
      found[f'{role}_token'] = 'a token'
  for key in ('additional_special_tokens', 'extra_special_tokens'):
    more = settings.get(key) or []
    more = list(more.values()) if isinstance(more, dict) else more
    if not isinstance(more, list) or not all(isinstance(_content(token), str) for token in more):
      found[key] = 'tokens'
  extra = settings.get('extra_ids') or 0
  if type(extra) is not int or not 0 <= extra <= MOST_EXTRA:
    found['extra_ids'] = f'a whole number up to {MOST_EXTRA}'
  for key in FLAGS:
    if not isinstance(settings.get(key), bool | None):
      found[key] = 'true or false'
  for key, expected in found.items():
    raise UserError(f'{file}: {key}: expected {expected}, got {settings[key]!r:.80}')
  return settings


def _check_ids(file: epath.Path, ids: Any) -> None:
  """UserError unless it is an object of tokens and their ids."""
  if not isinstance(ids, dict):
    raise UserError(f'config.tokenizer.path: {file}: expected an object of tokens and their ids')
  for token, id in ids.items():
    if not isinstance(token, str) or type(id) is not int or id < 0:
      raise UserError(f'config.tokenizer.path: {file}: {token!r} has the id {id!r}')


def _content(token: Any) -> str | None:
  return token.get('content') if isinstance(token, dict) else token


def _declared(settings: Mapping[str, Any]) -> list[str]:
  """Names of the special tokens that tokenizer_config.json and special_tokens_map.json list."""
  tokens = [settings.get(f'{role}_token') for role in ROLES]
  for key in ('additional_special_tokens', 'extra_special_tokens'):
    more = settings.get(key) or []
    tokens += list(more.values()) if isinstance(more, dict) else more
  tokens += [f'<extra_id_{i}>' for i in range(settings.get('extra_ids') or 0)]
  return list(dict.fromkeys(name for name in map(_content, tokens) if name))


def _roles(settings: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, str]:
  """Names of the tokens of roles: as declared, else by their usual names."""
  roles = {}
  for role in ROLES:
    declared = _content(settings.get(f'{role}_token'))
    usual = next((name for name in NAMES[role] if name in ids), None)
    if declared or usual:
      roles[role] = declared or usual
  if roles.get('unk') in (roles.get('eos'), roles.get('bos')):
    roles.pop('unk', None)  # GPT-2 declares its one token for everything; bytes know no unknown.
  return roles


def _cased(pieces: Sequence[str]) -> bool:
  """Whether any piece that is not a special token's name has an upper-case letter."""
  return any(p != p.lower() for p in pieces if not (p[:1] in '[<' and p[-1:] in ']>'))


def _wordpiece(spec: dict, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> tuple:
  from flaxlm.data import tokenizer_library

  ids = tokenizer_library.vocabulary(files['vocab.txt'])
  spec['lowercase'] = settings.get('do_lower_case', not _cased(list(ids)))
  spec['accents'] = settings.get('strip_accents')
  spec['chinese'] = settings.get('tokenize_chinese_chars', True)
  return ids, set()


def _byte_bpe(spec: dict, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> tuple:
  spec |= {'lowercase': False, 'prefix_space': settings.get('add_prefix_space', False)}
  return json.loads(files['vocab.json']), set()


def _tokenizer_json(spec: dict, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> tuple:
  state = json.loads(files['published.json'])
  _check_flags(state, settings)
  vocab = state['model']['vocab']
  ids = dict(vocab) if isinstance(vocab, dict) else {p: i for i, (p, _) in enumerate(vocab)}
  added = state.get('added_tokens', [])
  ids |= {token['content']: token['id'] for token in added}
  return ids, {token['content'] for token in added if token['special']}


def _check_flags(state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
  """UserError where tokenizer_config.json has text read otherwise than tokenizer.json.

  Of the two, the classes of transformers that are made for one family obey the former.
  """
  if settings.get('tokenizer_class') in (None, 'PreTrainedTokenizerFast', 'TokenizersBackend'):
    return
  normalizer, cuts = state.get('normalizer') or {}, state.get('pre_tokenizer') or {}
  said = {}
  if normalizer.get('type') == 'BertNormalizer':
    lower, accents = normalizer['lowercase'], normalizer['strip_accents']
    said['do_lower_case'] = lower
    said['strip_accents'] = lower if accents is None else accents
    said['tokenize_chinese_chars'] = normalizer['handle_chinese_chars']
  if cuts.get('type') == 'ByteLevel':
    said['add_prefix_space'] = cuts['add_prefix_space']
  for key, value in said.items():
    if settings.get(key) not in (None, value):
      raise UserError(
        f'config.tokenizer.path: tokenizer_config.json has {key}={settings[key]}, tokenizer.json '
        f'says {value}; make them agree'
      )


def _sentencepiece(spec: dict, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> tuple:
  import sentencepiece

  if not files['tokenizer.model']:
    raise ValueError('it is empty')
  model = sentencepiece.SentencePieceProcessor(model_proto=files['tokenizer.model'])
  pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
  special = {p for i, p in enumerate(pieces) if model.is_control(i) or model.is_unknown(i)}
  albert = {'[CLS]', '[SEP]', '[MASK]'} <= special and not special & {'<s>', '</s>'}
  xlnet = {'<cls>', '<sep>', '<mask>', '<eod>'} <= special
  folded = settings.get('do_lower_case', albert and not _cased(pieces))
  spec['lowercase'] = (albert or xlnet) and folded
  spec['accents'] = (albert or xlnet) and not settings.get('keep_accents', False)
  spec['plain'] = albert or xlnet
  return {piece: i for i, piece in enumerate(pieces)}, special


_READERS = {
  'wordpiece': _wordpiece,
  'byte_bpe': _byte_bpe,
  'tokenizer_json': _tokenizer_json,
  'sentencepiece': _sentencepiece,
}
