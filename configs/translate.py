"""Translation: learns to write a sentence in another language.

  python train.py --config=configs/translate.py --workdir=runs/en-de \
      --config.data.train=train.en+train.de --config.data.validation=val.en+val.de \
      --config.data.test=test.en+test.de
  python eval.py --workdir=runs/en-de

Line-parallel files stand with a plus between, the source first. Rows of a jsonl, csv, tsv or
parquet have the columns `text` and `target`, or those that data.text_column and task.target_column
name (numbers, where there is no header). Variants, each in the size `mini` of its recipe:
`transformer` (configs/transformer.py, with its schedule and label smoothing, from scratch);
`encoder_decoder` (configs/t5.py), `bart` and `decoder` (configs/gpt2.py, prompt and completion), to
start from such a checkpoint with `init_from`, which then gives the model.

Evaluation reports the loss, and BLEU and chrF of the texts that the model writes, with sacreBLEU's
signatures; during training, of the first evaluation.max_written texts.
"""

from configs import text_to_text, transformer
from flaxlm.config import tree

VARIANTS = ('transformer', *text_to_text.TRUNKS)
ANY_MODEL = VARIANTS


def get_config(variant):
  if variant == 'transformer':
    config = transformer.get_config('mini')
    with config.unlocked():
      config.task = tree.named_dict('task', 'translation')
    config.evaluation.every_steps = 500
  else:
    config = text_to_text.writer(variant, 'translation')
  config.evaluation.max_written = 200
  return config
