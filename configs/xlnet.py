"""XLNet: an encoder of two streams, trained to predict in every order of factorisation.

  python train.py --config=configs/xlnet.py:mini --workdir=runs/xlnet-mini \
      --config.data.train=corpus.txt

Variants: `mini` (4 layers, 256 wide) for two cores and a corpus of some 50 MB; `base` and `large`
have the published sizes and want accelerators. Their schedule is that of the large model (Yang et
al. 2019, appendix A.4.1); the paper does not give that of the base. Rows go on where those of the
step before ended, and each layer remembers the last `model.memory_length` places of those.

  --config.model.memory_length=0    without the memory
  --config.model.position=rope      with another position scheme
"""

from flaxlm.config import tree

# layers, width
VARIANTS = {'mini': (4, 256), 'base': (12, 768), 'large': (24, 1024)}


def get_config(variant):
  config = tree.new(model='xlnet', objective='permutation_lm')
  layers, width = VARIANTS[variant]
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.num_heads = width // 64
  config.model.position = 'transformer_xl'
  config.model.token_types = 3  # A text, a second one, and [CLS].
  config.model.norm_placement = 'post'
  config.model.norm_eps = 1e-12
  config.model.attention_bias = False
  config.model.activation = 'gelu'
  config.model.init = 'bert'
  config.model.init_std = 0.02
  config.data.sampling = 'streams'
  config.tokenizer.sentinels = 0
  config.optimizer.schedule = 'linear'
  config.optimizer.end_ratio = 0.0
  config.optimizer.eps = 1e-6
  config.optimizer.weight_decay = 0.01
  if variant == 'mini':
    config.total_steps = 1500
    config.global_batch_size = 16
    config.model.max_length = 128
    config.model.memory_length = 64
    config.model.init_std = 0.035  # 0.02 * sqrt(768 / 256)
    config.tokenizer.vocab_size = 8192
    config.tokenizer.lowercase = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.98
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 1.0
    config.evaluation.max_batches = 50
  else:
    config.total_steps = 500_000
    config.global_batch_size = 8192
    config.precision = 'bfloat16'
    config.model.max_length = 512
    config.model.memory_length = 384
    config.model.dropout_rate = 0.1
    config.model.embedding_dropout_rate = 0.1
    config.model.attention_dropout_rate = 0.1
    config.model.scan_layers = True
    config.tokenizer.vocab_size = 32000
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.learning_rate = 4e-4
    config.optimizer.b2 = 0.999
    config.optimizer.warmup_steps = 40_000
    config.evaluation.every_steps = 5000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 5000
  return config
