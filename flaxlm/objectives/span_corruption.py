"""Span corruption (T5, Raffel et al. 2020, section 3.1.4).

Spans of the text become sentinels in the encoder's input, and the decoder writes each sentinel
followed by what stood there.

Every piece of a document is corrupted on its own: [kept 0] <0> [kept 1] <1> ... EOS and
<0> [span 0] <1> [span 1] ... EOS. Kept and noise spans alternate, beginning with a kept one.
"""

import dataclasses

import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.packing import Piece, Stream, span_and_gap
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.objectives import losses
from flaxlm.objectives.base import Prompt
from flaxlm.objectives.next_token import NextToken


@dataclasses.dataclass(frozen=True)
class Config(losses.VocabLossConfig):
  """Span corruption."""

  noise_density: float = field(0.15, 'share of the tokens that are noise', above=0.0, below=0.9)
  mean_span_length: float = field(3.0, 'mean length of a noise span, in tokens', low=1.0)


class Objective(NextToken):
  """The loss is the mean over all decoder tokens."""

  families = ('encoder_decoder',)
  packing = 'concatenate'
  sentinels = True

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.tokenizer = tokenizer
    self._bos = np.array([tokenizer.bos_id], np.int32)
    self._sentinels = np.array(tokenizer.sentinel_ids, np.int32)
    density = self.config.noise_density
    sentinels = density / self.config.mean_span_length
    slopes = {'encoder': 1 - density + sentinels, 'decoder': density + sentinels}
    # The constants are read off the exact lengths, so that the bounds hold and are tight.
    lengths = np.array([self.stream_lengths(n) for n in range(2, 4 * config.max_length)])
    n = np.arange(2, 4 * config.max_length)
    extra = {s: float((lengths[:, i] - slopes[s] * n).max()) for i, s in enumerate(slopes)}
    span = int((config.max_length - extra['encoder']) / slopes['encoder'])
    target = config.data.max_target_length or int(
      np.ceil(slopes['decoder'] * span + extra['decoder'])
    )
    keys = {
      'encoder': ('encoder_inputs',),
      'decoder': ('decoder_inputs', 'targets', 'target_weights'),
    }
    capacity = {'encoder': config.max_length, 'decoder': target}
    self.streams = {
      s: Stream(capacity[s], keys[s], per_token=slopes[s], per_item=extra[s], prefix=f'{s}_')
      for s in slopes
    }
    self.span, self.gap = span_and_gap(self.streams)
    spans = self._noise(self.span)[1]
    if spans > len(tokenizer.sentinel_ids):
      raise UserError(
        f'config.tokenizer.sentinels: rows of {config.max_length} tokens need {spans} sentinels at '
        f'this noise density, the tokenizer has {len(tokenizer.sentinel_ids)}'
      )

  def _noise(self, n: int) -> tuple[int, int]:
    """(noise tokens, spans) of a piece of n >= 2 tokens."""
    noise = min(max(round(n * self.config.noise_density), 1), n - 1)
    spans = min(max(round(noise / self.config.mean_span_length), 1), noise, n - noise)
    return noise, spans

  def stream_lengths(self, n: int) -> tuple[int, int]:
    """(encoder, decoder) tokens of a corrupted piece of n tokens, EOS included."""
    noise, spans = self._noise(n)
    return n - noise + spans + 1, noise + spans + 1

  def features(self, piece: Piece, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """encoder_inputs [n]; decoder_inputs, targets, target_weights [t]."""
    tokens = piece.read(piece.start, piece.stop)
    if len(tokens) < 2:
      return None
    inputs, targets = self.corrupt(tokens, rng)
    return {
      'encoder_inputs': inputs,
      'decoder_inputs': np.concatenate([self._bos, targets[:-1]]),
      'targets': targets,
      'target_weights': np.ones(len(targets), np.float32),
    }

  def prompt(self, text: str) -> Prompt:
    """To fill the gaps of a text, written <extra_id_0>, <extra_id_1>, ..."""
    t = self.tokenizer
    source = t.encode_marked(text, t.sentinel_marks)
    return Prompt(self._bos, np.append(source, t.eos_id), t.eos_id)

  def corrupt(self, tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """tokens [n >= 2] -> (encoder inputs, targets), both int32 and ending with EOS."""
    noise, spans = self._noise(len(tokens))
    kept_bounds = _bounds(len(tokens) - noise, spans, rng)
    noise_bounds = _bounds(noise, spans, rng)
    # Noise span i comes after kept spans 0 to i.
    is_noise = np.zeros(len(tokens), bool)
    is_noise[np.arange(noise) + np.repeat(kept_bounds[1:], np.diff(noise_bounds))] = True
    return (
      self._marked(tokens[~is_noise], kept_bounds[1:]),
      self._marked(tokens[is_noise], noise_bounds[:-1]),
    )

  def _marked(self, tokens: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Tokens with sentinel i put before the one at places[i], and EOS: int32 [n + spans + 1]."""
    marked = np.full(len(tokens) + len(places) + 1, self.tokenizer.eos_id, np.int32)
    places = places + np.arange(len(places))
    is_token = np.ones(len(marked), bool)
    is_token[places] = is_token[-1] = False
    marked[is_token] = tokens
    marked[places] = self._sentinels[: len(places)]
    return marked


def _bounds(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
  """Bounds [parts + 1], from 0 to `total`, of spans of length >= 1; all ways are equally likely."""
  bounds = np.zeros(parts + 1, np.int64)
  bounds[1:-1] = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
  bounds[-1] = total
  return bounds
