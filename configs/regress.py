"""Text regression: learns a number for each text, or pair of texts, from labelled rows.

  python train.py --config=configs/regress.py --workdir=runs/stars \
      --config.init_from=runs/bert-mini --config.data.train=reviews.jsonl \
      --config.data.label_column=stars
  python eval.py --workdir=runs/stars

Rows, columns, variants and `init_from` are as in configs/classify.py. The loss is the mean squared
error; evaluation reports Pearson's and Spearman's correlation and the mean absolute error.
"""

from configs import bert, classify, gpt2, t5
from flaxlm.config import tree

VARIANTS = {'encoder': bert, 'decoder': gpt2, 'encoder_decoder': t5}


def get_config(variant):
  config = tree.new(model=variant, objective='regression', task='text_regression')
  return classify.fine_tuned(config, VARIANTS[variant])
