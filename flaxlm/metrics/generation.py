"""Metrics of texts that a model wrote: BLEU and chrF by sacrebleu, ROUGE by rouge-score."""

import re
from collections.abc import Sequence

ROUGE = ('rouge1', 'rouge2', 'rougeL')
# The end of a sentence in running text; abbreviations cost no more than a sentence cut early.
_SENTENCE = re.compile(r'(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*')


def translation(
  outputs: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = '13a'
) -> tuple[dict[str, float], dict[str, str]]:
  """BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of a corpus of detokenised texts.

  Args:
    outputs: N > 0 texts.
    references: of each output, one or more.
    tokenizer: of BLEU, a name that sacrebleu knows.

  Returns:
    bleu and chrf in percent; and their signatures, which say how they were computed (Post 2018).
  """
  from sacrebleu.metrics import BLEU, CHRF

  most = max(len(texts) for texts in references)
  # sacrebleu takes the first reference of all texts, then the second of all; None where there is
  # none.
  streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
  values, signatures = {}, {}
  for name, metric in (('bleu', BLEU(tokenize=tokenizer)), ('chrf', CHRF())):
    values[name] = float(metric.corpus_score(list(outputs), streams).score)
    signatures[f'{name}_signature'] = str(metric.get_signature())
  return values, signatures


def rouge(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
  """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): mean F-measure in [0, 1], with Porter's stemmer.

  Of several references each counts the one that is best for it.

  Args:
    outputs: N > 0 texts.
    references: of each output, one or more.
  """
  from rouge_score.rouge_scorer import RougeScorer

  scorer = RougeScorer(list(ROUGE), use_stemmer=True)
  totals = dict.fromkeys(ROUGE, 0.0)
  for output, texts in zip(outputs, references, strict=True):
    scores = [scorer.score(text, output) for text in texts]
    for name in ROUGE:
      totals[name] += max(score[name].fmeasure for score in scores)
  return {name: total / len(outputs) for name, total in totals.items()}


def sentences(text: str) -> list[str]:
  """The sentences of a text, cut at white space behind a full stop, `?` or `!`.

  Behind those of Chinese and Japanese there need not be any.
  """
  return [part for part in _SENTENCE.split(text.strip()) if part]
