"""Reads a Hugging Face folder (config.json, model.safetensors, tokenizer) into a workdir.

  python -m flaxlm import --from=DIR --workdir=runs/bert-base

WORKDIR is then a run at step 0: start from it with --config.init_from=WORKDIR, or evaluate,
generate or fill masks with it. What an export needs beside the weights lies in WORKDIR/hf.

The converted model is run once. If DIR has reference.safetensors, with `input_ids` [B, L] (and
`attention_mask`, `token_type_ids`, `decoder_input_ids`) and the `logits` that the original gives
(or `last_hidden_state`, of a trunk alone), the outputs are compared; otherwise they must be finite.
"""

import dataclasses
import json
from collections.abc import Sequence
from os.path import expanduser
from typing import Any

from etils import epath

from flaxlm import commandline, terminal
from flaxlm.commands import _folder
from flaxlm.errors import UserError

# Files of a folder that are kept for an export beside config.json: those of its tokenizer.
TOKENIZER_FILES = (
  *('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json'),
  *('vocab.txt', 'vocab.json', 'merges.txt', 'spiece.model', 'tokenizer.model'),
  'generation_config.json',
)
# Share of a vocabulary's rows that may have no token: tables are padded, but not to twice the size.
MOST_UNUSED = 0.5
# How rows for a head are read: the task, and the columns of its recipe where they are others.
TASKS = {
  'classification': ('text_classification', {}),
  'regression': ('text_regression', {}),
  'multi_label': ('multi_label', {'label_column': 'labels'}),
  'multiple_choice': ('multiple_choice', {}),
  'tagging': ('tagging', {'text_column': 'tokens', 'label_column': 'tags'}),
  'span_qa': ('question_answering', {}),
}


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__)
  parser.add_argument('--from', dest='folder', required=True, type=expanduser, help='the folder')
  parser.add_argument('--workdir', required=True, type=expanduser, help='where to write; new')
  args = parser.parse(argv)
  workdir, folder = _folder.new('--workdir', args.workdir), epath.Path(args.folder)
  terminal.phase('init', f'reading {folder}')
  from flaxlm.interop import convert

  public, tensors = convert.open_folder(folder)
  with _folder.staged(workdir) as temporary:
    loaded = _convert(public, tensors, temporary, workdir)
    _keep(public, tensors, loaded, temporary / 'hf')
  terminal.close()
  count = sum(leaf.size for leaf in loaded.leaves.values())
  print(f'{public.architecture}: {len(tensors.shapes)} tensors, {count:,} parameters -> {workdir}')
  for what, names in (
    ('rebuilt on export', loaded.buffers),
    ('kept for export', list(loaded.kept)),
    ('not in the source, so not in the checkpoint', loaded.absent),
  ):
    if names:
      print(f'  {what}: {", ".join([*names[:4], *["..."] * (len(names) > 4)])}')


def _convert(public: Any, tensors: Any, temporary: epath.Path, workdir: epath.Path) -> Any:
  """Writes config.json, tokenizer/ and checkpoints/; what became of the tensors."""
  from flaxlm.commands import _reference
  from flaxlm.interop import convert
  from flaxlm.paths import leaf_paths, nested
  from flaxlm.training.experiment import build

  tokenizer = _tokenizer(tensors.folder, public.model.vocab_size)
  _check_start(public, tokenizer)
  tokenizer.save(temporary / 'tokenizer')
  marks = _marks(tensors.folder, tokenizer) if 'decoder_marks' in public.head.reads else ''
  config = _config(public, temporary / 'tokenizer', marks)
  experiment = build(config, temporary, training=False, with_data=False)
  wanted = leaf_paths(experiment.abstract_state.params)
  terminal.phase('init', f'{len(tensors.shapes)} tensors')
  loaded = convert.load(public, tensors, wanted)
  params = nested({path: _placed(leaf, wanted[path]) for path, leaf in loaded.leaves.items()})
  terminal.phase('init', 'checking the converted model')
  _reference.check(public, experiment.model, params, tensors.folder)
  config = dataclasses.replace(
    experiment.config,
    tokenizer=dataclasses.replace(config.tokenizer, path=str(workdir / 'tokenizer')),
  )
  _folder.write_run(temporary, config, experiment.tokenizer, params)
  return loaded


def _placed(leaf: Any, wanted: Any) -> Any:
  import jax

  return jax.device_put(leaf, wanted.sharding)


def _tokenizer(folder: epath.Path, vocab_size: int) -> Any:
  """The folder's tokenizer, with as many ids as the model has rows."""
  from flaxlm.data.tokenizer import Tokenizer

  tokenizer = Tokenizer.load(folder)
  spec = _without_rowless(tokenizer.published_spec(), vocab_size)
  if not 0 <= vocab_size - spec['size'] <= MOST_UNUSED * vocab_size:
    raise UserError(
      f'{folder}: the tokenizer has {spec["size"]} tokens, the model {vocab_size} '
      '(config.json: vocab_size); they do not belong together'
    )
  # Rows of the table that no token has are part of the model: its softmax runs over them.
  unused = {f'<unused_{i}>': i for i in range(spec['size'], vocab_size)}
  spec = spec | {'size': vocab_size, 'special': spec['special'] | unused}
  return Tokenizer(spec, tokenizer.files)


def _without_rowless(spec: dict[str, Any], vocab_size: int) -> dict[str, Any]:
  """A tokenizer's spec without the special tokens after those of the model, which never read them.

  BART's fine-tuned to summarise have no row for <mask>. Where the vocabulary itself is longer, the
  spec is returned as it is.
  """
  rowless = {name: id for name, id in spec['special'].items() if id >= vocab_size}
  if not rowless or sorted(rowless.values()) != list(range(vocab_size, spec['size'])):
    return spec
  terminal.say(f'left out, as the model has no row for them: {", ".join(rowless)}')
  kept = lambda ids: {name: id for name, id in ids.items() if id < vocab_size}
  return spec | {
    'size': vocab_size,
    'special': kept(spec['special']),
    'roles': kept(spec['roles']),
    'sentinel_ids': [id for id in spec['sentinel_ids'] if id < vocab_size],
    'rowless': sorted(rowless),
  }


def _check_start(public: Any, tokenizer: Any) -> None:
  """UserError unless the decoder starts with the token with which flaxlm starts this family's."""
  if public.start is None:
    return
  role = public.family.start_role
  ours = getattr(tokenizer, f'{role}_id')
  if public.start != ours:
    raise UserError(
      f'config.json: decoder_start_token_id={public.start} is not supported; a decoder of this '
      f"family starts with the tokenizer's {tokenizer.piece(ours)!r}, {ours}"
    )


def _marks(folder: epath.Path, tokenizer: Any) -> str:
  """What tokenizer.json puts round a text, as `decoder_marks` names it; '' if it does not say."""
  import tokenizers

  file = folder / 'tokenizer.json'
  if not file.exists():
    return ''
  public = tokenizers.Tokenizer.from_str(file.read_text(encoding='utf-8'))
  public.no_padding()
  public.no_truncation()
  bare, whole = (public.encode('a', add_special_tokens=added).ids for added in (False, True))
  for name, roles in (('none', ''), ('bos', 'bos'), ('bos_eos', 'bos eos')):
    ids = [getattr(tokenizer, f'{role}_id') for role in roles.split()]
    if whole == [*ids[:1], *bare, *ids[1:]]:
      return name
  raise UserError(f'{file}: what it puts round a text of a decoder is not supported')


def _config(public: Any, tokenizer: epath.Path, marks: str = '') -> Any:
  """The run's config: the defaults, but for model, objective, labels and tokenizer.

  marks: `decoder_marks`, where they are known to be other than the class has them.
  """
  from flaxlm.config import tree

  task, columns = TASKS.get(public.head.objective, ('', {}))
  config = tree.new(public.model.name, public.head.objective, task)
  for name in config.model:
    config.model[name] = getattr(public.model, name)
  known = {'decoder_marks': marks} if marks else {}
  for name, value in {**public.head.options, **public.head.reads, **known}.items():
    config.objective[name] = value
  if config.model.get('memory_length') and public.head.objective == 'permutation_lm':
    config.data.sampling = 'streams'  # Which is what a memory remembers.
  if public.labels:
    config.task.labels = public.labels
  config.data.update(columns)
  config.tokenizer.path = str(tokenizer)
  config.total_steps = 1
  return tree.from_config_dict(config)


def _keep(public: Any, tensors: Any, loaded: Any, target: epath.Path) -> None:
  """Writes what an export needs: config.json, manifest.json, kept.safetensors, tokenizer files."""
  from flaxlm.interop import convert, files

  target.mkdir()
  for name in (convert.CONFIG, *TOKENIZER_FILES):
    if (tensors.folder / name).exists():
      (target / name).write_bytes((tensors.folder / name).read_bytes())
  manifest = {
    'architecture': public.architecture,
    'metadata': tensors.metadata,
    'tensors': {n: [tensors.dtypes[n], list(shape)] for n, shape in tensors.shapes.items()},
    'rebuilt': loaded.buffers,
    'kept': list(loaded.kept),
    'absent': loaded.absent,
  }
  (target / convert.MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n')
  if loaded.kept:
    files.write(target / convert.KEPT, loaded.kept.items(), {})
