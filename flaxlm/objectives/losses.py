"""Cross-entropy over a vocabulary, without ever holding the logits of a whole batch.

One pass over chunks computes loss and gradient together, so the backward pass repeats no product
and the memory is that of one chunk of logits.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from flaxlm.config.field import Named, field
from flaxlm.sharding import on_shards
from flaxlm.types import Array, Mean, VocabOutput

# Logits in one chunk: 64 MiB of float32. Larger gains nothing on an accelerator; much smaller
# leaves matrix units idle.
CHUNK_LOGITS = 2**24


@dataclasses.dataclass(frozen=True)
class VocabLossConfig(Named):
  """Fields of every objective that predicts tokens. The loss of evaluations is without either."""

  label_smoothing: float = field(
    0.0, 'probability taken from the target and spread over the vocabulary', low=0.0, below=1.0
  )
  z_loss: float = field(0.0, 'weight of log(Z)^2, which keeps the logits near 0', low=0.0)


def token_metrics(
  config: VocabLossConfig, output: VocabOutput, targets: Array, weights: Array
) -> tuple[Array, Mean, Mean]:
  """(loss summed over tokens, with smoothing and z-loss; plain loss; accuracy), all in float32.

  output.hidden: [B, T, D]; targets int32 and weights float32: [B, T].
  """
  total, (nll, correct) = _cross_entropy(
    output.vocab_size, output.softcap, config.label_smoothing, config.z_loss,
    output.hidden, output.table, output.bias, targets, weights,
  )  # fmt: skip
  weight = weights.sum()
  return total, Mean(nll, weight), Mean(correct, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _cross_entropy(vocab_size, softcap, smoothing, z_loss, hidden, table, bias, targets, weights):
  chunk = partial(_chunk, vocab_size, softcap, smoothing, z_loss, False)
  (total, nll, correct), _ = _over_rows(chunk, (table, bias), (hidden, targets, weights))
  return total, (nll, correct)


def _forward(vocab_size, softcap, smoothing, z_loss, hidden, table, bias, targets, weights):
  chunk = partial(_chunk, vocab_size, softcap, smoothing, z_loss, True)
  sums, d_hidden = _over_rows(chunk, (table, bias), (hidden, targets, weights))
  total, nll, correct, d_table, d_bias = sums
  return (total, (nll, correct)), (d_hidden, d_table, d_bias, table[:0], bias, targets, weights)


def _backward(vocab_size, softcap, smoothing, z_loss, saved, cotangents):
  # The objective is a sum, so one scalar scales what the forward pass already computed.
  d_hidden, d_table, d_bias, table, bias, _, weights = saved
  scale = cotangents[0]
  return (
    (d_hidden * scale).astype(d_hidden.dtype),
    (d_table * scale).astype(table.dtype),
    None if bias is None else (d_bias * scale).astype(bias.dtype),
    None,
    jnp.zeros_like(weights),
  )


_cross_entropy.defvjp(_forward, _backward)


def _over_rows(chunk, head, tokens):
  """`_over_chunks` of the rows of each device; what it sums is added over the devices once."""
  table, bias = head
  # In the dtype of the products before it is gathered, which halves what passes between devices.
  head = table.astype(tokens[0].dtype), bias
  divided = on_shards(partial(_over_chunks, chunk), [(), ('batch',)], ('batch',), sums=True)
  return divided(head, tokens)


def in_chunks(xs: tuple[Array, ...], vocabulary: int) -> tuple[Array, ...]:
  """Arrays [B, T, ...] -> [chunks, B, t, ...], padded: the logits of a chunk fit CHUNK_LOGITS."""
  batch, length = xs[0].shape[:2]
  parts = min(length, -(-batch * length * vocabulary // CHUNK_LOGITS))
  size = -(-length // parts)

  def split(x: Array) -> Array:
    x = jnp.pad(x, [(0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)

  return tuple(map(split, xs))


def _over_chunks(chunk, head, tokens):
  """Runs `chunk` along T; returns (summed tuple, d_hidden or None).

  head: (table, bias); tokens: (hidden, targets, weights) of the rows of one device.
  """
  (table, _), (hidden, *_) = head, tokens
  batch, length, _ = hidden.shape
  xs = in_chunks(tokens, table.shape[0])
  if len(xs[0]) == 1:
    return chunk(head, tokens)

  def step(sums, x):
    new, d_hidden = chunk(head, x)
    return jax.tree.map(jnp.add, sums, new), d_hidden

  shapes = jax.eval_shape(lambda x: chunk(head, x)[0], jax.tree.map(lambda x: x[0], xs))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  sums, d_hidden = jax.lax.scan(step, zeros, xs)
  if d_hidden is not None:
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(batch, -1, hidden.shape[-1])[:, :length]
  return sums, d_hidden


def _chunk(vocab_size, softcap, smoothing, z_loss, with_gradient, head, tokens):
  """Sums over one chunk [B, t]; with_gradient: also those of the summed loss."""
  table, bias = head
  hidden, targets, weights = tokens
  compute = table.astype(hidden.dtype)
  flat = hidden.reshape(-1, hidden.shape[-1])
  logits = jnp.dot(flat, compute.T, preferred_element_type=jnp.float32)
  targets, weights = targets.reshape(-1), weights.reshape(-1)
  if bias is not None:
    logits = logits + bias.astype(jnp.float32)
  if softcap:
    bounded = jnp.tanh(logits / softcap)
    logits = softcap * bounded
  column = jnp.arange(table.shape[0])
  valid = column < vocab_size
  if vocab_size < table.shape[0]:
    logits = jnp.where(valid, logits, -1e30)
  top = logits.max(-1, keepdims=True)
  exponentials = jnp.exp(logits - top)
  normaliser = exponentials.sum(-1, keepdims=True)
  log_z = (top + jnp.log(normaliser))[..., 0]
  picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  nll = log_z - picked
  # A tie counts as right only for what argmax cannot tell apart either; no second pass is needed.
  correct = (picked >= top[..., 0]) * weights
  losses = nll
  if smoothing:
    mean = jnp.where(valid, logits, 0.0).sum(-1) / vocab_size
    losses = (1 - smoothing) * nll + smoothing * (log_z - mean)
  if z_loss:
    losses = losses + z_loss * log_z**2
  sums = (losses * weights).sum(), (nll * weights).sum(), correct.sum()
  if not with_gradient:
    return sums, None
  d_logits = exponentials / normaliser
  if z_loss:
    d_logits = d_logits * (1 + 2 * z_loss * log_z)[..., None]
  d_logits = d_logits - (1 - smoothing) * (column == targets[..., None])
  if smoothing:
    d_logits = d_logits - smoothing / vocab_size * valid
  d_logits = d_logits * weights[..., None]
  if softcap:
    d_logits = d_logits * (1 - bounded**2)
  d_bias = None if bias is None else d_logits.sum(0)
  d_logits = d_logits.astype(hidden.dtype)
  d_hidden = (d_logits @ compute).reshape(hidden.shape)
  d_table = jnp.dot(d_logits.T, flat, preferred_element_type=jnp.float32)
  return (*sums, d_table, d_bias), d_hidden


def token_scores(output: VocabOutput, targets: Array) -> tuple[Array, Array]:
  """(nll, whether the target is the likeliest token), float32 [B, T] each, of every target."""
  chunk = partial(_chunk, output.vocab_size, output.softcap, 0.0, 0.0, False)

  def one(hidden, target):
    tokens = hidden[None, None], target[None, None], jnp.ones((1, 1))
    (_, nll, correct), _ = chunk((output.table, output.bias), tokens)
    return nll, correct

  # As many tokens of each row at once as keep the logits to one chunk.
  columns = jnp.moveaxis(output.hidden, 1, 0), jnp.moveaxis(targets, 1, 0)
  size = max(1, CHUNK_LOGITS // (targets.shape[0] * output.table.shape[0]))
  scores = jax.lax.map(lambda xs: jax.vmap(one)(*xs), columns, batch_size=size)
  return tuple(jnp.moveaxis(score, 0, 1) for score in scores)


def smoothed_class_loss(logits: Array, targets: Array, weights: Array, smoothing: float) -> Array:
  """Cross-entropy summed over targets, `smoothing` of whose probability is spread over classes."""
  log_p = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  return (((1 - smoothing) * nll - smoothing * log_p.mean(-1)) * weights).sum()


def class_metrics(logits: Array, targets: Array, weights: Array) -> tuple[Mean, Mean]:
  """(cross-entropy, accuracy) of float32 logits [..., C] against targets [...]."""
  log_p = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  correct = (logits.argmax(-1) == targets) * weights
  weight = weights.sum()
  return Mean((nll * weights).sum(), weight), Mean(correct.sum(), weight)
