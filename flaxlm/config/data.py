"""Where text lies, how rows are made of it, and which tokenizer reads it."""

import dataclasses

from flaxlm.config.field import SET, field

TEXT_KINDS = ('sentencepiece', 'wordpiece', 'byte_bpe', 'characters', 'bytes')
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
