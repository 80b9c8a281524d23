"""nanoGPT's recipe for a CPU: a decoder of 0.8 M parameters that reads and writes characters.

  python train.py --config=configs/nanogpt_char.py --workdir=runs/shakespeare \
      --config.data.train=shakespeare.txt

The file is one document; its last tenth, by characters, is held out, and training rows are windows
of 64 characters at random offsets. Everything else but the initialisation is as in nanoGPT's
`train_shakespeare_char` with the settings its README gives for CPUs: no dropout, no biases, exact
GELU, and AdamW whose decay spares nothing but the norms. On tiny Shakespeare nanoGPT reports a
validation loss of 1.88 nats per character. Source: github.com/karpathy/nanoGPT, README, "quick
start". nanoGPT draws every model with GPT-2's standard deviation of 0.02, which suits a width of
768; here it grows as the root of the width shrinks (docs/results.md has both).
"""

from flaxlm.config import tree


def get_config():
  config = tree.new(model='decoder', objective='causal_lm')
  config.total_steps = 2000
  config.global_batch_size = 12
  config.data.documents = 'file'
  config.data.holdout = 0.1
  config.data.sampling = 'windows'
  config.tokenizer.name = 'characters'
  config.tokenizer.sentinels = 0
  config.objective.boundaries = False

  config.model.num_layers = 4
  config.model.num_heads = 4
  config.model.emb_dim = 128
  config.model.max_length = 64
  config.model.activation = 'gelu'
  config.model.use_bias = False
  config.model.tie_embeddings = True
  config.model.dropout_rate = 0.0
  config.model.init = 'gpt2'
  config.model.init_std = 0.05  # 0.02 * sqrt(768 / 128)

  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = 'cosine'
  config.optimizer.warmup_steps = 100
  config.optimizer.end_ratio = 0.1
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.99
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip_norm = 1.0

  config.evaluation.every_steps = 500
  config.evaluation.batch_size = 128
  config.checkpoint.every_steps = 500
  return config
