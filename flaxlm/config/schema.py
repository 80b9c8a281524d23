"""The whole experiment as one tree of frozen dataclasses: the only source of defaults."""

import dataclasses

from flaxlm.config.data import DataConfig, TokenizerConfig
from flaxlm.config.field import SET, Named, field, nearest_divisor
from flaxlm.config.optimization import OptimizerConfig
from flaxlm.config.safety import CheckpointConfig, GuardConfig
from flaxlm.config.tuning import TuningConfig
from flaxlm.errors import UserError

# A key of JAX has 32 bits of a seed: larger ones would repeat parameters and dropout of others.
LARGEST_SEED = 2**32 - 1
STARTED_FROM = {'config.init_from': (SET,)}
# Where an evaluation writes texts.
WRITTEN = {
  'config.objective.name': ('seq2seq', 'completion'),
  'config.task.name': ('translation', 'summarization', 'text_classification', 'glue'),
}


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
