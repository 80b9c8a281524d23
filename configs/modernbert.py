"""ModernBERT: a pre-norm encoder with rotary positions, GeGLU, and local and global layers in turn.

  python train.py --config=configs/modernbert.py:mini --workdir=runs/modernbert-mini \
      --config.data.train=corpus.txt

Variants: `mini` (4 layers, 256 wide) for two cores and a corpus of some 50 MB; `base` and `large`
as published (Warner et al. 2024, section 2.1 and appendix A), which want accelerators: rows of
1,024 tokens, 30 % of them masked, no next-sentence prediction. The models take 8,192 positions; the
published run is extended to them with --config.data.max_length=8192. The rate is that of the
plateau, before the last decay; plain AdamW stands for StableAdamW.
"""

from flaxlm.config import tree

# layers, width, MLP width, learning rate, rows in a batch
VARIANTS = {
  'mini': (4, 256, 384, 1e-3, 16),
  'base': (22, 768, 1152, 8e-4, 4608),
  'large': (28, 1024, 2624, 5e-4, 4928),
}


def get_config(variant):
  config = tree.new(model='encoder', objective='masked_lm')
  layers, width, mlp_width, learning_rate, rows = VARIANTS[variant]
  config.global_batch_size = rows
  config.objective.pairs = 'none'
  config.objective.mask_rate = 0.3
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.mlp_dim = mlp_width
  config.model.num_heads = width // 64
  config.model.norm_placement = 'pre'
  config.model.norm_eps = 1e-5
  config.model.embedding_norm = True
  config.model.first_attention_norm = False
  config.model.activation = 'gelu'
  config.model.gated_mlp = True
  config.model.use_bias = False
  config.model.position = 'rope'
  config.model.rope_theta = 160_000.0
  config.model.local_rope_theta = 10_000.0
  config.model.global_every = 3
  config.model.init = 'gpt2'
  config.model.init_std = 0.02
  config.tokenizer.name = 'byte_bpe'
  config.tokenizer.sentinels = 0
  config.optimizer.learning_rate = learning_rate
  config.optimizer.b2 = 0.98
  config.optimizer.eps = 1e-6
  config.optimizer.clip_norm = 1.0
  if variant == 'mini':
    config.total_steps = 2200
    config.model.max_length = 128
    config.model.window = 16
    config.model.init_std = 0.035  # 0.02 * sqrt(768 / 256)
    config.tokenizer.vocab_size = 8192
    config.optimizer.schedule = 'linear'
    config.optimizer.end_ratio = 0.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 200
    config.evaluation.max_batches = 50
  else:
    config.total_steps = round(1.7e12 / (1024 * rows))
    config.precision = 'bfloat16'
    config.data.max_length = 1024
    config.model.max_length = 8192
    config.model.window = 64
    config.model.scan_layers = True
    config.tokenizer.vocab_size = 50_368
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.schedule = 'constant'
    config.optimizer.weight_decay = 1e-5
    config.optimizer.warmup_steps = round(3e9 / (1024 * rows))
    config.evaluation.every_steps = 5000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 5000
  return config
