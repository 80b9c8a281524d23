"""The original Transformer: a post-norm encoder-decoder that learns to translate.

  python train.py --config=configs/transformer.py:mini --workdir=runs/translation \
      --config.data.train=train.tsv --config.data.text_column=en --config.task.target_column=de
  python -m flaxlm generate --workdir=runs/translation --prompt='...' --temperature=0

Rows are read from jsonl, csv, tsv or parquet. Variants: `mini` (3 + 3 layers, 256 wide) for two
cores; `base` and `big` as published (Vaswani et al. 2017, sections 3 and 5 and table 3): sinusoidal
positions, one table for source, target and output, scaled by sqrt(D) where it embeds, label
smoothing of 0.1, and the schedule of equation 3, of which learning_rate is a factor. Batches of
some 25,000 tokens of each language are 96 rows of 256, which hold several sentences each. Dropout
of attention and inside the MLP, and Adam's settings, are those of the released code and section
5.3.
"""

from flaxlm.config import tree

# layers of each stack, width, heads, dropout, updates, warm-up, D^-0.5
VARIANTS = {
  'mini': (3, 256, 4, 0.1, 3000, 400, 0.0625),
  'base': (6, 512, 8, 0.1, 100_000, 4000, 0.0442),
  'big': (6, 1024, 16, 0.3, 300_000, 4000, 0.03125),
}


def get_config(variant):
  config = tree.new(model='encoder_decoder', objective='seq2seq', task='text_to_text')
  layers, width, heads, dropout, steps, warmup, std = VARIANTS[variant]
  config.total_steps = steps
  config.objective.label_smoothing = 0.1
  config.model.num_layers = layers
  config.model.emb_dim = width
  config.model.num_heads = heads
  config.model.norm_placement = 'post'
  config.model.norm_eps = 1e-6
  config.model.activation = 'relu'
  config.model.position = 'sinusoidal'
  config.model.scale_embeddings = True
  config.model.dropout_rate = dropout
  config.model.embedding_dropout_rate = dropout
  config.model.attention_dropout_rate = 0.1
  config.model.init = 'gpt2'
  config.model.init_std = std
  config.tokenizer.model_type = 'bpe'
  config.tokenizer.sentinels = 0
  config.optimizer.learning_rate = 1.0
  config.optimizer.schedule = 'noam'
  config.optimizer.warmup_steps = warmup
  config.optimizer.b2 = 0.98
  config.optimizer.eps = 1e-9
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 0.0
  if variant == 'mini':
    config.global_batch_size = 16
    config.model.max_length = 128
    config.tokenizer.vocab_size = 8192
    config.evaluation.max_batches = 50
  else:
    config.global_batch_size = 96
    config.precision = 'bfloat16'
    config.model.max_length = 256
    config.model.scan_layers = True
    config.tokenizer.vocab_size = 37_000
    config.tokenizer.train_megabytes = 100.0
    config.evaluation.every_steps = 2000
    config.checkpoint.every_steps = 2000
  return config
