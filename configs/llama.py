"""Llama: a decoder with RMSNorm, rotary positions, SwiGLU and shared keys and values.

  python train.py --config=configs/llama.py:mini --workdir=runs/llama-mini \
      --config.data.train=corpus.txt

Variants: `mini` (4 layers, 256 wide) for two cores and a corpus of some 50 MB; Llama 2 `2-7b`,
`2-13b`, `2-70b` (Touvron et al. 2023b, section 2.2 and table 1); Llama 3 `3-8b`, `3-70b`
(Grattafiori et al. 2024, table 3); Llama 3.2 `3.2-1b`, `3.2-3b`, which reach 131,072 positions by
scaled rotations (released configurations), here on rows of 8,192. The small ones were pruned and
distilled; their optimizer is that of the 8B model.
"""

from flaxlm.config import tree

# layers, width, MLP width, heads, heads of keys and values, learning rate
VARIANTS = {
  'mini': (4, 256, 688, 4, 2, 1e-3),
  '2-7b': (32, 4096, 11008, 32, 32, 3e-4),
  '2-13b': (40, 5120, 13824, 40, 40, 3e-4),
  '2-70b': (80, 8192, 28672, 64, 8, 1.5e-4),
  '3-8b': (32, 4096, 14336, 32, 8, 3e-4),
  '3-70b': (80, 8192, 28672, 64, 8, 1.5e-4),
  '3.2-1b': (16, 2048, 8192, 32, 8, 3e-4),
  '3.2-3b': (28, 3072, 8192, 24, 8, 3e-4),
}


def get_config(variant):
  config = tree.new(model='decoder', objective='causal_lm')
  layers, width, mlp_width, heads, kv_heads, learning_rate = VARIANTS[variant]
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.mlp_dim = mlp_width
  config.model.num_heads = heads
  config.model.num_kv_heads = kv_heads
  config.model.norm = 'rmsnorm'
  config.model.norm_eps = 1e-5
  config.model.activation = 'silu'
  config.model.gated_mlp = True
  config.model.use_bias = False
  config.model.tie_embeddings = variant in ('mini', '3.2-1b', '3.2-3b')
  config.model.position = 'rope'
  config.model.rope_theta = 5e5 if variant.startswith('3') else 1e4
  config.model.init = 'gpt2'
  config.model.init_std = 0.02
  config.tokenizer.model_type = 'bpe'
  config.tokenizer.sentinels = 0
  config.optimizer.learning_rate = learning_rate
  config.optimizer.schedule = 'cosine'
  config.optimizer.end_ratio = 0.1
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip_norm = 1.0
  if variant == 'mini':
    config.total_steps = 1600
    config.global_batch_size = 16
    config.model.max_length = 128
    config.model.init_std = 0.035  # 0.02 * sqrt(768 / 256)
    config.tokenizer.vocab_size = 8192
    config.optimizer.warmup_steps = 150
    config.evaluation.max_batches = 50
  else:
    row = 8192 if variant.startswith('3') else 4096
    config.total_steps = 500_000
    config.global_batch_size = 2**22 // row
    config.precision = 'bfloat16'
    config.model.max_length = row
    config.model.scan_layers = True
    config.model.remat = 'full'
    if variant.startswith('3.2'):
      config.data.max_length = row
      config.model.max_length = 131_072
      config.model.rope_scaling = 'llama3'
      config.model.rope_factor = 32.0
      config.model.rope_low_freq_factor = 1.0
      config.model.rope_high_freq_factor = 4.0
      config.model.rope_original_length = 8192
    config.tokenizer.vocab_size = 128_256 if variant.startswith('3') else 32_000
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.eps = 1e-5
    config.optimizer.warmup_steps = 2000
    config.evaluation.every_steps = 1000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 1000
  return config
