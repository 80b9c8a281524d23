"""The whole experiment as one tree of frozen dataclasses: the only source of defaults."""

import dataclasses

from flaxlm.config.field import SET, Named, field, nearest_divisor
from flaxlm.config.safety import CheckpointConfig, GuardConfig
from flaxlm.config.tuning import TuningConfig
from flaxlm.errors import UserError

# A key of JAX has 32 bits of a seed: larger ones would repeat parameters and dropout of others.
LARGEST_SEED = 2**32 - 1
TEXT_KINDS = ('sentencepiece', 'wordpiece', 'byte_bpe', 'characters', 'bytes')
STARTED_FROM = {'config.init_from': (SET,)}
LABELLED_TEXT = {'config.task.name': (SET,)}
RUNNING_TEXT = {'config.task.name': ('',)}
# Tasks whose rows have one column of labels under a name of the user's choice.
LABEL_TASKS = (
  'text_classification',
  'text_regression',
  'multi_label',
  'tagging',
  'multiple_choice',
)
# Tasks that read a text from a column of the user's choice, and running text.
TEXT_TASKS = ('', *LABEL_TASKS, 'text_to_text', 'translation', 'summarization')
MUON = {'name': ('muon',)}
DECAYED = {'name': ('adamw', 'adamwscale', 'adafactor', 'lion', 'muon')}
WITH_ADAM = ('adamw', 'adamwscale', 'muon')
# Where an evaluation writes texts.
WRITTEN = {
  'config.objective.name': ('seq2seq', 'completion'),
  'config.task.name': ('translation', 'summarization', 'text_classification', 'glue'),
}
TRAINED_PIECES = {'name': ('sentencepiece', 'wordpiece', 'byte_bpe'), 'path': ('',)}


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where text lies and how rows are made of it. No other node names a place where data lie."""

  train: str = field(
    'embedded',
    'file, glob, tfds:NAME[/SPLIT], or `embedded`: prose of CPython; of running text also '
    'NAME=PLACE,NAME=PLACE: a mixture',
  )
  weights: tuple[float, ...] = field(
    (),
    'how many rows are of each source of train, relative to the others; all alike if unset',
    above=0.0,
    when={'config.task.name': ('',)},
  )
  validation: str = field(
    '', 'a place, or NAME=PLACE,NAME=PLACE; if unset, a fixed part of train is held out'
  )
  test: str = field('', 'like train; read by eval.py only')
  holdout: float = field(
    0.1,
    'last part of train that is held out where validation is unset',
    above=0.0,
    below=1.0,
    when={'validation': ('',)},
  )
  documents: str = field(
    'auto',
    'what one document is: `row` of a table, `blank_line`, whole `file`; `auto`: row for '
    'jsonl/csv/tsv/parquet, blank_line for text',
    choices=('auto', 'row', 'blank_line', 'file'),
    when=RUNNING_TEXT,
  )
  text_column: str = field(
    'text',
    'column of the text: a name, or a number where there is no header',
    when={'config.task.name': TEXT_TASKS},
  )
  label_column: str = field(
    'label',
    'column of the label: a name or a number',
    when={'config.task.name': LABEL_TASKS},
  )
  on_bad_row: str = field(
    'error',
    'what becomes of a labelled row that cannot be used (not UTF-8, an unknown label, an empty '
    'text): `error` stops and names file and line, `skip` leaves it out and counts it',
    choices=('error', 'skip'),
    when={'config.task.name': (SET,)},
  )
  max_rows: int | None = field(
    None, 'read only the first so many documents or rows of train, of each source', low=1
  )
  max_length: int | None = field(
    None, 'tokens in a row (of the encoder where there are two); model.max_length if unset', low=8
  )
  max_target_length: int | None = field(
    None,
    'tokens in a decoder row; what the objective needs for max_length if unset',
    low=4,
    when={
      'config.model.name': ('encoder_decoder',),
      'config.objective.name': ('span_corruption', 'denoising', 'seq2seq', 'mixture'),
    },
  )
  pack: bool = field(
    True,
    'labelled rows of training share a row of a batch while there is room; without, each has its '
    'own, and global_batch_size counts labelled rows',
    when={'config.task.name': (SET,)},
  )
  sampling: str = field(
    'epochs',
    '`epochs`: every row once, in a new order each epoch; `windows`: rows at random offsets of a '
    'document (nanoGPT); `streams`: each row of a batch goes on where that of the step before '
    'ended (for a memory)',
    choices=('epochs', 'windows', 'streams'),
    when=RUNNING_TEXT,
  )
  shuffle_block: int = field(
    16,
    'rows that stay together when the order is drawn, so that reads are contiguous',
    low=1,
    when={'sampling': ('epochs',)},
  )
  cache_dir: str = field(
    '', 'where tokenised corpora and trained tokenizers are kept; $FLAXLM_CACHE or ~/.cache/flaxlm'
  )
  word_drop: float = field(
    0.0,
    'augmentation of labelled texts while training: chance to leave a word out',
    low=0.0,
    below=1.0,
    when=LABELLED_TEXT,
  )
  word_swap: float = field(
    0.0,
    'chance that a word and the next change places',
    low=0.0,
    high=1.0,
    when=LABELLED_TEXT,
  )
  word_mask: float = field(
    0.0, 'chance to put the mask token in place of a word', low=0.0, below=1.0, when=LABELLED_TEXT
  )
  prefetch: int = field(2, 'batches that are made ahead of the step', low=0)
  num_workers: int = field(
    0,
    'processes that make training batches, each at least one ahead; 0: a thread of the program',
    low=0,
  )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Which tokenizer; one without a path is trained on the training text and kept by its hash."""

  name: str = field('sentencepiece', 'kind of tokenizer', choices=TEXT_KINDS, when={'path': ('',)})
  path: str = field(
    '', 'a trained tokenizer: a folder that flaxlm or Hugging Face wrote, or a vocabulary file'
  )
  add: tuple[str, ...] = field(
    (),
    'roles that the vocabulary of `path` lacks and that get new ids after its own: pad, eos, unk, '
    'bos, cls, sep, mask, or sentinels',
    when={'path': (SET,)},
  )
  vocab_size: int = field(
    8192, 'pieces to train, special tokens included', low=64, when=TRAINED_PIECES
  )
  model_type: str = field(
    'unigram',
    'SentencePiece algorithm',
    choices=('unigram', 'bpe'),
    when={'name': ('sentencepiece',), 'path': ('',)},
  )
  lowercase: bool = field(False, 'fold case before tokenising', when=TRAINED_PIECES)
  sentinels: int = field(
    100, 'reserved <extra_id_N> pieces; a vocabulary of `path` keeps its own number', low=0
  )
  train_megabytes: float = field(
    10.0, 'text to train on, spread over the corpus', above=0.0, when=TRAINED_PIECES
  )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Gradient transformation and learning-rate schedule."""

  name: str = field(
    'adamw',
    'update rule',
    choices=('adamw', 'adamwscale', 'adafactor', 'lion', 'muon', 'sgd'),
  )
  learning_rate: float = field(
    1e-3, 'peak learning rate; with `noam` the factor of its peak', above=0.0
  )
  schedule: str = field(
    'cosine',
    'shape after the warm-up; `noam`: rsqrt whose peak is learning_rate / sqrt(emb_dim * '
    'warmup_steps); `wsd`: constant, then linear',
    choices=('constant', 'linear', 'cosine', 'rsqrt', 'noam', 'wsd'),
  )
  warmup_steps: int = field(100, 'steps of linear warm-up', low=0)
  decay_share: float = field(
    0.1,
    'last part of the run, over which the rate falls',
    above=0.0,
    high=1.0,
    when={'schedule': ('wsd',)},
  )
  end_ratio: float = field(
    0.1,
    'last learning rate over the peak',
    low=0.0,
    high=1.0,
    when={'schedule': ('linear', 'cosine', 'wsd')},
  )
  b1: float = field(
    0.9, 'decay of the first moment', low=0.0, below=1.0, when={'name': (*WITH_ADAM, 'lion')}
  )
  b2: float = field(
    0.95,
    'decay of the second moment; of the momentum in lion',
    low=0.0,
    below=1.0,
    when={'name': (*WITH_ADAM, 'lion')},
  )
  eps: float = field(
    1e-8, 'added to the root of the second moment', above=0.0, when={'name': WITH_ADAM}
  )
  momentum: float = field(0.0, 'momentum of SGD', low=0.0, below=1.0, when={'name': ('sgd',)})
  muon_momentum: float = field(
    0.95, 'momentum of Muon; b1, b2 and eps are of its Adam', low=0.0, below=1.0, when=MUON
  )
  parameter_scale: bool = field(
    True, "multiply a parameter's updates by its RMS", when={'name': ('adafactor',)}
  )
  weight_decay: float = field(0.1, 'decoupled decay', low=0.0, when=DECAYED)
  decay_exclude: tuple[str, ...] = field(
    ('bias$', 'scale$'),
    'regular expressions: leaves whose path matches one are not decayed',
    when=DECAYED | {'weight_decay': (SET,)},
  )
  ema_decay: float = field(
    0.0,
    'decay of an exponential moving average of the parameters that train, (1 + step) / (10 + step) '
    'where that is less; 0: none is kept',
    low=0.0,
    below=1.0,
  )
  clip_norm: float = field(1.0, 'largest global norm of the gradient; 0: no clipping', low=0.0)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Validation during training and by eval.py."""

  every_steps: int = field(250, 'steps between evaluations; 0: only at the end', low=0)
  batch_size: int | None = field(None, 'rows in a batch; global_batch_size if unset', low=1)
  patience: int = field(
    0,
    'stop after so many evaluations in a row without a better checkpoint.best_metric; 0: never',
    low=0,
    when={'every_steps': (SET,)},
  )
  max_batches: int | None = field(
    None, 'evaluate only so many batches during training; eval.py reads all', low=1
  )
  ema: bool = field(
    True,
    'evaluate, decode and export the moving average of optimizer.ema_decay',
    when={'config.optimizer.ema_decay': (SET,)},
  )
  max_written: int | None = field(
    None,
    'of a task that scores written texts (BLEU, ROUGE), write only so many in training; eval.py '
    'writes all',
    low=0,
    when=WRITTEN,
  )
  num_beams: int = field(
    0,
    'beams of the search for the likeliest text; 0: the likeliest token each time',
    low=0,
    when=WRITTEN,
  )
  length_penalty: float = field(
    0.6,
    'alpha of ((5 + n) / 6)^alpha, by which a beam search divides log-probabilities',
    low=0.0,
    when=WRITTEN | {'num_beams': (SET,)},
  )
  max_new_tokens: int | None = field(
    None,
    'tokens of a text that is written; data.max_target_length, or 128, if unset',
    low=1,
    when=WRITTEN,
  )
  seed: int = field(
    0,
    'of masks and spans on held-out text; the same at every evaluation',
    low=0,
    high=LARGEST_SEED,
  )


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
  """What is written down while training."""

  every_steps: int = field(10, 'steps between lines of metrics.jsonl', low=1)
  tensorboard: bool = field(False, 'also write TensorBoard events')
  writers: tuple[str, ...] = field(
    (), "the user's own metric writers, as dotted names of classes called with (workdir, config)"
  )


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
  """Profiler trace of a few steps."""

  steps: tuple[int, ...] = field((), 'FIRST,LAST: leave a trace of these steps in WORKDIR/profile')


@dataclasses.dataclass(frozen=True)
class RestoreConfig:
  """What `init_from` may leave out. Patterns are regular expressions over parameter paths."""

  skip: tuple[str, ...] = field(
    (),
    'leaves that are not loaded although the checkpoint has them or the model wants them',
    when=STARTED_FROM,
  )
  rename: tuple[str, ...] = field(
    (), 'PATTERN=REPLACEMENT from checkpoint paths to model paths', when=STARTED_FROM
  )
  reuse: tuple[str, ...] = field(
    (),
    'as rename, for leaves that are loaded wherever the checkpoint has the one and the model the '
    'other, although skip names them; a rule without such leaves is none',
    when=STARTED_FROM,
  )
  change: tuple[str, ...] = field(
    (), 'model fields that may differ from the checkpoint', when=STARTED_FROM
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """An experiment. `model`, `objective` and `task` are rebuilt from the files they name."""

  seed: int = field(
    0, 'of parameters, data order, corruption and dropout', low=0, high=LARGEST_SEED
  )
  total_steps: int | None = field(None, 'optimizer steps; or set num_epochs', low=1)
  num_epochs: float | None = field(
    None, 'passes over the training rows; or set total_steps', above=0.0
  )
  global_batch_size: int = field(32, 'rows in a step, over all devices', low=1)
  num_microbatches: int = field(1, 'parts a batch is processed in, one after another', low=1)
  precision: str = field('float32', 'of activations and products', choices=('float32', 'bfloat16'))
  init_from: str = field('', 'workdir whose newest checkpoint gives the weights to start from')
  model: Named = field(Named(), 'a file of flaxlm/models')
  objective: Named = field(Named(), 'a file of flaxlm/objectives')
  task: Named = field(Named(), 'a file of flaxlm/tasks, for labelled rows')
  data: DataConfig = field(DataConfig(), 'text and rows')
  tokenizer: TokenizerConfig = field(TokenizerConfig(), 'text to token ids')
  optimizer: OptimizerConfig = field(OptimizerConfig(), 'update rule')
  tuning: TuningConfig = field(TuningConfig(), 'which parameters train, and how')
  checkpoint: CheckpointConfig = field(CheckpointConfig(), 'what is saved')
  guard: GuardConfig = field(GuardConfig(), 'bad steps')
  evaluation: EvaluationConfig = field(EvaluationConfig(), 'validation')
  logging: LoggingConfig = field(LoggingConfig(), 'metrics')
  profile: ProfileConfig = field(ProfileConfig(), 'profiler')
  restore: RestoreConfig = field(RestoreConfig(), 'declared differences of init_from')
  parallelism: str = field(
    'jit',
    'how the step runs: `jit` compiles one program for all devices of the mesh; `pmap` one for a '
    'device, run on each with its rows, which needs a mesh of copies (-1,1,1)',
    choices=('jit', 'pmap'),
  )
  mesh: tuple[int, ...] = field((-1, 1, 1), 'devices along data, fsdp, tensor; one may be -1')
  sharding_rules: tuple[str, ...] = field(
    (
      'batch=data+fsdp',
      'embed=fsdp',
      'mlp=tensor',
      'heads=tensor',
      'kv_heads=tensor',
      'vocab=tensor',
      'embed_out=',
      'vector=',
      'head_dim=',
      'layers=',
      'table=',
      'classes=',
      'rank=',
    ),
    'LOGICAL=MESH_AXIS entries; an empty right side replicates',
  )

  def check(self) -> None:
    """Raises UserError for values of different nodes that cannot go together."""
    if (self.total_steps is None) == (self.num_epochs is None):
      what = 'neither is' if self.total_steps is None else 'both are'
      raise UserError(f'config.total_steps, config.num_epochs: set exactly one of them; {what} set')
    if self.global_batch_size % self.num_microbatches:
      raise UserError(
        f'config.num_microbatches: {self.num_microbatches} does not divide '
        f'global_batch_size={self.global_batch_size}; the nearest number that does is '
        f'{nearest_divisor(self.global_batch_size, self.num_microbatches)}'
      )
    if len(self.mesh) != 3 or self.mesh.count(-1) > 1 or any(n < 1 and n != -1 for n in self.mesh):
      raise UserError(
        f'config.mesh: three positive numbers, one of them may be -1, got {self.mesh}'
      )
    if self.profile.steps and (
      len(self.profile.steps) != 2 or not 0 < self.profile.steps[0] <= self.profile.steps[1]
    ):
      raise UserError(
        f'config.profile.steps: FIRST,LAST with 0 < FIRST <= LAST, got {self.profile.steps}'
      )
    if self.task.name and not self.data.train:
      raise UserError('config.data.train: a task needs a file of labelled rows')

  @property
  def max_length(self) -> int:
    """Tokens in a row L (of the encoder where there are two)."""
    return self.data.max_length or self.model.max_length

  @property
  def evaluation_rows(self) -> int:
    """Rows in a batch of an evaluation, over all devices."""
    return self.evaluation.batch_size or self.global_batch_size

  @property
  def max_new_tokens(self) -> int:
    """Of a text that the run writes, where no other length is asked for."""
    return self.evaluation.max_new_tokens or self.data.max_target_length or 128
