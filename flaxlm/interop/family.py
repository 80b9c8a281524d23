"""What a file of `interop/families` declares of one public `model_type`, as its FAMILY.

`mapping.py` reads and writes config.json by it, `convert.py` and `engine.py` the tensors.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxlm.config.transformer import TransformerConfig
from flaxlm.interop.rules import Entry

# No value, where None is one: of a `Field` without a default, of what config.json cannot express.
NO_VALUE = object()
# Objectives whose head reads a text at one place, or as the mean of its tokens.
POOLED = ('classification', 'regression', 'multi_label', 'multiple_choice')


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of config.json and what it is here.

  theirs, ours: its name in config.json, and here.
  default: its value where config.json lacks it; without one that is an error.
  values: theirs -> ours, else the value itself; of several with one meaning, the first is written.
  also: further fields here that take the same value.
  """

  theirs: str
  ours: str
  default: Any = NO_VALUE
  values: Mapping[Any, Any] | None = None
  also: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Head:
  """What a public class is in flaxlm: an objective, its options, and whether it is only a trunk.

  objective: its name.
  options: its fields that an import sets, and that an export must have, as far as its objective,
    which may be another one with this head, has such fields.
  reads: further ones that an import sets; an export writes what they do into the tokenizer's files.
  also: further ones that an export must have; only other objectives with this head have them.
  trunk_only: whether the class has no head.
  fields: options that fields of config.json tell.
  prefix: before the names of the trunk's tensors, where it is not the family's.
  """

  objective: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reads: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  also: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  trunk_only: bool = False
  fields: tuple[Field, ...] = ()
  prefix: str | None = None

  @property
  def is_pooled(self) -> bool:
    """Whether it gives numbers of a text, and not of each token."""
    return self.objective in POOLED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One `model_type` of config.json. Its functions may raise UserError for what is not supported.

  name: the `model_type`, and the name of the file.
  model: the trunk, a file of flaxlm/models.
  prefix: before the names of the trunk's tensors in a model with a head.
  architectures: class in config.json -> what it is here.
  refused: classes that compute something else -> what that is.
  fixed: model fields that are the same in all of the family.
  fields: those that one field of config.json tells.
  extra_ours: config.json -> those that it tells otherwise.
  extra_theirs: model -> the fields of config.json that tell these, and others that it should have.
  required: field of config.json -> the only values supported, the first being the default.
  unsaid: model fields that change no result and that config.json does not hold.
  amended: (config.json, names of the tensors) -> config.json with what it leaves to the tensors, or
    to a default of the family's own.
  table: (model, head, prefix of the trunk's tensors) -> the tensors and their parameters.
  spellings: end of a tensor's name in some releases -> its end in the table.
  marks: what stands round a text, as fields of objectives; for a run whose objective lacks these.
  counts_padding: whether padding before a text has positions of its own.
  start_role, start_id: of an encoder-decoder, role of the token that its decoder starts with, and
    its id where config.json does not say it.
  forced: field of config.json -> role of the token that the public decoder writes whatever the
    model says, first or, at the greatest length, last.
  """

  name: str
  model: str
  prefix: str
  architectures: Mapping[str, Head]
  refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any]
  fields: Sequence[Field]
  extra_ours: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config_json: {}
  extra_theirs: Callable[[TransformerConfig], dict[str, Any]] = lambda model: {}
  required: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  unsaid: tuple[str, ...] = ()
  amended: Callable[[Mapping[str, Any], Sequence[str]], Mapping[str, Any]] = (
    lambda config_json, tensor_names: config_json
  )
  table: Callable[[TransformerConfig, Head, str], list[Entry]]
  spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
  marks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  counts_padding: bool = True
  start_role: str = ''
  start_id: int | None = None
  forced: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def table_name(self, name: str) -> str:
    """The name in the table of a tensor's name in a file."""
    for old, new in self.spellings.items():
      if name.endswith(old):
        return name[: -len(old)] + new
    return name


# ------------------------------------------------------------------- what several families have

ACTIVATIONS = {
  'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'relu': 'relu',
  'silu': 'silu', 'swish': 'silu',
}  # fmt: skip
# How public classifiers of each kind read a text.
ENCODER_CLASSES = {'pooling': 'first', 'pooler': 'tanh'}
DECODER_CLASSES = {'pooling': 'last', 'pooler': 'none'}
# A linear map of each token, and nothing before it.
EACH_TOKEN = {'pooler': 'none'}
# Why public decoders that find spans are not those of span_qa.
DECODER_SPANS = (
  'it reads question and text with nothing behind them; here, what stands behind the text stands '
  'for no answer'
)
