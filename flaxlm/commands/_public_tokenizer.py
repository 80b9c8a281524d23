"""The tokenizer files of an exported folder, so that transformers gives the ids of the run."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from flaxlm import terminal
from flaxlm.errors import UserError

# The vocabulary files of a published tokenizer here, by the names that a public folder has.
NAMES = {
  'vocab.txt': 'vocab.txt', 'vocab.json': 'vocab.json', 'merges.txt': 'merges.txt',
  'tokenizer.model': 'spiece.model',
}  # fmt: skip


def copy(kept: epath.Path, target: epath.Path, straight: bool) -> None:
  """The files that were imported; straight: whether the class is that of the import, too."""
  from flaxlm.interop import convert

  own = (convert.CONFIG, convert.MANIFEST, convert.KEPT)
  own = own if straight else (*own, 'generation_config.json')
  for file in kept.iterdir():
    if file.name not in own:
      (target / file.name).write_bytes(file.read_bytes())


def write(tokenizer: Any, target: epath.Path, config: Any, objective: Any, public: Any) -> None:
  """tokenizer.json, tokenizer_config.json and the vocabulary of a run's tokenizer.

  The special tokens that transformers puts round a text are those that the objective does. Where
  no tokenizer.json gives the same ids, the files are those that flaxlm itself reads.
  """
  from flaxlm.interop import tokenizer_json

  single, pair, typed = _templates(tokenizer, config, objective, public.family.marks)
  state = tokenizer_json.state_of(tokenizer, single, pair)
  if state is None:
    tokenizer.save(target / 'tokenizer')
    terminal.warn(
      f'the tokenizer is not for transformers, whose {tokenizer.spec["name"]} gives other ids; '
      'it is in tokenizer/, for flaxlm'
    )
    return
  for name in () if _trained_here(tokenizer) else NAMES.keys() & tokenizer.files.keys():
    (target / NAMES[name]).write_bytes(tokenizer.files[name])
  text = json.dumps(state, ensure_ascii=False, indent=1)
  (target / 'tokenizer.json').write_text(text + '\n', encoding='utf-8')
  settings = _settings(tokenizer, config, public, typed)
  (target / 'tokenizer_config.json').write_text(json.dumps(settings, indent=2) + '\n')


def _trained_here(tokenizer: Any) -> bool:
  return 'sentinels' in tokenizer.spec


def _settings(tokenizer: Any, config: Any, public: Any, typed: bool) -> dict[str, Any]:
  """The content of tokenizer_config.json; how text is cut is said by tokenizer.json alone."""
  from flaxlm.models.family import at_end, family_of

  spec = tokenizer.published_spec()
  names = {id: name for name, id in spec['special'].items()}
  roles = dict(spec['roles'])
  if 'pad_token_id' in public.config_json:  # Perhaps another stands in.
    roles['pad'] = public.config_json['pad_token_id']
  inputs = ['input_ids', *['token_type_ids'] * typed, 'attention_mask']
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': config.max_length,
    'model_input_names': inputs,
    'clean_up_tokenization_spaces': False,
  }
  if family_of(config.model.name) == 'encoder' and at_end(config.model.name):
    settings['padding_side'] = 'left'  # The public code reads the last position.
  return settings | {f'{role}_token': names[id] for role, id in roles.items() if id in names}


def _templates(
  tokenizer: Any, config: Any, objective: Any, known: Mapping[str, Any]
) -> tuple[list, list, bool]:
  """What stands round a text, and round two, and whether token types matter.

  known: the family's `marks`, for fields that the objective does not have.
  """
  from flaxlm.models.family import family_of
  from flaxlm.objectives.marks import Marks

  try:
    if family_of(config.model.name) == 'decoder' and not hasattr(objective, 'decoder_marks'):
      if not getattr(objective, 'boundaries', True):
        return [], [], False
      # A published tokenizer does what its file says, or else what its family does.
      if not _trained_here(tokenizer) and (
        known.get('decoder_marks') == 'none' or tokenizer.spec['name'] == 'tokenizer_json'
      ):
        return [], [], False
      bos = tokenizer.bos_id
      return [(bos, 0), ('A', 0)], [(bos, 0), ('A', 0), (bos, 1), ('B', 1)], False
    separators = getattr(objective, 'pair_separators', known.get('pair_separators', 1))
    style = getattr(objective, 'marks', known.get('marks', 't5'))
    ends = getattr(objective, 'decoder_marks', 'bos_eos')
    marks = Marks(config, tokenizer, separators, style, ends)
  except UserError:  # A token is missing, which nothing that the run did has needed.
    return [], [], False
  first, second = np.array([-1]), np.array([-2])
  return _template(marks, first), _template(marks, first, second), marks.typed


def _template(marks: Any, *texts: np.ndarray) -> list[tuple[int | str, int]]:
  features = marks.features(*texts)
  ids = features[marks.key].tolist()
  types = features['token_type_ids'].tolist() if marks.typed else [0] * len(ids)
  names = {-1: 'A', -2: 'B'}
  return [(names.get(id, id), type) for id, type in zip(ids, types, strict=True)]
