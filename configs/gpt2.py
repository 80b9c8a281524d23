"""GPT-2: a pre-norm decoder trained to predict the next token.

  python train.py --config=configs/gpt2.py:mini --workdir=runs/gpt2-mini \
      --config.data.train=corpus.txt

Variants: `mini` (4 layers, 256 wide) for two cores and a corpus of some 50 MB, and the four
published sizes `124m`, `355m`, `774m`, `1558m`, whose batch of half a million tokens wants an
accelerator: lower its memory with --config.num_microbatches, spread it with --config.mesh.

Sizes, GELU (tanh), dropout and initialisation: Radford et al. 2019, section 2.3, and the released
code. The paper gives no optimizer settings; those of GPT-3 are used (Brown et al. 2020, table 2.1
and appendix B).
"""

from flaxlm.config import tree

# layers, width, heads, learning rate
VARIANTS = {
  'mini': (4, 256, 4, 1e-3),
  '124m': (12, 768, 12, 6e-4),
  '355m': (24, 1024, 16, 3e-4),
  '774m': (36, 1280, 20, 2.5e-4),
  '1558m': (48, 1600, 25, 2e-4),
}


def get_config(variant):
  config = tree.new(model='decoder', objective='causal_lm')
  layers, width, heads, learning_rate = VARIANTS[variant]
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.num_heads = heads
  config.model.activation = 'gelu_tanh'
  config.model.init = 'gpt2'
  config.model.init_std = 0.02
  config.tokenizer.sentinels = 0
  config.optimizer.learning_rate = learning_rate
  config.optimizer.schedule = 'cosine'
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
    config.total_steps = 100_000
    config.global_batch_size = 512
    config.precision = 'bfloat16'
    config.model.max_length = 1024
    config.model.dropout_rate = 0.1
    config.model.mlp_dropout_rate = 0.0
    config.model.embedding_dropout_rate = 0.1
    config.model.attention_dropout_rate = 0.1
    config.model.scan_layers = True
    config.model.remat = 'full'
    config.tokenizer.model_type = 'bpe'
    config.tokenizer.vocab_size = 50257
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.warmup_steps = 700
    config.evaluation.every_steps = 1000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 1000
  return config
