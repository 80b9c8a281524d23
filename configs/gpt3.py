"""GPT-3: GPT-2's decoder, wider and deeper, with dense and local attention in turn.

  python train.py --config=configs/gpt3.py:mini --workdir=runs/gpt3-mini \
      --config.data.train=corpus.txt

Variants: `mini` (4 layers, 256 wide) for two cores and a corpus of some 50 MB, and the eight
published sizes, `125m` to `175b` (Brown et al. 2020, table 2.1), which are for pods. Two entries of
that table do not give the parameters that it states: 24 heads of the 1.3B model, of which there are
16 here, and the width 5140 of the 13B model, here 5120.

Every second layer attends to what is near, the others to everything (section 2.1). How near is not
published: here 256 tokens. --config.model.window=none makes all layers dense. The optimizer is that
of appendix B.
"""

from flaxlm.config import tree

ROW = 2048
# layers, width, heads, rows in a batch, learning rate
VARIANTS = {
  'mini': (4, 256, 4, 16, 1e-3),
  '125m': (12, 768, 12, 256, 6e-4),
  '350m': (24, 1024, 16, 256, 3e-4),
  '760m': (24, 1536, 16, 256, 2.5e-4),
  '1.3b': (24, 2048, 16, 512, 2e-4),
  '2.7b': (32, 2560, 32, 512, 1.6e-4),
  '6.7b': (32, 4096, 32, 1024, 1.2e-4),
  '13b': (40, 5120, 40, 1024, 1e-4),
  '175b': (96, 12288, 96, 1600, 0.6e-4),
}


def get_config(variant):
  config = tree.new(model='decoder', objective='causal_lm')
  layers, width, heads, rows, learning_rate = VARIANTS[variant]
  config.global_batch_size = rows
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.num_heads = heads
  config.model.global_every = 2
  config.model.activation = 'gelu_tanh'
  config.model.init = 'gpt2'
  config.model.init_std = 0.02
  config.tokenizer.sentinels = 0
  config.optimizer.learning_rate = learning_rate
  config.optimizer.schedule = 'cosine'
  config.optimizer.end_ratio = 0.1
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip_norm = 1.0
  if variant == 'mini':
    config.total_steps = 1600
    config.model.max_length = 128
    config.model.window = 32
    config.model.init_std = 0.035  # 0.02 * sqrt(768 / 256)
    config.tokenizer.vocab_size = 8192
    config.optimizer.warmup_steps = 150
    config.evaluation.max_batches = 50
  else:
    config.total_steps = round(300e9 / (rows * ROW))
    config.precision = 'bfloat16'
    config.model.max_length = ROW
    config.model.window = 256
    config.model.scan_layers = True
    config.model.remat = 'full'
    config.tokenizer.name = 'byte_bpe'
    config.tokenizer.vocab_size = 50257
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.warmup_steps = round(375e6 / (rows * ROW))
    config.evaluation.every_steps = 1000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 1000
  return config
