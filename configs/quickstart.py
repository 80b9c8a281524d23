"""A small decoder on prose that comes with Python: the first run, with no download.

  python train.py --config=configs/quickstart.py --workdir=runs/quickstart

The corpus is the language reference and the docstrings of the standard library, with a
SentencePiece vocabulary of 2,048 pieces trained on it. The model learns the layout and the turns of
phrase of reference manuals; its sentences do not mean anything yet.
"""

from flaxlm.config import tree


def get_config():
  config = tree.new(model='decoder', objective='causal_lm')
  config.total_steps = 300
  config.global_batch_size = 16
  config.model.num_layers = 4
  config.model.emb_dim = 128
  config.model.num_heads = 4
  config.model.max_length = 128
  config.model.init_std = 0.05  # 0.02 * sqrt(768 / 128)
  config.tokenizer.vocab_size = 2048
  config.tokenizer.sentinels = 0
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 30
  config.evaluation.every_steps = 100
  config.evaluation.max_batches = 40
  config.checkpoint.every_steps = 100
  return config
