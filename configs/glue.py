"""GLUE by name: fine-tunes a trunk of any family on one of its data sets.

  python train.py --config=configs/glue.py:cola --workdir=runs/cola --config.init_from=runs/bert
  python train.py --config=configs/glue.py:mrpc --workdir=runs/mrpc --config.init_from=runs/bert \
      --config.data.train=MRPC/train.tsv --config.data.validation=MRPC/dev.tsv
  python eval.py --workdir=runs/mrpc

Variants: `cola`, `sst2`, `mrpc`, `qqp`, `stsb`, `mnli`, `qnli`, `rte`, and of all but `stsb`
`cola-text_to_text` ..., in which the label is written, for inputs as T5 was trained on (`sst2
sentence: ...`). The rows come from TFDS, or, with the overrides above, from GLUE's own tsv files
(for mnli, the validation sets are
--config.data.validation=matched=MNLI/dev_matched.tsv,mismatched=MNLI/dev_mismatched.tsv; with an
empty --config.data.validation= a part of the training rows is held out). Model and tokenizer are
those of `init_from`; without it, those of configs/bert.py:mini or, where the label is written, of
configs/t5.py:mini.

Evaluation reports the official metric of each set among others: `mcc` (cola), `accuracy`, also
`f1_binary` (mrpc, qqp), `pearson` and `spearman` (stsb). It is the one that the best checkpoint is
chosen by.
"""

from configs import bert, classify
from flaxlm.config import tree

# Data set -> the metric that chooses the best checkpoint.
METRICS = {
  'cola': 'mcc',
  'sst2': 'accuracy',
  'mrpc': 'f1_binary',
  'qqp': 'f1_binary',
  'stsb': 'pearson',
  'mnli': 'accuracy',
  'qnli': 'accuracy',
  'rte': 'accuracy',
}
WRITTEN = '-text_to_text'
VARIANTS = (*METRICS, *(name + WRITTEN for name in METRICS if name != 'stsb'))
ANY_MODEL = VARIANTS


def get_config(variant):
  name = variant.removesuffix(WRITTEN)
  if name != variant:
    recipe, family, objective = classify.VARIANTS['text_to_text']
  else:
    recipe, family = bert, 'encoder'
    objective = 'regression' if name == 'stsb' else 'classification'
  config = tree.new(model=family, objective=objective, task='glue')
  config.task.subset = name
  config = classify.fine_tuned(config, recipe)
  config.data.train = f'tfds:glue/{name}'
  config.data.validation = f'tfds:glue/{name}/validation'
  if name == 'mnli':
    config.data.validation = ','.join(
      f'{part}=tfds:glue/mnli/validation_{part}' for part in ('matched', 'mismatched')
    )
  config.checkpoint.best_metric = METRICS[name]
  return config
