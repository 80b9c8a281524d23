"""RoBERTa: BERT's encoder trained on masked tokens alone, on full sentences and larger batches.

  python train.py --config=configs/roberta.py:mini --workdir=runs/roberta-mini \
      --config.data.train=corpus.txt

Variants: `mini` (4 layers, 256 wide) for two cores and a corpus of some 50 MB; `base` and `large`
as published (Liu et al. 2019, sections 2, 4 and table 9), which want accelerators. Masks are drawn
anew each epoch, there is no next-sentence prediction, and rows are filled with full sentences. As
released, positions are counted from row 2 of their table, and there is one row of token types.
"""

from flaxlm.config import tree

# layers, width, peak learning rate, warm-up
VARIANTS = {
  'mini': (4, 256, 1e-3, 200),
  'base': (12, 768, 6e-4, 24_000),
  'large': (24, 1024, 4e-4, 30_000),
}


def get_config(variant):
  config = tree.new(model='encoder', objective='masked_lm')
  layers, width, learning_rate, warmup = VARIANTS[variant]
  config.objective.pairs = 'none'
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.num_heads = width // 64
  config.model.token_types = 1
  config.model.position_offset = 2
  config.model.norm_placement = 'post'
  config.model.norm_eps = 1e-5
  config.model.embedding_norm = True
  config.model.activation = 'gelu'
  config.model.init = 'bert'
  config.model.init_std = 0.02
  config.tokenizer.name = 'byte_bpe'
  config.tokenizer.sentinels = 0
  config.optimizer.learning_rate = learning_rate
  config.optimizer.schedule = 'linear'
  config.optimizer.end_ratio = 0.0
  config.optimizer.warmup_steps = warmup
  config.optimizer.b2 = 0.98
  config.optimizer.eps = 1e-6
  config.optimizer.weight_decay = 0.01
  if variant == 'mini':
    config.total_steps = 2200
    config.global_batch_size = 16
    config.model.max_length = 128
    config.model.init_std = 0.035  # 0.02 * sqrt(768 / 256)
    config.tokenizer.vocab_size = 8192
    config.optimizer.clip_norm = 1.0
    config.evaluation.max_batches = 50
  else:
    config.total_steps = 500_000
    config.global_batch_size = 8192
    config.precision = 'bfloat16'
    config.model.max_length = 512
    config.model.dropout_rate = 0.1
    config.model.mlp_dropout_rate = 0.0
    config.model.embedding_dropout_rate = 0.1
    config.model.attention_dropout_rate = 0.1
    config.model.scan_layers = True
    config.tokenizer.vocab_size = 50265
    config.tokenizer.train_megabytes = 100.0
    config.optimizer.clip_norm = 0.0
    config.evaluation.every_steps = 5000
    config.evaluation.max_batches = 100
    config.checkpoint.every_steps = 5000
  return config
