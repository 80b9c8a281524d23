"""Text to text: learns to write a target for each source, from labelled rows.

  python train.py --config=configs/text_to_text.py --workdir=runs/answers \
      --config.init_from=runs/t5-mini --config.data.train=train.jsonl \
      --config.data.text_column=question --config.task.target_column=answer
  python eval.py --workdir=runs/answers
  python -m flaxlm generate --workdir=runs/answers --prompt='...' --temperature=0

Rows are read from jsonl, csv, tsv or parquet. Variants: `encoder_decoder` (the encoder reads the
source, the decoder writes the target) and `decoder` (prompt and completion in one row, loss on the
completion). With `init_from`, model, tokenizer and what stands round a text (objective.marks) are
those of the checkpoint. Without it the model is trained from scratch, in the size `mini` of
configs/t5.py or configs/gpt2.py.

Evaluation reports loss, perplexity, token accuracy and exact match, and writes each row's scores.
"""

from configs import bart, classify, gpt2, t5
from flaxlm.config import tree

VARIANTS = ('encoder_decoder', 'decoder')
ANY_MODEL = VARIANTS
# Name -> recipe of the trunk, its family, the objective that writes.
TRUNKS = {
  'encoder_decoder': (t5, 'encoder_decoder', 'seq2seq'),
  'bart': (bart, 'encoder_decoder', 'seq2seq'),
  'decoder': (gpt2, 'decoder', 'completion'),
}


def get_config(variant):
  return writer(variant, 'text_to_text')


def writer(trunk, task):
  """The config of a task that writes, with a trunk of TRUNKS in its mini size."""
  recipe, family, objective = TRUNKS[trunk]
  config = tree.new(model=family, objective=objective, task=task)
  classify.trunk_and_schedule(config, recipe)
  config.optimizer.weight_decay = 0.0
  if trunk == 'bart':
    config.objective.marks = 'bart'
  return config
