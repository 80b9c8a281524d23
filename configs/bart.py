"""BART: an encoder-decoder that restores corrupted text.

  python train.py --config=configs/bart.py:mini --workdir=runs/bart-mini \
      --config.data.train=corpus.txt

Variants: `mini` (4 + 4 layers, 256 wide) for two cores and a corpus of some 50 MB; `base` and
`large` as published (Lewis et al. 2020, sections 2.1 and 4.1), which want accelerators: 30 % of the
tokens in infilled spans of mean length 3, sentences permuted, half a million steps on batches of
8,000 rows. The paper gives no learning rate; it is RoBERTa's, whose batches and steps these are.
As released, positions are counted from row 2 of each stack's table.
"""

from flaxlm.config import tree

# layers of each stack, width, learning rate
VARIANTS = {
  'mini': (4, 256, 1e-3),
  'base': (6, 768, 6e-4),
  'large': (12, 1024, 4e-4),
}


def get_config(variant):
  config = tree.new(model='encoder_decoder', objective='denoising')
  layers, width, learning_rate = VARIANTS[variant]
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.num_heads = width // 64
  config.model.norm_placement = 'post'
  config.model.norm_eps = 1e-5
  config.model.embedding_norm = True
  config.model.activation = 'gelu'
  config.model.position = 'learned'
  config.model.position_offset = 2
  config.model.init = 'bert'
  config.model.init_std = 0.02
  config.tokenizer.name = 'byte_bpe'
  config.tokenizer.sentinels = 0
  config.optimizer.learning_rate = learning_rate
  config.optimizer.schedule = 'linear'
  config.optimizer.end_ratio = 0.0
  config.optimizer.b2 = 0.98
  config.optimizer.eps = 1e-6
  config.optimizer.weight_decay = 0.01
  config.optimizer.clip_norm = 1.0
  if variant == 'mini':
    config.total_steps = 1500
    config.global_batch_size = 16
    config.model.max_length = 128
    config.model.init_std = 0.035  # 0.02 * sqrt(768 / 256)
    config.tokenizer.vocab_size = 8192
    config.optimizer.warmup_steps = 150
    config.evaluation.max_batches = 50
  else:
    config.total_steps = 500_000
    config.global_batch_size = 8000
    config.precision = 'bfloat16'
    config.data.max_length = 512
    config.model.max_length = 1024
    config.model.dropout_rate = 0.1
    config.model.embedding_dropout_rate = 0.1
    config.model.attention_dropout_rate = 0.1
    config.model.scan_layers = True
    config.tokenizer.vocab_size = 50265
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.warmup_steps = 24_000
    config.evaluation.every_steps = 5000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 5000
  return config
