"""Text classification: fine-tunes a pretrained trunk on labelled rows, or trains it from scratch.

  python train.py --config=configs/classify.py --workdir=runs/sst2 \
      --config.init_from=runs/bert-mini --config.data.train=train.tsv \
      --config.data.validation=dev.tsv --config.data.test=test.tsv
  python eval.py --workdir=runs/sst2

Rows are read from jsonl, csv, tsv or parquet; --config.data.text_column and
--config.data.label_column name their columns (or number them, where there is no header). For pairs
of texts, --config.task.pair_column names the column of the second.

With `init_from`, the model and the tokenizer are those of the checkpoint, of whichever family
(with `text_to_text`, of an encoder-decoder). Without it, or to insist on a family, a variant
chooses the trunk, in the size `mini` of its recipe:
`encoder` (configs/bert.py), `decoder` (configs/gpt2.py), `encoder_decoder` (configs/t5.py, read at
the start token of its decoder), `text_to_text` (configs/t5.py, which writes the label).

Evaluation reports accuracy, precision, recall, F1, MCC and calibration error, and writes the
predictions and a picture of the confusion matrix.
"""

from configs import bert, gpt2, t5
from flaxlm.config import tree

VARIANTS = {
  'encoder': (bert, 'encoder', 'classification'),
  'decoder': (gpt2, 'decoder', 'classification'),
  'encoder_decoder': (t5, 'encoder_decoder', 'classification'),
  'text_to_text': (t5, 'encoder_decoder', 'seq2seq'),
}
ANY_MODEL = ('text_to_text',)
# Objectives whose heads are those of public classifiers and taggers.
CLASSES = ('classification', 'regression', 'multi_label', 'multiple_choice', 'tagging')


def get_config(variant):
  recipe, family, objective = VARIANTS[variant]
  config = tree.new(model=family, objective=objective, task='text_classification')
  return fine_tuned(config, recipe)


def fine_tuned(config, recipe):
  """The config with the trunk of `recipe`, in its mini size, and what fine-tuning wants."""
  trunk_and_schedule(config, recipe)
  config.model.dropout_rate = 0.1
  if config.objective.name not in ('seq2seq', 'completion'):
    # The trunk is what init_from is for; the head of pretraining predicts tokens.
    config.restore.skip = ('^head/',)
  if config.objective.name in CLASSES:
    # But a pooler of sentence pairs or of other classes, or what a masked LM head begins with, is
    # what the head begins with, where it has the like.
    config.restore.reuse = (
      '^head/(nsp|sop|classes)/pooler/=head/classes/pooler/',
      r'^head/(mlm|classes)/(dense|norm)/=head/classes/\2/',
    )
  # Dropout is not part of what a trunk computes; small trunks are pretrained without.
  config.restore.change = (
    'dropout_rate',
    'mlp_dropout_rate',
    'embedding_dropout_rate',
    'attention_dropout_rate',
    'layer_drop_rate',
    'adapter_dim',
    'adapter_placement',
  )
  return config


def trunk_and_schedule(config, recipe):
  """Sets the trunk of `recipe`, in its mini size, and the schedule of fine-tuning."""
  pretraining = recipe.get_config('mini')
  with config.unlocked():
    config.model = pretraining.model
    config.tokenizer = pretraining.tokenizer
  config.num_epochs = 3.0
  config.global_batch_size = 16
  config.optimizer.learning_rate = 3e-4
  config.optimizer.schedule = 'linear'
  config.optimizer.end_ratio = 0.0
  config.optimizer.b2 = 0.98
  config.optimizer.weight_decay = 0.01
  config.optimizer.warmup_steps = 20
  config.evaluation.every_steps = 100
  config.checkpoint.every_steps = 100
