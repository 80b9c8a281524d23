"""Multi-label classification: any number of labels is true of a text, or of a pair of texts.

  python train.py --config=configs/multi_label.py --workdir=runs/topics \
      --config.init_from=runs/bert-mini --config.data.train=articles.jsonl \
      --config.data.label_column=topics
  python eval.py --workdir=runs/topics

The column of the labels is `labels` unless it is named. A cell of it is a json list, or has commas
between labels; it may be empty. Otherwise rows, columns, variants and `init_from` are as in
configs/classify.py. The loss is the binary cross-entropy, averaged over texts and labels;
evaluation reports precision, recall and F1 (micro, macro, samples), accuracy over all labels, and
the share of texts of which all labels are right.
"""

from configs import bert, classify, gpt2, t5
from flaxlm.config import tree

VARIANTS = {'encoder': bert, 'decoder': gpt2, 'encoder_decoder': t5}


def get_config(variant):
  config = tree.new(model=variant, objective='multi_label', task='multi_label')
  config.data.label_column = 'labels'
  return classify.fine_tuned(config, VARIANTS[variant])
