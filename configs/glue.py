"""GLUE by name: fine-tunes a trunk of any family on one of its data sets.

  python train.py --config=configs/glue.py:cola --workdir=runs/cola --config.init_from=runs/bert
  python train.py --config=configs/glue.py:mrpc --workdir=runs/mrpc --config.init_from=runs/bert \
      --config.data.train=MRPC/train.tsv --config.data.validation=MRPC/dev.tsv
  python eval.py --workdir=runs/mrpc

Variants: `cola`, `sst2`, `mrpc`, `qqp`, `stsb`, `mnli`, `qnli`, `rte`. The rows come from TFDS, or,
with the overrides above, from GLUE's own tsv files (for mnli, the validation sets are
--config.data.validation=matched=MNLI/dev_matched.tsv,mismatched=MNLI/dev_mismatched.tsv). Model and
tokenizer are those of `init_from`; without it, those of configs/bert.py:mini.

Evaluation reports the official metric of each set among others: `mcc` (cola), `accuracy`, also
`f1_binary` (mrpc, qqp), `pearson` and `spearman` (stsb). It is the one that the best checkpoint is
chosen by.
"""

from configs import bert, classify
from flaxlm.config import tree

# Data set -> the metric that chooses the best checkpoint.
VARIANTS = {
  'cola': 'mcc',
  'sst2': 'accuracy',
  'mrpc': 'f1_binary',
  'qqp': 'f1_binary',
  'stsb': 'pearson',
  'mnli': 'accuracy',
  'qnli': 'accuracy',
  'rte': 'accuracy',
}
ANY_MODEL = True


def get_config(variant):
  objective = 'regression' if variant == 'stsb' else 'classification'
  config = tree.new(model='encoder', objective=objective, task='glue')
  config.task.subset = variant
  config = classify.fine_tuned(config, bert)
  config.data.train = f'tfds:glue/{variant}'
  config.data.validation = f'tfds:glue/{variant}/validation'
  if variant == 'mnli':
    config.data.validation = ','.join(
      f'{name}=tfds:glue/mnli/validation_{name}' for name in ('matched', 'mismatched')
    )
  config.checkpoint.best_metric = VARIANTS[variant]
  return config
