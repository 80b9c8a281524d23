"""Exact match and F1 of answers, in percent, by the rules of SQuAD's evaluation scripts.

Both compare an answer with each of the true ones, without case, punctuation, articles and the
amount of white space, and count the best (Rajpurkar et al. 2016, section 6.1).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_PUNCTUATION = str.maketrans('', '', string.punctuation)


def normalised(text: str) -> str:
  """Lower case, without (ASCII) punctuation and articles, single spaces between words."""
  text = text.lower().translate(_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def exact(prediction: str, answer: str) -> float:
  """1 where the two are the same text, normalised."""
  return float(normalised(prediction) == normalised(answer))


def f1(prediction: str, answer: str, version_2: bool = False) -> float:
  """Harmonic mean of precision and recall of the words of the prediction.

  version_2: two texts without words are the same (1), as in the script for SQuAD 2.0; that for 1.1
  gives them 0.
  """
  found, true = normalised(prediction).split(), normalised(answer).split()
  if version_2 and not (found and true):
    return float(found == true)
  same = (Counter(found) & Counter(true)).total()
  return 2 * same / (len(found) + len(true)) if same else 0.0


def score(measure: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
  """The best over all true answers; without any, '' is the true one."""
  return max(measure(prediction, answer) for answer in answers or [''])


def with_words(answers: Sequence[str]) -> list[str]:
  """The true answers that SQuAD 2.0 compares with: not those that are but an article or a dash."""
  return [answer for answer in answers if normalised(answer)]


def scores(
  predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], version_2: bool
) -> dict[str, float]:
  """exact_match and f1 over all questions, in percent.

  Args:
    predictions: question -> answer.
    answers: question -> true answers, of at least one question; none: it has no answer (2.0).
    version_2: by the rules for SQuAD 2.0, and also of the questions with an answer and of those
      without one by themselves, where there are some.
  """
  whole, words = {}, {}
  for question, prediction in predictions.items():
    true = with_words(answers[question]) if version_2 else answers[question]
    whole[question] = score(exact, prediction, true)
    words[question] = score(lambda p, a: f1(p, a, version_2), prediction, true)
  found = {'exact_match': _percent(whole.values()), 'f1': _percent(words.values())}
  if version_2:
    for name, wanted in (('has_answer', True), ('no_answer', False)):
      some = [question for question in predictions if bool(answers[question]) == wanted]
      if some:
        found[f'{name}_exact_match'] = _percent(whole[question] for question in some)
        found[f'{name}_f1'] = _percent(words[question] for question in some)
  return found


def best_threshold(
  scores_if_answered: Mapping[str, float],
  null_odds: Mapping[str, float],
  answers: Mapping[str, Sequence[str]],
) -> tuple[float, float]:
  """(best mean score in percent, the threshold that gives it) over all thresholds of SQuAD 2.0.

  A question whose odds are above the threshold is left without an answer.

  Args:
    scores_if_answered: question -> score of the best answer that is not empty.
    null_odds: question -> score of no answer less that of the best answer.
    answers: question -> true answers.
  """
  total = best = float(sum(not answers[question] for question in null_odds))
  threshold = min(null_odds.values(), default=0.0) - 1.0
  order = sorted(null_odds, key=null_odds.__getitem__)
  for place, question in enumerate(order):
    total += scores_if_answered[question] if answers[question] else -1.0
    last = place + 1 == len(order) or null_odds[order[place + 1]] > null_odds[question]
    if last and total > best:
      best, threshold = total, null_odds[question]
  return 100.0 * best / max(len(order), 1), threshold


def _percent(values) -> float:
  values = list(values)
  return 100.0 * sum(values) / len(values)
