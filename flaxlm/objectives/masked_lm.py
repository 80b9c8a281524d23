"""Masked language modelling with next-sentence prediction (BERT, Devlin et al. 2019, section 3.1).

Of the real tokens, `mask_rate` are selected anew each epoch; of these 80 % become the mask token,
10 % a random token, 10 % stay. The vocabulary head runs on the selected positions only, and the
loss is their mean. A pair is [CLS] A [SEP] B [SEP]; half of the time B is what follows A, else it
is a span of another document.
"""

import dataclasses

import flax.linen as nn
import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Piece, Stream, span_and_gap
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.models.heads import ClassHead, VocabHead, gather
from flaxlm.objectives import losses
from flaxlm.types import Array, Batch, Mean

# A piece shorter than this is not cut into a pair: its halves would say too little.
MIN_PAIR = 16


@dataclasses.dataclass(frozen=True)
class Config(losses.VocabLossConfig):
  """Masked language modelling, with or without next-sentence prediction."""

  mask_rate: float = field(0.15, 'share of the tokens that are predicted', above=0.0, below=1.0)
  mask_token_rate: float = field(
    0.8, 'share of the predicted tokens that become the mask token', low=0.0, high=1.0
  )
  random_token_rate: float = field(
    0.1, 'share of the predicted tokens that become a random token', low=0.0, high=1.0
  )
  next_sentence: bool = field(True, 'pairs, and a head that tells whether B follows A')

  def check(self) -> None:
    if self.mask_token_rate + self.random_token_rate > 1:
      raise UserError('random_token_rate: with mask_token_rate it must not exceed 1')


class Objective:
  """Loss terms mlm_loss and, with pairs, nsp_loss, each the mean over its own positions."""

  families = ('encoder',)
  packing = 'concatenate'
  perplexity = 'mlm_loss'
  likelihood = False

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.tokenizer = tokenizer
    self._cls = np.array([tokenizer.cls_id], np.int32)
    self._sep = np.array([tokenizer.sep_id], np.int32)
    self._is_piece = np.ones(tokenizer.vocab_size, bool)
    self._is_piece[list(tokenizer.special_ids)] = False
    self._pieces = np.flatnonzero(self._is_piece)
    pairs = self.config.next_sentence
    self.terms = ('mlm_loss', 'nsp_loss') if pairs else ('mlm_loss',)
    length, rate = config.max_length, self.config.mask_rate
    specials = 3 if pairs else 2
    targets = int(np.ceil(rate * (length - specials))) + 1
    offset = {'target_positions': 'inputs', 'nsp_positions': 'inputs'}
    self.streams = {
      'inputs': Stream(
        length, ('inputs', 'token_type_ids'), per_token=1, per_item=specials, prefix=''
      ),
      'targets': Stream(
        targets,
        ('targets', 'target_positions', 'target_weights'),
        per_token=rate,
        per_item=1,
        offset=offset,
      ),
    }
    if pairs:
      self.streams['nsp'] = Stream(
        -(-length // MIN_PAIR),
        ('nsp_targets', 'nsp_positions', 'nsp_weights'),
        per_token=1 / MIN_PAIR,
        offset=offset,
      )
    self.span, self.gap = span_and_gap(self.streams)

  def features(self, piece: Piece, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """One packed item: inputs and types [n], selected positions [t], the pair's label [0 or 1]."""
    tokens = piece.read(piece.start, piece.stop)
    n = len(tokens)
    if not n:
      return None
    follows = None
    first, second = tokens, tokens[:0]
    if self.config.next_sentence and n >= MIN_PAIR:
      cut = int(rng.integers(n // 4, n - n // 4))
      first, second = tokens[:cut], tokens[cut:]
      follows = bool(rng.random() < 0.5)
      if not follows:
        second = _span_of_another_document(piece, len(second), rng)
    inputs, types = self._layout(first, second)
    features = self.corrupt(inputs, rng) | {'token_type_ids': types}
    if self.config.next_sentence:
      pairs = int(follows is not None)
      features['nsp_targets'] = np.full(pairs, 0 if follows else 1, np.int32)
      features['nsp_positions'] = np.zeros(pairs, np.int32)
      features['nsp_weights'] = np.ones(pairs, np.float32)
    return features

  def _layout(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] A [SEP] and, where there is one, B [SEP], with types 0 and 1."""
    tail = [second, self._sep] if len(second) else []
    inputs = np.concatenate([self._cls, first, self._sep, *tail])
    types = np.zeros(len(inputs), np.int32)
    types[len(first) + 2 :] = 1
    return inputs, types

  def corrupt(self, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Selects and replaces tokens, int32 [n]; special tokens are never selected.

    The number selected is mask_rate * n rounded up or down at random, so that its mean is exact.
    """
    c = self.config
    candidates = np.flatnonzero(self._is_piece[tokens])
    count = int(c.mask_rate * len(candidates) + rng.random())
    positions = np.sort(rng.permutation(candidates)[:count])
    fate, random = rng.random((2, count))
    masked = fate < c.mask_token_rate
    swapped = ~masked & (fate < c.mask_token_rate + c.random_token_rate)
    inputs = tokens.copy()
    inputs[positions[masked]] = self.tokenizer.mask_id
    inputs[positions[swapped]] = self._pieces[(random[swapped] * len(self._pieces)).astype(int)]
    return {
      'inputs': inputs,
      'targets': tokens[positions],
      'target_positions': positions.astype(np.int32),
      'target_weights': np.ones(count, np.float32),
    }

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model, self.config.next_sentence)

  def weights(self, batch: Batch) -> dict[str, Array]:
    weights = {'mlm_loss': batch['target_weights'].sum()}
    if self.config.next_sentence:
      weights['nsp_loss'] = batch['nsp_weights'].sum()
    return weights

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics."""
    targets, weights = batch['targets'], batch['target_weights']
    total, loss, accuracy = losses.token_metrics(self.config, outputs['mlm'], targets, weights)
    totals, metrics = {'mlm_loss': total}, {'mlm_loss': loss, 'mlm_accuracy': accuracy}
    if self.config.next_sentence:
      loss, accuracy = losses.class_metrics(
        outputs['nsp'], batch['nsp_targets'], batch['nsp_weights']
      )
      totals['nsp_loss'] = loss.total
      metrics |= {'nsp_loss': loss, 'nsp_accuracy': accuracy}
    return totals, metrics


class Head(nn.Module):
  """Vocabulary distribution at the selected positions; B follows A (0) or not (1) at [CLS]."""

  config: TransformerConfig
  next_sentence: bool

  @nn.compact
  def __call__(self, output, batch, deterministic):
    selected = gather(output.hidden, batch['target_positions'])
    outputs = {
      'mlm': VocabHead(self.config, transform=True, name='mlm')(selected, output.embedding)
    }
    if self.next_sentence:
      pooled = gather(output.hidden, batch['nsp_positions'])
      outputs['nsp'] = ClassHead(self.config, 2, pooler=True, name='nsp')(pooled, deterministic)
    return outputs


def _span_of_another_document(piece: Piece, length: int, rng: np.random.Generator) -> np.ndarray:
  store = piece.store
  if store.num_documents < 2:
    raise UserError(
      'config.objective.next_sentence: negatives come from another document, but the corpus has '
      'only one; set config.data.documents or next_sentence=False'
    )
  other = int(rng.integers(store.num_documents - 1))
  other += other >= piece.document
  room = max(int(store.lengths[other]) - length, 0)
  start = int(rng.integers(room + 1))
  return store.read(other, start, start + length)
