"""Flags of the commands that read text: those fields of the config, by their own names."""

import argparse

from flaxlm.config import overrides, schema, tree
from flaxlm.config.data import DataConfig, TokenizerConfig
from flaxlm.errors import flag

FIELDS = {
  'data': ('weights', 'documents', 'text_column', 'max_rows', 'cache_dir'),
  'tokenizer': (
    *('name', 'vocab_size', 'model_type', 'lowercase', 'sentinels', 'train_megabytes'),
  ),
}
CLASSES = {'data': DataConfig, 'tokenizer': TokenizerConfig}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --documents, --vocab-size, ...: what the fields of the config say of themselves."""
  for node, names in FIELDS.items():
    fields = tree.fields(CLASSES[node])
    for name in names:
      _, rules, default = fields[name]
      text = f'{rules.doc} ({default})' if default not in ('', None) else rules.doc
      # argparse takes a percent sign for the start of a placeholder.
      parser.add_argument(flag(name), help=text.replace('%', '%%'))


def given(args: argparse.Namespace) -> list[str]:
  """The fields whose flags were set, such as 'tokenizer.vocab_size'."""
  fields = [(node, name) for node, names in FIELDS.items() for name in names]
  return [f'{node}.{name}' for node, name in fields if getattr(args, name) is not None]


def config(args: argparse.Namespace, place: str) -> schema.Config:
  """The config of the flags that were set, for the text of `place`; checked as for training."""
  pairs = [('total_steps', '1'), ('data.train', place)]
  for node, names in FIELDS.items():
    pairs += [(f'{node}.{n}', getattr(args, n)) for n in names if getattr(args, n) is not None]
  config_dict = tree.new()
  overrides.apply(config_dict, pairs)
  return tree.from_config_dict(config_dict)
