"""Summarisation: learns to write a short text for a long one.

  python train.py --config=configs/summarize.py --workdir=runs/tldr \
      --config.init_from=runs/t5-mini --config.data.train=train.jsonl \
      --config.data.text_column=source --config.task.target_column=target
  python eval.py --workdir=runs/tldr

A source may be a json list of sentences, a target a json list of reference summaries. Variants:
`encoder_decoder` (configs/t5.py), `bart` (configs/bart.py), `decoder` (configs/gpt2.py, prompt and
completion); with `init_from`, the model is that of the checkpoint.

Evaluation reports the loss, and ROUGE-1, ROUGE-2 and ROUGE-L of the texts that the model writes
(during training, of the first evaluation.max_written); eval.py puts those of the first
task.lead_sentences sentences of each source beside them.
"""

from configs import text_to_text

VARIANTS = tuple(text_to_text.TRUNKS)
ANY_MODEL = VARIANTS


def get_config(variant):
  config = text_to_text.writer(variant, 'summarization')
  config.evaluation.max_written = 100
  return config
