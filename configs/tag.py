"""Tagging: a tag for each word (named entities, parts of speech).

  python train.py --config=configs/tag.py --workdir=runs/entities --config.init_from=runs/bert \
      --config.data.train=train.conll --config.data.validation=dev.conll \
      --config.data.test=test.conll
  python eval.py --workdir=runs/entities

Files in CoNLL's layout may have any ending but those of tables; words are their first column, tags
the last (--config.data.label_column=1 takes another, from 0). Of jsonl or parquet, the columns
`tokens` and `tags` are lists. Variants and `init_from` are as in configs/classify.py: `encoder`,
`decoder`.

Evaluation reports accuracy over words and, where the tags are IOB1, IOB2 or IOBES, precision,
recall and F1 over whole entities, as conlleval counts them.
"""

from configs import bert, classify, gpt2
from flaxlm.config import tree

VARIANTS = {'encoder': bert, 'decoder': gpt2}


def get_config(variant):
  config = tree.new(model=variant, objective='tagging', task='tagging')
  config.data.text_column = 'tokens'
  config.data.label_column = 'tags'
  return classify.fine_tuned(config, VARIANTS[variant])
