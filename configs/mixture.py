"""A mixture of denoisers (Tay et al. 2022, section 3.1): an encoder-decoder that learns to fill in
short gaps, as T5 does, and long ones.

  python train.py --config=configs/mixture.py --workdir=runs/mixture \
      --config.data.train=corpus.txt

Each row is made by one member: `r`, regular span corruption, or `x`, in which half of the text is
missing, in longer spans. Any objectives of running text that share batch keys, head and loss can be
mixed: --config.objective.members=r=span_corruption,bart=denoising --config.objective.settings=
--config.objective.weights=0.8,0.2. Metrics are reported over all rows and by member (`x/loss`).
Model, tokenizer and optimizer are those of configs/t5.py:mini.
"""

from configs import t5
from flaxlm.config import tree


def get_config():
  config = t5.get_config('mini')
  with config.unlocked():
    config.objective = tree.named_dict('objective', 'mixture')
  config.objective.members = ('r=span_corruption', 'x=span_corruption')
  config.objective.weights = (0.7, 0.3)
  config.objective.settings = ('x.noise_density=0.5', 'x.mean_span_length=8')
  return config
