"""Denoising by rewriting: an encoder-decoder restores a corrupted text (BART, Lewis et al. 2020).

The corruptions of section 2.2 follow one another, each with a rate of its own: sentences change
places, the text is rotated, tokens are deleted, tokens are masked, and spans of tokens, with
lengths from a Poisson distribution, become one mask each (text infilling; a span of length 0 is
a mask put in). As published: infilling of 30 % of the tokens, and all sentences permuted.

The encoder reads BOS corrupted EOS. The decoder starts from EOS and writes BOS text EOS.
"""

import dataclasses

import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.packing import Piece, Stream, span_and_gap
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.objectives import losses
from flaxlm.objectives.base import Prompt, rounded
from flaxlm.objectives.next_token import NextToken

# What ends a sentence, as the last character of a token.
STOPS = tuple('.!?\u3002\uff01\uff1f')
SHARE = {'low': 0.0, 'high': 1.0}


@dataclasses.dataclass(frozen=True)
class Config(losses.VocabLossConfig):
  """Denoising by rewriting."""

  infill_rate: float = field(0.3, 'share of the tokens in spans that become one mask', **SHARE)
  mean_span_length: float = field(
    3.0, 'mean of the Poisson distribution of span lengths, in tokens', low=1.0
  )
  permute_rate: float = field(1.0, 'share of the sentences that change places', **SHARE)
  rotate_rate: float = field(0.0, 'share of the texts that begin in their middle', **SHARE)
  delete_rate: float = field(0.0, 'share of the tokens that are left out', **SHARE)
  mask_rate: float = field(0.0, 'share of the tokens that become a mask each', **SHARE)


class Objective(NextToken):
  """The loss is the mean over all decoder tokens."""

  families = ('encoder_decoder',)
  packing = 'concatenate'

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.tokenizer = t = tokenizer
    self._bos, self._eos = np.array([t.bos_id], np.int32), np.array([t.eos_id], np.int32)
    self._is_stop = np.array([t.decode([id]).endswith(STOPS) for id in range(t.vocab_size)])
    # No corruption makes a text longer (`infill` sees to it), so that n + 2 places always suffice.
    keys = ('decoder_inputs', 'targets', 'target_weights')
    length, target = config.max_length, config.data.max_target_length or config.max_length
    self.streams = {
      'encoder': Stream(length, ('encoder_inputs',), per_token=1, per_item=2, prefix='encoder_'),
      'decoder': Stream(target, keys, per_token=1, per_item=2, prefix='decoder_'),
    }
    self.span, self.gap = span_and_gap(self.streams)

  def features(self, piece: Piece, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """encoder_inputs [n]; decoder_inputs, targets, target_weights [t]."""
    tokens = piece.read(piece.start, piece.stop)
    if not len(tokens):
      return None
    targets = np.concatenate([self._bos, tokens, self._eos])
    return {
      'encoder_inputs': np.concatenate([self._bos, self.corrupt(tokens, rng), self._eos]),
      'decoder_inputs': np.concatenate([self._eos, targets[:-1]]),
      'targets': targets,
      'target_weights': np.ones(len(targets), np.float32),
    }

  def prompt(self, text: str) -> Prompt:
    """To restore a text, in which [MASK] stands for a gap of any length."""
    t = self.tokenizer
    # A published vocabulary may have no mask; only a text with a gap needs one.
    source = t.encode_marked(text, {'[MASK]': t.mask_id} if '[MASK]' in text else {})
    source = np.concatenate([self._bos, source, self._eos])
    return Prompt(np.concatenate([self._eos, self._bos]), source, t.eos_id)

  def corrupt(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tokens [n] -> int32 [m <= n]; a rate of 0 leaves its corruption out."""
    c = self.config
    if c.permute_rate:
      tokens = self.permute(tokens, rng)
    if c.rotate_rate and rng.random() < c.rotate_rate:
      tokens = np.roll(tokens, -int(rng.integers(len(tokens))))
    if c.delete_rate:
      tokens = np.delete(tokens, _drawn(len(tokens), c.delete_rate, rng))
    if c.mask_rate:
      tokens = tokens.copy()
      tokens[_drawn(len(tokens), c.mask_rate, rng)] = self.tokenizer.mask_id
    return self.infill(tokens, rng) if c.infill_rate else tokens

  def permute(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A share of the sentences, drawn anew, in a drawn order; the others stay where they are."""
    sentences = np.split(tokens, np.flatnonzero(self._is_stop[tokens[:-1]]) + 1)
    moved = _drawn(len(sentences), self.config.permute_rate, rng)
    order = np.arange(len(sentences))
    order[moved] = rng.permutation(moved)
    return np.concatenate([sentences[i] for i in order])

  def infill(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spans become one mask each; together they have infill_rate * n tokens, rounded at random.

    Spans are put anywhere between the tokens that stay, and two may touch. The last one is cut to
    the number wanted. Spans of length 0 are left out where they would make the text longer.
    """
    n = len(tokens)
    noise = rounded(n * self.config.infill_rate, rng)
    # In another order than drawn: the last one is cut, and never empty.
    lengths = rng.permutation(_span_lengths(noise, self.config.mean_span_length, rng))
    places = np.sort(rng.integers(0, n - noise + 1, len(lengths)))
    # Each span is its mask and then its tokens, of which only the mask is kept.
    starts = places + np.cumsum(lengths) - lengths
    kept = np.ones(n, bool)
    kept[np.arange(noise) + np.repeat(places, lengths)] = False
    before = np.cumsum(kept) - kept
    marked = np.full(n - noise + len(lengths), self.tokenizer.mask_id, np.int32)
    # A kept token stands behind the kept ones before it, and the masks of spans that start by then.
    where = before[kept] + np.searchsorted(starts, np.flatnonzero(kept), side='right')
    marked[where] = tokens[kept]
    return marked


def _drawn(n: int, rate: float, rng: np.random.Generator) -> np.ndarray:
  """Indices, sorted, of `rate` * n of n things."""
  return np.sort(rng.permutation(n)[: rounded(n * rate, rng)])


def _span_lengths(total: int, mean: float, rng: np.random.Generator) -> np.ndarray:
  """Poisson lengths int [k] with a sum of `total`, at most `total` of them."""
  lengths = np.zeros(0, np.int64)
  while lengths.sum() < total:
    lengths = np.append(lengths, rng.poisson(mean, int(total / mean) + 4))
  stop = int(np.searchsorted(np.cumsum(lengths), total)) + 1 if total else 0
  lengths = lengths[:stop]
  if stop:
    lengths[-1] -= lengths.sum() - total
  empty = np.flatnonzero(lengths == 0)
  return np.delete(lengths, empty[: max(len(lengths) - total, 0)])
