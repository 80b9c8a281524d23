"""Extractive question answering, on SQuAD 1.1 and 2.0 and rows like theirs.

  python train.py --config=configs/squad.py --workdir=runs/squad --config.init_from=runs/bert \
      --config.data.train=train-v1.1.json --config.data.validation=dev-v1.1.json
  python eval.py --workdir=runs/squad

Rows of jsonl or parquet have the columns `context`, `question`, `answers` ({"text": [...],
"answer_start": [...]}) and, if they like, `id`; tfds:squad has them too. Questions without answers
(2.0) are noticed. Texts longer than a row (data.max_length) are read in windows that begin
objective.doc_stride tokens after each other. Variants and `init_from` are as in
configs/classify.py: `encoder`, `decoder`.

Evaluation reports exact match and F1 in percent, as SQuAD's scripts do, and writes
predictions.json, nbest.json and (2.0) null_odds.json in their layout.
"""

from configs import bert, classify, gpt2
from flaxlm.config import tree

VARIANTS = {'encoder': bert, 'decoder': gpt2}


def get_config(variant):
  config = tree.new(model=variant, objective='span_qa', task='question_answering')
  config = classify.fine_tuned(config, VARIANTS[variant])
  # What a masked LM head begins with, as in configs/classify.py, with objective.pooler=transform.
  config.restore.reuse = (r'^head/mlm/(dense|norm)/=head/\1/',)
  config.optimizer.warmup_steps = 100
  config.evaluation.every_steps = 500
  config.checkpoint.every_steps = 500
  return config
