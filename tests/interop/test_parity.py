"""Every public class that is read computes here what it does there, and has the same gradients."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import jax
import jax.numpy as jnp
import public_cases as cases
import public_models as public

from flaxlm.commands import _reference
from flaxlm.decoding import cache as caches
from flaxlm.interop import convert
from flaxlm.models.scores import logits
from flaxlm.objectives import losses

pytestmark = pytest.mark.full
HEADS = [name for name in cases.CASES if not name.endswith('-trunk')]
READ_WHOLE = ('-classes', '-number', '-labels', '-choices')
GENERATORS = [
  *('gpt2', 'gpt2-untied', 't5', 't5-silu', 'bart', 'bart-scaled', 'llama', 'llama-tied'),
  'llama-biased',
]


def loaded(case, torch_model, arrays):
  return public.imported(torch_model, lambda described: _reference.batch_of(described, arrays))


def real(case, arrays, output):
  """Where an output [B, L, ...] stands for a token; None for one a row."""
  if output.ndim < 3 or case.encoder_decoder:
    return None
  return arrays['attention_mask']


@pytest.mark.parametrize('name', cases.CASES)
def test_outputs(name):
  case = cases.CASES[name]
  torch_model, arrays = case.make(), cases.inputs(case)
  described, model, batch, params, _ = loaded(case, torch_model, arrays)
  with torch.no_grad():
    output = cases.run(torch_model, arrays)
  theirs = cases.main_output(output)
  ours = _reference.outputs(described, model, params, batch)
  public.assert_close(ours, theirs, real(case, arrays, theirs))
  if name == 'bert':
    result, _ = model.apply({'params': params}, batch)
    public.assert_close(result['nsp'][:, 0], output.seq_relationship_logits)


LEFT = [
  *('bert', 'roberta', 'gpt2', 'gpt2-classes', 't5', 't5-classes', 'bart', 'bart-classes'),
  *('llama', 'llama-classes', 'modernbert', 'modernbert-mean-classes', 'xlnet'),
]


@pytest.mark.parametrize('name', LEFT)
def test_outputs_of_texts_that_are_padded_on_the_left(name):
  case = cases.CASES[name]
  torch_model, arrays = case.make(), cases.inputs(case, left=True)
  described, model, batch, params, _ = loaded(case, torch_model, arrays)
  with torch.no_grad():
    theirs = cases.main_output(cases.run(torch_model, arrays))
  ours = _reference.outputs(described, model, params, batch)
  public.assert_close(ours, theirs, real(case, arrays, theirs))


def torch_loss(case, torch_model, arrays, targets, weights):
  """The mean cross-entropy over targets of weight 1; with next sentences, theirs beside it."""
  output = cases.run(torch_model, arrays)
  logits = cases.main_output(output)
  flat = torch.nn.functional.cross_entropy(
    logits.reshape(-1, logits.shape[-1]), torch.tensor(targets).reshape(-1), reduction='none'
  )
  weights = torch.tensor(weights).reshape(-1)
  loss = (flat * weights).sum() / weights.sum()
  if hasattr(output, 'seq_relationship_logits'):
    pairs = output.seq_relationship_logits
    loss = loss + torch.nn.functional.cross_entropy(pairs, torch.tensor([0, 1]))
  return loss


def our_loss(model, batch, targets, weights):
  """The same with this project's losses, as a function of the parameters."""

  def loss(params):
    result, _ = model.apply({'params': params}, batch)
    if isinstance(result, jax.Array):
      mean, _ = losses.class_metrics(result, targets, weights)
      return mean.total / mean.weight
    vocabulary = result['mlm'] if isinstance(result, dict) else result
    config = losses.VocabLossConfig()
    total, _, _ = losses.token_metrics(config, vocabulary, targets, weights)
    value = total / weights.sum()
    if isinstance(result, dict) and 'nsp' in result:
      pairs, _ = losses.class_metrics(result['nsp'], jnp.array([[0], [1]]), jnp.ones((2, 1)))
      value += pairs.total / pairs.weight
    return value

  return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize('name', [n for n in HEADS if n not in cases.TASKS])
def test_loss_and_gradients(name):
  case = cases.CASES[name]
  torch_model, arrays = case.make(), cases.inputs(case)
  described, model, batch, params, leaves = loaded(case, torch_model, arrays)
  rng = np.random.default_rng(1)
  classes = len(described.labels)
  if classes:
    targets, weights = rng.integers(0, classes, (2, 1)), np.ones((2, 1), np.float32)
  else:
    stream = 'decoder_input_ids' if case.encoder_decoder else 'input_ids'
    targets = rng.integers(5, cases.V, arrays[stream].shape)
    weights = np.ones(targets.shape, np.float32)
    if not case.encoder_decoder:
      weights *= arrays['attention_mask'] * (rng.random(targets.shape) < 0.6)
  theirs = torch_loss(case, torch_model, arrays, targets, weights)
  theirs.backward()
  ours, gradient = our_loss(model, batch, targets, weights)(params)
  assert abs(float(ours) - theirs.item()) <= 1e-5 * theirs.item()
  found = convert.load(described, public.gradients(torch_model), leaves)
  public.assert_same_gradients(gradient, found.leaves)


@pytest.mark.parametrize('name', [n for n in HEADS if not n.endswith(READ_WHOLE)])
def test_packed_rows_are_the_rows_alone(name):
  """Two sequences in one row here, each in a row of its own there."""
  case = cases.CASES[name]
  torch_model = case.make()
  first, second = cases.inputs(case, 9, seed=2), cases.inputs(case, 13, seed=3)
  alone = [{n: a[:1] for n, a in arrays.items()} for arrays in (first, second)]
  described, model, _, params, _ = loaded(case, torch_model, alone[0])
  batches = [_reference.batch_of(described, arrays) for arrays in alone]
  packed = {key: np.concatenate([b[key] for b in batches], 1) for key in batches[0]}
  for key in packed:
    if key.endswith('segment_ids'):
      packed[key] = np.concatenate([b[key] * (i + 1) for i, b in enumerate(batches)], 1)
  if 'target_positions' in packed:
    packed['target_positions'] = np.arange(packed['inputs'].shape[1])[None]
  with torch.no_grad():
    theirs = [cases.main_output(cases.run(torch_model, arrays)) for arrays in alone]
  ours = _reference.outputs(described, model, params, packed)
  public.assert_close(ours, torch.cat(theirs, 1))


@pytest.mark.parametrize('name', GENERATORS)
def test_decoding_with_a_cache(name):
  """Token by token, each position's logits are those of the original's full pass."""
  case = cases.CASES[name]
  torch_model, arrays = case.make(), cases.inputs(case, 15)
  described, model, batch, params, _ = loaded(case, torch_model, arrays)
  with torch.no_grad():
    theirs = cases.main_output(cases.run(torch_model, arrays))
  memory = segments = None
  tokens, layers = batch.get('inputs'), described.model.num_layers
  if case.encoder_decoder:
    tokens, layers = batch['decoder_inputs'], described.model.decoder_layers
    memory = model.apply({'params': params}, batch)[1].encoder
    segments = batch['encoder_segment_ids']
  cache = caches.empty(described.model, layers, len(tokens), tokens.shape[1])
  step = jax.jit(
    lambda cache, token, at, memory: caches.call(model, params, token, at, cache, segments, memory)
  )
  found = []
  for t in range(tokens.shape[1]):
    at = np.full((len(tokens), 1), t, np.int32)
    output, cache = step(cache, tokens[:, t : t + 1], at, memory)
    memory = None  # The cache has what the layers made of it.
    found.append(logits(output))
  public.assert_close(np.concatenate(found, 1), theirs, real(case, arrays, theirs))


@pytest.mark.parametrize('buckets, reach', [(32, 128), (8, 20), (12, 33), (64, 100)])
def test_t5_at_long_distances(buckets, reach):
  """Every bucket of both stacks, far beyond the distance from which they are shared."""
  _, case = cases.case(
    '', 'T5ForConditionalGeneration', cases.T5,
    relative_attention_num_buckets=buckets, relative_attention_max_distance=reach,
  )  # fmt: skip
  torch_model, arrays = case.make(), cases.inputs(case, 300)
  described, model, batch, params, _ = loaded(case, torch_model, arrays)
  with torch.no_grad():
    theirs = cases.main_output(cases.run(torch_model, arrays))
  public.assert_close(_reference.outputs(described, model, params, batch), theirs)
