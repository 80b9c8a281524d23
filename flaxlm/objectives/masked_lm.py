"""Masked language modelling with an objective on pairs (BERT, Devlin et al. 2019, section 3.1).

Of the real tokens, `mask_rate` are selected anew each epoch; of these 80 % become the mask token,
10 % a random token, 10 % stay. The vocabulary head runs on the selected positions only, and the
loss is their mean. Selected are single tokens, whole words, or spans of words as in SpanBERT (Joshi
et al. 2020, section 3.1).

A pair is [CLS] A [SEP] B [SEP]. Half of the time B is what follows A; else it is a span of another
document (next-sentence prediction), or A and B have changed places (sentence-order prediction of
ALBERT, Lan et al. 2020, section 3.1).
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
from flaxlm.objectives import base, losses
from flaxlm.types import Array, Batch, Mean

# A piece shorter than this is not cut into a pair: its halves would say too little.
MIN_PAIR = 16
# SpanBERT's distribution of span lengths, in words: geometric, cut off at the longest.
SPAN_STOP, LONGEST_SPAN = 0.2, 10
# What the keys, terms and metrics of a pair objective begin with.
PREFIXES = {'none': '', 'next_sentence': 'nsp', 'sentence_order': 'sop'}


@dataclasses.dataclass(frozen=True)
class Config(losses.VocabLossConfig):
  """Masked language modelling, with or without an objective on pairs."""

  mask_rate: float = field(0.15, 'share of the tokens that are predicted', above=0.0, below=1.0)
  mask_token_rate: float = field(
    0.8, 'share of the predicted tokens that become the mask token', low=0.0, high=1.0
  )
  random_token_rate: float = field(
    0.1, 'share of the predicted tokens that become a random token', low=0.0, high=1.0
  )
  masking: str = field(
    'token',
    'what is selected: each `token` by itself, a `whole_word`, or a `span` of words, whose tokens '
    'then share one fate (mask, random or kept)',
    choices=('token', 'whole_word', 'span'),
  )
  pairs: str = field(
    'next_sentence',
    'pairs, and a head that tells whether B follows A: `next_sentence` (else B is of another '
    'document), `sentence_order` (else they are swapped); `none`: no pairs',
    choices=tuple(PREFIXES),
  )

  def check(self) -> None:
    if self.mask_token_rate + self.random_token_rate > 1:
      raise UserError('random_token_rate: with mask_token_rate it must not exceed 1')


class Objective(base.Objective):
  """Loss terms mlm_loss and, with pairs, nsp_loss or sop_loss, each a mean over its positions."""

  families = ('encoder',)
  packing = 'concatenate'
  perplexity = 'mlm_loss'
  predicts_masks = True

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.tokenizer = tokenizer
    self._cls = np.array([tokenizer.cls_id], np.int32)
    self._sep = np.array([tokenizer.sep_id], np.int32)
    self._is_piece = np.ones(tokenizer.vocab_size, bool)
    self._is_piece[list(tokenizer.special_ids)] = False
    self._pieces = np.flatnonzero(self._is_piece)
    self._starts_word = tokenizer.starts_word if self.config.masking != 'token' else None
    self._pair = pair = PREFIXES[self.config.pairs]
    self.terms = ('mlm_loss', f'{pair}_loss') if pair else ('mlm_loss',)
    length, rate = config.max_length, self.config.mask_rate
    specials = 3 if pair else 2
    targets = int(np.ceil(rate * (length - specials))) + 1
    offset = {'target_positions': 'inputs', f'{pair}_positions': 'inputs'}
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
    if pair:
      self.streams[pair] = Stream(
        -(-length // MIN_PAIR),
        tuple(f'{pair}_{key}' for key in ('targets', 'positions', 'weights')),
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
    first, second, follows = tokens, tokens[:0], None
    if self._pair and n >= MIN_PAIR:
      first, second, follows = self._draw_pair(piece, tokens, rng)
    inputs, types = self._layout(first, second)
    features = self.corrupt(inputs, rng) | {'token_type_ids': types}
    if self._pair:
      pairs = int(follows is not None)
      features[f'{self._pair}_targets'] = np.full(pairs, 0 if follows else 1, np.int32)
      features[f'{self._pair}_positions'] = np.zeros(pairs, np.int32)
      features[f'{self._pair}_weights'] = np.ones(pairs, np.float32)
    return features

  def _draw_pair(
    self, piece: Piece, tokens: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray, bool]:
    """(A, B, whether B follows A), of the tokens of a piece; neither is less than a quarter."""
    n = len(tokens)
    if self.config.pairs == 'next_sentence' and piece.store.num_documents < 2:
      raise UserError(
        'config.objective.pairs: negatives come from another document, but the training or a '
        'validation text has only one; set config.data.documents or config.data.validation, or '
        'pairs to sentence_order or none'
      )
    cut = int(rng.integers(n // 4, n - n // 4))
    first, second = tokens[:cut], tokens[cut:]
    follows = bool(rng.random() < 0.5)
    if follows:
      return first, second, True
    if self.config.pairs == 'sentence_order':
      return second, first, False
    other = _span_of_another_document(piece, len(second), rng)
    return (first, other, False) if len(other) else (first, second, True)

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
    With words and spans it is the most: one that would exceed it is passed over or cut, but no
    word is.
    """
    c = self.config
    candidates = np.flatnonzero(self._is_piece[tokens])
    count = base.rounded(c.mask_rate * len(candidates), rng)
    if c.masking == 'token':
      positions = np.sort(rng.permutation(candidates)[:count])
      spans = np.arange(count)
    else:
      positions, spans = self._select_words(tokens, candidates, count, rng)
    # Tokens of a span share their fate; those of a word do not, as in BERT.
    fate, random = rng.random((2, len(positions)))
    fate = fate[spans] if c.masking == 'span' else fate
    masked = fate < c.mask_token_rate
    swapped = ~masked & (fate < c.mask_token_rate + c.random_token_rate)
    inputs = tokens.copy()
    inputs[positions[masked]] = self.tokenizer.mask_id
    inputs[positions[swapped]] = self._pieces[(random[swapped] * len(self._pieces)).astype(int)]
    return {
      'inputs': inputs,
      'targets': tokens[positions],
      'target_positions': positions.astype(np.int32),
      'target_weights': np.ones(len(positions), np.float32),
    }

  def _select_words(
    self, tokens: np.ndarray, candidates: np.ndarray, count: int, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` positions of whole words, sorted, and the number of the span each is in.

    Every word in turn, in random order, begins a span, unless it is in one. The span ends before a
    word that is taken, stands beyond a special token, or does not fit into what is left of `count`.
    """
    if not len(candidates):
      return candidates, candidates
    begins = self._starts_word[tokens[candidates]]
    begins[0] = True
    begins[1:] |= np.diff(candidates) > 1
    starts = np.flatnonzero(begins)
    sizes = np.diff(starts, append=len(candidates)).tolist()
    firsts = candidates[starts].tolist()
    lengths = np.ones(len(starts), np.int64)
    if self.config.masking == 'span':
      lengths = _span_lengths(len(starts), rng)
    span_of = np.full(len(starts), -1)
    left = count
    for number, anchor in enumerate(rng.permutation(len(starts)).tolist()):
      for word in range(anchor, min(anchor + int(lengths[number]), len(starts))):
        apart = word > anchor and firsts[word] > firsts[word - 1] + sizes[word - 1]
        if span_of[word] >= 0 or apart or sizes[word] > left:
          break
        span_of[word] = number
        left -= sizes[word]
      if not left:
        break
    spans = np.repeat(span_of, sizes)
    chosen = spans >= 0
    return candidates[chosen], np.unique(spans[chosen], return_inverse=True)[1]

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model, self._pair)

  def weights(self, batch: Batch) -> dict[str, Array]:
    weights = {'mlm_loss': batch['target_weights'].sum()}
    if self._pair:
      weights[f'{self._pair}_loss'] = batch[f'{self._pair}_weights'].sum()
    return weights

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics."""
    targets, weights = batch['targets'], batch['target_weights']
    total, loss, accuracy = losses.token_metrics(self.config, outputs['mlm'], targets, weights)
    totals, metrics = {'mlm_loss': total}, {'mlm_loss': loss, 'mlm_accuracy': accuracy}
    if self._pair:
      pair = self._pair
      loss, accuracy = losses.class_metrics(
        outputs[pair], batch[f'{pair}_targets'], batch[f'{pair}_weights']
      )
      totals[f'{pair}_loss'] = loss.total
      metrics |= {f'{pair}_loss': loss, f'{pair}_accuracy': accuracy}
    return totals, metrics


class Head(nn.Module):
  """Vocabulary distribution at the selected positions; B follows A (0) or not (1) at [CLS].

  pair: 'nsp' or 'sop', which names the second head; '' for none.
  """

  config: TransformerConfig
  pair: str

  @nn.compact
  def __call__(self, output, batch, deterministic):
    selected = gather(output.hidden, batch['target_positions'])
    outputs = {
      'mlm': VocabHead(self.config, transform=True, bias=True, name='mlm')(
        selected, output.embedding
      )
    }
    if self.pair:
      pooled = gather(output.hidden, batch[f'{self.pair}_positions'])
      head = ClassHead(self.config, 2, pooler='tanh', name=self.pair)
      outputs[self.pair] = head(pooled, deterministic)
    return outputs


def _span_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
  """int [count], geometric on 1 ... LONGEST_SPAN: the part beyond is left out, not set to it."""
  reach = 1 - (1 - SPAN_STOP) ** LONGEST_SPAN
  drawn = np.log1p(-rng.random(count) * reach) / np.log1p(-SPAN_STOP)
  return np.minimum(drawn.astype(np.int64) + 1, LONGEST_SPAN)


def _span_of_another_document(piece: Piece, length: int, rng: np.random.Generator) -> np.ndarray:
  """At most `length` tokens: int32 [n]; none of a document that has none."""
  store = piece.store
  other = int(rng.integers(store.num_documents - 1))
  other += other >= piece.document
  room = max(int(store.lengths[other]) - length, 0)
  start = int(rng.integers(room + 1))
  return store.read(other, start, start + length)
