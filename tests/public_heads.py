"""The head here of a public class, without a tokenizer or a task."""

from flaxlm.config import tree
from flaxlm.models.family import family_of
from flaxlm.objectives import masked_lm, next_token, permutation_lm, pooled, span_qa, tagging


def head_of(public):
  """The Module that the objective of an `interop.convert.Public` puts on the trunk."""
  model, declared = public.model, public.head
  if declared.objective == 'masked_lm':
    return masked_lm.Head(model, masked_lm.PREFIXES[declared.options['pairs']])
  if declared.objective == 'permutation_lm':
    return permutation_lm.Head(model)
  if declared.objective == 'tagging':
    return tagging.Head(model, len(public.labels), declared.options['pooler'])
  if declared.objective == 'span_qa':
    return span_qa.Head(model, declared.options['pooler'])
  if not declared.is_pooled:
    return next_token.Head(model)
  options = tree.node_class('objective', declared.objective)(declared.objective, **declared.options)
  read = options.resolved(model.name)
  classes = len(public.labels) or 1
  return pooled.Head(model, classes, read.pooling, family_of(model.name), read.pooler)
