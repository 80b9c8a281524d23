"""XLNet's two streams and memory against the public implementation."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import jax
import jax.numpy as jnp
import public_cases as cases
import public_models as public

from flaxlm.models.scores import logits
from flaxlm.models.xlnet import Memory
from flaxlm.objectives import losses

pytestmark = pytest.mark.full
B, L, T = 2, 13, 4


def rows(seed, remembered=0):
  """(what the original takes, our batch): T targets a row, in a drawn order of factorisation."""
  rng = np.random.default_rng(seed)
  ids, types = rng.integers(5, cases.V, (B, L)), rng.integers(0, 3, (B, L))
  places = np.stack([np.sort(rng.permutation(L)[:T]) for _ in range(B)])
  order = np.zeros((B, L), np.int32)
  for row, found in enumerate(places):
    order[row, found] = 1 + rng.permutation(T)
  query, key = order[:, :, None], order[:, None, :]
  seen = (key == 0) | (key < query)
  theirs = {
    'input_ids': ids,
    'token_type_ids': types,
    'perm_mask': 1.0 - seen.astype(np.float32),
    'target_mapping': np.eye(L, dtype=np.float32)[places],
  }
  ours = {
    'inputs': ids,
    'token_type_ids': types,
    'positions': np.broadcast_to(np.arange(L), (B, L)),
    'segment_ids': np.ones((B, L)),
    'order': order,
    'target_positions': places,
    'continues': np.ones((B, L)),
  }
  return theirs, {key: value.astype(np.int32) for key, value in ours.items()}


@pytest.fixture(scope='module', params=[0, 5, 20], ids=lambda m: f'memory{m}')
def setup(request):
  """(memory length, torch model, parameters, our model), whose biases and vectors are all drawn."""
  remembered = request.param
  _, case = cases.case('', 'XLNetLMHeadModel', cases.XLNET, mem_len=remembered or None)
  torch_model = case.make()
  with torch.no_grad():
    for parameter in torch_model.parameters():
      parameter += 0.1 * torch.randn(parameter.shape)
  _, model, _, params, leaves = public.imported(torch_model, lambda _: rows(0)[1])
  return remembered, torch_model, model, params, leaves


def memory_of(mems):
  """What the original remembers, [M, B, D] of each layer, as ours; all of it may be seen."""
  hidden = np.stack([m.numpy() for m in mems]).transpose(2, 0, 1, 3)
  return Memory(jnp.asarray(hidden), jnp.ones((B, hidden.shape[2]), bool))


def test_two_streams_with_a_memory(setup):
  """Logits at the targets, and what is remembered, over three rows that go on."""
  remembered, torch_model, model, params, _ = setup
  mems = memory = None
  if remembered:
    # A memory of zeros is not no memory: the original has none before the first row.
    memory = model.trunk.empty_memory(B)
  for number in range(3):
    theirs, ours = rows(number)
    with torch.no_grad():
      output = torch_model(
        **{k: torch.tensor(v) for k, v in theirs.items()}, mems=mems, use_mems=bool(remembered)
      )
    found, trunk = jax.jit(model.apply)({'params': params}, ours, cache=memory)
    public.assert_close(logits(found), output.logits)
    if remembered:
      mems, memory = output.mems, trunk.cache
      seen = min(L * (number + 1), remembered)
      np.testing.assert_array_equal(np.asarray(memory.is_open).sum(1), seen)
      public.assert_close(
        np.asarray(memory.hidden)[:, :, -seen:], memory_of(mems).hidden[:, :, -seen:]
      )


def test_gradients(setup):
  remembered, torch_model, model, params, leaves = setup
  theirs, ours = rows(7)
  targets = np.random.default_rng(1).integers(5, cases.V, (B, T))
  mems = None
  if remembered:
    with torch.no_grad():
      first = {k: torch.tensor(v) for k, v in rows(8)[0].items()}
      mems = torch_model(**first, use_mems=True).mems
  torch_model.zero_grad()
  output = torch_model(**{k: torch.tensor(v) for k, v in theirs.items()}, mems=mems)
  expected = torch.nn.functional.cross_entropy(
    output.logits.reshape(-1, cases.V), torch.tensor(targets).reshape(-1)
  )
  expected.backward()
  # A memory longer than what there was before is filled from its end.
  memory = None if mems is None else memory_of(mems)
  if memory is not None and memory.hidden.shape[2] < remembered:
    short = remembered - memory.hidden.shape[2]
    memory = Memory(
      jnp.pad(memory.hidden, [(0, 0), (0, 0), (short, 0), (0, 0)]),
      jnp.pad(memory.is_open, [(0, 0), (short, 0)]),
    )

  def loss(params):
    found, _ = model.apply({'params': params}, ours, cache=memory)
    total, _, _ = losses.token_metrics(
      losses.VocabLossConfig(), found, targets, jnp.ones(targets.shape)
    )
    return total / targets.size

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  assert abs(float(value) - expected.item()) <= 1e-5 * expected.item()
  described, _ = public.described(torch_model)
  found = public.convert.load(described, public.gradients(torch_model), leaves)
  public.assert_same_gradients(gradient, found.leaves)
