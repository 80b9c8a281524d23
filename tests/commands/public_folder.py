"""Hugging Face folders with random weights, for tests of `import` and `export`."""

import json

import flax.linen as nn
import jax
import numpy as np
import public_heads

from flaxlm import commandline
from flaxlm.__main__ import main
from flaxlm.commands import _reference
from flaxlm.interop import convert, files, mapping
from flaxlm.models.model import make_model
from flaxlm.paths import leaf_paths

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'b', 'c', '##d', '.']
BERT = {
  'model_type': 'bert', 'architectures': ['BertForPreTraining'], 'vocab_size': len(WORDS),
  'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 24,
  'max_position_embeddings': 16,
}  # fmt: skip


def tensors_of(config, dtype):
  """The tensors that config.json implies, random, in the order of the family's table."""
  family = mapping.find_family(config)
  name, declared = mapping.head_of(family, config)
  model = mapping.model_config(family, config, config['vocab_size'])
  labels = tuple(config.get('id2label', {}).values())
  public = convert.for_export(model, declared.objective, dict(declared.options), labels, name)
  batch = _reference.batch_of(public, {'input_ids': np.zeros((1, 4), np.int32)})
  init = make_model(model, public_heads.head_of(public)).init
  shapes = leaf_paths(nn.unbox(jax.eval_shape(lambda: init(jax.random.key(0), batch)['params'])))
  rng = np.random.default_rng(0)
  leaves = {path: rng.normal(0, 0.5, leaf.shape) for path, leaf in shapes.items()}
  return convert.save(public, leaves, {}, {}, dtype)


def write(folder, config, tokenizer, dtype='F16', extra=None):
  """config.json, model.safetensors and the files of the tokenizer, bytes by name."""
  folder.mkdir(parents=True, exist_ok=True)
  tensors = tensors_of(config, dtype) | (extra or {})
  files.write(folder / files.WEIGHTS, tensors.items(), {'format': 'pt'})
  (folder / 'config.json').write_text(json.dumps(config))
  for name, content in tokenizer.items():
    (folder / name).write_bytes(content)
  return folder


def write_bert(folder):
  """A random BERT with the words above; the tensors in float16, and a buffer."""
  words = ('\n'.join(WORDS) + '\n').encode()
  extra = {'bert.embeddings.position_ids': np.arange(16)[None]}
  settings = b'{"do_lower_case": false, "model_max_length": 16}'
  tokenizer = {'vocab.txt': words, 'tokenizer_config.json': settings}
  return write(folder, BERT, tokenizer, extra=extra)


def run(*argv):
  """Exit status of `python -m flaxlm ARGV`."""
  return commandline.run(main, argv)


def raw(folder):
  return (folder / files.WEIGHTS).read_bytes()
