"""The chunked cross-entropy against a plain one in float64, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.objectives import losses
from flaxlm.types import VocabOutput

VOCAB, ROWS, WIDTH = 11, 16, 5


def plain(hidden, table, bias, targets, weights, smoothing, z_loss, cap=0.0):
  """Loss summed over tokens by the definition, differentiable, in whatever dtype it is given."""
  logits = (hidden @ table.T + bias)[..., :VOCAB]
  logits = cap * jnp.tanh(logits / cap) if cap else logits
  log_z = jax.scipy.special.logsumexp(logits, axis=-1)
  log_p = logits - log_z[..., None]
  wanted = jax.nn.one_hot(targets, VOCAB, dtype=logits.dtype) * (1 - smoothing) + smoothing / VOCAB
  return ((-(wanted * log_p).sum(-1) + z_loss * log_z**2) * weights).sum()


@pytest.mark.parametrize('chunk', [10**9, 100])
@pytest.mark.parametrize(
  'smoothing, z_loss, cap',
  [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.0, 1e-2, 0.0), (0.2, 1e-3, 0.0), (0.2, 1e-3, 1.5)],
)
def test_value_and_gradient(monkeypatch, chunk, smoothing, z_loss, cap):
  monkeypatch.setattr(losses, 'CHUNK_LOGITS', chunk)
  rng = np.random.default_rng(0)
  hidden, table = rng.normal(size=(3, 7, WIDTH)), rng.normal(size=(ROWS, WIDTH))
  bias = rng.normal(size=ROWS)
  targets = rng.integers(0, VOCAB, (3, 7))
  weights = rng.integers(0, 2, (3, 7)).astype(np.float32)
  config = losses.VocabLossConfig(label_smoothing=smoothing, z_loss=z_loss)

  def chunked(hidden, table, bias):
    output = VocabOutput(hidden, table, bias, VOCAB, cap)
    total, loss, _ = losses.token_metrics(config, output, targets, weights)
    return 3.0 * total, loss  # a cotangent that is not 1

  f32 = lambda *arrays: [jnp.asarray(a, jnp.float32) for a in arrays]
  grads, loss = jax.grad(chunked, (0, 1, 2), has_aux=True)(*f32(hidden, table, bias))
  with jax.enable_x64(True):
    total = lambda *a: 3.0 * plain(*a, targets, weights, smoothing, z_loss, cap)
    want = jax.grad(total, (0, 1, 2))(hidden, table, bias)
    want_loss = plain(hidden, table, bias, targets, weights, 0.0, 0.0, cap)
    want_total = plain(hidden, table, bias, targets, weights, smoothing, z_loss, cap)
  for got, reference in zip(grads, want, strict=True):
    np.testing.assert_allclose(got, reference, atol=1e-5)
  np.testing.assert_allclose(loss.total, want_loss, rtol=1e-5)
  np.testing.assert_allclose(chunked(*f32(hidden, table, bias))[0], 3 * want_total, rtol=1e-5)
  assert loss.weight == weights.sum()


def test_padding_rows_of_the_table_are_outside_the_softmax():
  config = losses.VocabLossConfig()
  hidden, table = jnp.ones((1, 2, WIDTH)), jnp.ones((ROWS, WIDTH))
  loud = table.at[VOCAB:].set(100.0)
  value = lambda t: losses.token_metrics(
    config, VocabOutput(hidden, t, None, VOCAB), jnp.zeros((1, 2), int), jnp.ones((1, 2))
  )
  (_, loss, accuracy), (_, quiet, _) = value(loud), value(table)
  assert loss.total == quiet.total and accuracy.value() == 1.0
  np.testing.assert_allclose(loss.value(), np.log(VOCAB), rtol=1e-6)
  gradient = jax.grad(lambda t: value(t)[0])(loud)
  assert (gradient[VOCAB:] == 0).all()


def test_accuracy_counts_argmax():
  rng = np.random.default_rng(1)
  hidden, table = rng.normal(size=(2, 50, WIDTH)), rng.normal(size=(ROWS, WIDTH))
  targets = rng.integers(0, 3, (2, 50))
  output = VocabOutput(jnp.asarray(hidden), jnp.asarray(table), None, VOCAB)
  got = losses.token_metrics(losses.VocabLossConfig(), output, targets, np.ones((2, 50)))[2]
  want = ((hidden @ table.T)[..., :VOCAB].argmax(-1) == targets).sum()
  assert 0 < want < 100 and got.total == want


def test_class_metrics():
  logits = np.random.default_rng(0).normal(size=(2, 3, 4))
  targets, weights = np.array([[0, 1, 2], [3, 0, 1]]), np.array([[1, 1, 0], [1, 0, 1.0]])
  loss, accuracy = losses.class_metrics(jnp.asarray(logits), targets, weights)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  nll = -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])
  np.testing.assert_allclose(loss.total, (nll * weights).sum(), rtol=1e-5)
  assert accuracy.total == ((logits.argmax(-1) == targets) * weights).sum()
