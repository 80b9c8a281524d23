"""BERT: a post-norm encoder trained on masked tokens and next-sentence prediction.

  python train.py --config=configs/bert.py:mini --workdir=runs/bert-mini \
      --config.data.train=corpus.txt

Variants: `mini`, `tiny` and `small` have published widths (Turc et al. 2019) with rows of 128
tokens and 8,192 pieces, so that a corpus of some 50 MB on two cores suffices, and are drawn with a
standard deviation that grows as the width shrinks (docs/results.md); `base` and `large` are as
published (Devlin et al. 2019, section 3.1 and appendix A.2) and want an accelerator. The published
schedule runs nine tenths of the steps on rows of 128: --config.data.max_length=128.
"""

from flaxlm.config import tree

# layers, width
VARIANTS = {
  'mini': (4, 256),
  'tiny': (2, 128),
  'small': (4, 512),
  'base': (12, 768),
  'large': (24, 1024),
}


def get_config(variant):
  config = tree.new(model='encoder', objective='masked_lm')
  layers, width = VARIANTS[variant]
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.num_heads = width // 64
  config.model.token_types = 2
  config.model.norm_placement = 'post'
  config.model.norm_eps = 1e-12
  config.model.embedding_norm = True
  config.model.activation = 'gelu'
  config.model.init = 'bert'
  config.model.init_std = 0.02
  config.tokenizer.lowercase = True
  config.tokenizer.sentinels = 0
  config.optimizer.schedule = 'linear'
  config.optimizer.end_ratio = 0.0
  config.optimizer.eps = 1e-6
  config.optimizer.weight_decay = 0.01
  config.optimizer.clip_norm = 1.0
  if variant in ('base', 'large'):
    config.total_steps = 1_000_000
    config.global_batch_size = 256
    config.precision = 'bfloat16'
    config.model.max_length = 512
    config.model.dropout_rate = 0.1
    config.model.mlp_dropout_rate = 0.0
    config.model.embedding_dropout_rate = 0.1
    config.model.attention_dropout_rate = 0.1
    config.model.scan_layers = True
    config.tokenizer.vocab_size = 30522
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b2 = 0.999
    config.optimizer.warmup_steps = 10_000
    config.evaluation.every_steps = 5000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 5000
  else:
    config.total_steps = 2200
    config.global_batch_size = 16
    config.model.max_length = 128
    config.model.init_std = round(0.02 * (768 / width) ** 0.5, 3)
    config.tokenizer.vocab_size = 8192
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.98
    config.optimizer.warmup_steps = 200
    config.evaluation.max_batches = 50
  return config
