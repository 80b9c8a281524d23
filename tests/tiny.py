"""Recipes at a size that compiles in seconds, on text made for the tests."""

import functools
import json
import pathlib

import jax
import numpy as np

from flaxlm.config import overrides, recipe, tree
from flaxlm.data import tokenizer_training
from flaxlm.paths import leaf_paths, nested
from flaxlm.training.experiment import build

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = 400
LENGTH = 32
# The tasks that read rows.tsv; the others read tasks.jsonl.
ROWS = ('text_classification', 'text_to_text', 'translation', 'summarization')
# Everything that differs between variants of one architecture in size or rate only.
SIZES = {
  'model': {'num_layers': 2, 'emb_dim': 16, 'num_heads': 2, 'max_length': LENGTH},
  'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 4},
  'evaluation': {'batch_size': None},
  'data': {'max_length': None},
}


def places():
  """'NAME.py' or 'NAME.py:variant' of every recipe."""
  found = []
  for file in sorted((ROOT / 'configs').glob('*.py')):
    variants = recipe.Recipe(str(file)).variants
    found += [f'{file.name}:{variant}' for variant in variants] or [file.name]
  return found


def write_corpus(folder):
  """text.txt, other.txt: documents between blank lines; rows.tsv: text and four more columns."""
  rng = np.random.default_rng(0)
  letters = np.array(list('abcdefghilmnoprstu'))
  lexicon = [''.join(rng.choice(letters, rng.integers(2, 8))) for _ in range(300)]
  chances = 1 / np.arange(1, len(lexicon) + 1)
  chances /= chances.sum()

  def text(words):
    drawn = [lexicon[i] for i in rng.choice(len(lexicon), words, p=chances)]
    return ' '.join(drawn).capitalize() + '.'

  folder.mkdir(parents=True, exist_ok=True)
  for name in ('text.txt', 'other.txt'):
    documents = ['\n'.join(text(9) for _ in range(rng.integers(1, 6))) for _ in range(DOCUMENTS)]
    (folder / name).write_text('\n\n'.join(documents) + '\n')
  rows = ['text\tlabel\tother\ttopic\ttarget']
  for _ in range(DOCUMENTS):
    label, topic = rng.choice(['good', 'bad']), rng.choice(['x', 'y', 'z'])
    rows.append(f'{text(rng.integers(2, 9))}\t{label}\t{text(4)}\t{topic}\t{label} {topic}')
  (folder / 'rows.tsv').write_text('\n'.join(rows) + '\n')
  lines = [json.dumps(task_row(number, text, rng)) for number in range(DOCUMENTS)]
  (folder / 'tasks.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


def task_row(number, text, rng):
  """A row with the columns of every task but those of rows.tsv."""
  label = int(rng.integers(2))
  row = {'id': str(number), 'text': text(rng.integers(2, 9)), 'label': label}
  pairs = ('sentence1', 'sentence2', 'question1', 'question2', 'premise', 'hypothesis')
  for name in ('sentence', 'question', 'other', *pairs):
    row[name] = text(rng.integers(2, 6))
  words = row['other'].split()
  row['tokens'], row['tags'] = words, [rng.choice(['B-X', 'I-X', 'O']) for _ in words]
  row['context'] = f'{row["text"]} {row["other"]}'
  answer = row['context'].split()[int(rng.integers(len(words)))]
  row['answers'] = {'text': [answer], 'answer_start': [row['context'].index(answer)]}
  row['choices'], row['choices3'] = ['ab', 'cd'], ['ab', 'cd', 'ef']
  row['labels'] = ','.join(name for name in 'xyz' if rng.integers(2))
  return row


@functools.cache
def load(place, folder, changes=()):
  """The config of a recipe, shrunk. changes: ((dotted key, text), ...), as on a command line.

  What makes a variant what it is stays: norms, positions, scan, remat, precision, dropout. Shapes
  and what differs with them only (rates, schedule length) are the same for all, so that variants
  of one architecture are one config and share what is compiled.
  """
  path, variant = recipe.split(str(ROOT / 'configs' / place))
  config = recipe.Recipe(path).config(variant)
  for node, sizes in SIZES.items():
    config[node].update(sizes)
  if config.model.mlp_dim:
    config.model.mlp_dim = 24
  if config.model.num_kv_heads:
    config.model.num_kv_heads = 1
  if config.model.window:
    config.model.window = 4
  if config.model.head_dim:
    config.model.head_dim = 8
  if config.model.get('memory_length'):
    config.model.memory_length = 5
  if config.tokenizer.name in tokenizer_training.PIECES:
    config.tokenizer.vocab_size = 360 + config.tokenizer.sentinels
    config.tokenizer.train_megabytes = 1.0
  if config.total_steps:
    config.total_steps = 20
  if config.objective.name == 'span_qa':
    config.objective.max_question_length, config.objective.doc_stride = 12, 6
  config.global_batch_size = 4
  name = 'rows.tsv' if config.task.name in ROWS else 'tasks.jsonl'
  config.data.train = str(folder / (name if config.task.name else 'text.txt'))
  config.data.validation = ''
  overrides.apply(config, changes)
  return tree.from_config_dict(config)


def experiment(place, folder, changes=(), **options):
  """What `build` makes of a shrunk recipe."""
  return build(load(place, folder, changes), folder / 'no_run', **options)


def uneven(batches):
  """Batches whose rows weigh differently, so that a mean of means over their parts would show."""
  for batch in batches:
    for key in batch:
      if key.endswith('weights'):
        columns = np.arange(batch[key].shape[1])
        rows = np.arange(len(batch[key]))[:, None]
        batch[key] = batch[key] * ((columns * 7 + rows * 3) % 16 <= rows)
  return batches


def random_state(experiment, seed=0):
  """A state whose parameters are all away from 0 and 1. Needs no compilation, as init_state does.

  The optimizer's part is 0, as Adam's and SGD's begin.
  """
  rng = np.random.default_rng(seed)

  def place(leaf, value):
    return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)

  state = experiment.abstract_state
  zeros = jax.tree.map(lambda leaf: place(leaf, np.zeros(leaf.shape)), state)
  params = {path: rng.normal(0, 0.3, leaf.shape) for path, leaf in leaf_paths(state.params).items()}
  for path, value in params.items():
    params[path] = value + 1 if path.endswith('scale') else value
  return zeros.replace(params=jax.tree.map(place, state.params, nested(params)))
