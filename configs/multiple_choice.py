"""Multiple choice: which of several choices goes with a text (SWAG, exam questions).

  python train.py --config=configs/multiple_choice.py --workdir=runs/swag \
      --config.init_from=runs/bert --config.data.train=train.jsonl
  python eval.py --workdir=runs/swag

A row has a `text`, a list of `choices` (or --config.task.choice_columns=ending0,ending1,... names a
column for each) and a `label`: the number of the right one from 0, its letter or its text. All
choices of an item lie in one row, so that data.max_length is shared by them. Variants and
`init_from` are as in configs/classify.py: `encoder`, `decoder`.

Evaluation reports accuracy, and writes the probability of each choice.
"""

from configs import bert, classify, gpt2
from flaxlm.config import tree

VARIANTS = {'encoder': bert, 'decoder': gpt2}


def get_config(variant):
  config = tree.new(model=variant, objective='multiple_choice', task='multiple_choice')
  return classify.fine_tuned(config, VARIANTS[variant])
