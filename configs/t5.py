"""T5: an encoder-decoder trained to fill in spans of corrupted text.

  python train.py --config=configs/t5.py:mini --workdir=runs/t5-mini \
      --config.data.train=corpus.txt

Variants: `mini` (4 + 4 layers, 256 wide) for two cores and a corpus of some 50 MB; `small` ...
`11b` as published (Raffel et al. 2020, sections 2.1, 3.1 and 3.7); `v1_1_mini` ... `v1_1_xxl` are
T5 1.1, with a gated GELU, an output table of its own and no dropout in pretraining
(github.com/google-research/text-to-text-transfer-transformer, released_checkpoints.md). Their
tables have 32,128 rows, as released.

T5's embeddings begin with a standard deviation of 1, which AdamW hardly moves in a short run: rates
have to be shares of a parameter's size. So they are in Adafactor, the published optimizer, which
the published sizes have, with T5's schedule (section 3.1.2) but a linear warm-up to its first rate,
0.01. The minis have AdamW with such rates (Nawrot 2023, nanoT5), which learns faster in small
batches (docs/results.md).
"""

from flaxlm.config import tree

# layers of each stack, width, MLP width, heads, size of a head
T5_1_0 = {
  'mini': (4, 256, 1024, 4, 64),
  'small': (6, 512, 2048, 8, 64),
  'base': (12, 768, 3072, 12, 64),
  'large': (24, 1024, 4096, 16, 64),
  '3b': (24, 1024, 16384, 32, 128),
  '11b': (24, 1024, 65536, 128, 128),
}
T5_1_1 = {
  'v1_1_mini': (4, 256, 688, 4, 64),
  'v1_1_small': (8, 512, 1024, 6, 64),
  'v1_1_base': (12, 768, 2048, 12, 64),
  'v1_1_large': (24, 1024, 2816, 16, 64),
  'v1_1_xl': (24, 2048, 5120, 32, 64),
  'v1_1_xxl': (24, 4096, 10240, 64, 64),
}
VARIANTS = {**T5_1_0, **T5_1_1}


def get_config(variant):
  config = tree.new(model='encoder_decoder', objective='span_corruption')
  layers, width, mlp_width, heads, head_dim = VARIANTS[variant]
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.mlp_dim = mlp_width
  config.model.num_heads = heads
  config.model.head_dim = head_dim
  config.model.norm = 'rmsnorm'
  config.model.norm_eps = 1e-6
  config.model.use_bias = False
  config.model.position = 't5_bias'
  config.model.scale_attention = False
  config.model.init = 't5'
  if variant in T5_1_1:
    config.model.activation = 'gelu_tanh'
    config.model.gated_mlp = True
    config.model.tie_embeddings = False
  else:
    config.model.activation = 'relu'
    config.model.scale_tied_logits = True
  config.tokenizer.sentinels = 100
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 1.0
  if variant.endswith('mini'):
    config.total_steps = 1500
    config.global_batch_size = 16
    config.model.max_length = 128
    config.tokenizer.vocab_size = 8192
    config.optimizer.name = 'adamwscale'
    config.optimizer.learning_rate = 2e-2
    config.optimizer.b2 = 0.98
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_steps = 150
    config.evaluation.max_batches = 50
  else:
    config.total_steps = 524_288
    config.global_batch_size = 128
    config.precision = 'bfloat16'
    config.model.max_length = 512
    config.model.scan_layers = True
    if variant in T5_1_0:
      config.model.dropout_rate = 0.1
      config.model.embedding_dropout_rate = 0.1
      config.model.attention_dropout_rate = 0.1
    config.tokenizer.vocab_size = 32128
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.name = 'adafactor'
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule = 'rsqrt'
    config.optimizer.warmup_steps = 10_000
    config.evaluation.every_steps = 5000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 5000
  return config
