"""Text classification: fine-tunes a pretrained trunk on labelled rows, or trains it from scratch.

  python train.py --config=configs/classify.py --workdir=runs/sst2 \
      --config.init_from=runs/bert-mini --config.data.train=train.tsv \
      --config.data.validation=dev.tsv --config.data.test=test.tsv
  python eval.py --workdir=runs/sst2

Rows are read from jsonl, csv, tsv or parquet; --config.data.text_column and
--config.data.label_column name their columns (or number them, where there is no header).

With `init_from`, the model and the tokenizer are those of the checkpoint, of whichever family.
Without it, or to insist on a family, a variant chooses the trunk, in the size `mini` of its recipe:
`encoder` (configs/bert.py), `decoder` (configs/gpt2.py), `encoder_decoder` (configs/t5.py).

Evaluation reports accuracy, precision, recall and F1, and writes the predictions.
"""

from configs import bert, gpt2, t5
from flaxlm.config import tree

VARIANTS = {'encoder': bert, 'decoder': gpt2, 'encoder_decoder': t5}


def get_config(variant):
  config = tree.new(model=variant, objective='classification', task='text_classification')
  pretraining = VARIANTS[variant].get_config('mini')
  with config.unlocked():
    config.model = pretraining.model
    config.tokenizer = pretraining.tokenizer
  config.model.dropout_rate = 0.1
  # The trunk is what init_from is for; the head of pretraining predicts tokens. But a pooler of
  # sentence pairs, or of other classes, is what an encoder's classifier begins with.
  config.restore.skip = ('^head/',)
  config.restore.reuse = ('^head/(nsp|sop|classes)/pooler/=head/classes/pooler/',)
  # Dropout is not part of what a trunk computes; small trunks are pretrained without.
  config.restore.change = (
    'dropout_rate',
    'mlp_dropout_rate',
    'embedding_dropout_rate',
    'attention_dropout_rate',
    'layer_drop_rate',
  )
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
  return config
