"""Sliding windows and norms of queries and keys against public decoders that have them.

Mistral's window counts the token itself, so that its `sliding_window` w is a window of w - 1.
"""

import jax
import numpy as np
import pytest
from model_setup import config_of, model_of

pytestmark = pytest.mark.full
SHAPE = dict(
  vocab_size=40, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
  num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-6, tie_word_embeddings=True,
  max_position_embeddings=64, attn_implementation='eager', pad_token_id=0, bos_token_id=1,
  eos_token_id=2,
)  # fmt: skip
OURS = dict(
  emb_dim=24, mlp_dim=20, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, max_length=64,
  norm='rmsnorm', norm_eps=1e-6, gated_mlp=True, activation='silu', use_bias=False, position='rope',
  rope_theta=100.0,
)  # fmt: skip


def parameters_of(theirs):
  """Our parameters with the values of a public decoder's; kernels lie the other way round."""
  state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
  head = {'q_proj': ('query', 4), 'k_proj': ('key', 2), 'v_proj': ('value', 2)}

  def layer(i):
    get = lambda name: state[f'model.layers.{i}.{name}.weight']
    attention = {
      ours: {'kernel': get(f'self_attn.{name}').T.reshape(24, heads, 6)}
      for name, (ours, heads) in head.items()
    }
    attention['out'] = {'kernel': get('self_attn.o_proj').T.reshape(4, 6, 24)}
    if f'model.layers.{i}.self_attn.q_norm.weight' in state:
      attention['query_norm'] = {'scale': get('self_attn.q_norm')}
      attention['key_norm'] = {'scale': get('self_attn.k_norm')}
    mlp = {'up': 'gate_proj', 'gate': 'up_proj', 'down': 'down_proj'}
    return {
      'attention': attention,
      'attention_norm': {'scale': get('input_layernorm')},
      'mlp_norm': {'scale': get('post_attention_layernorm')},
      'mlp': {ours: {'kernel': get(f'mlp.{name}').T} for ours, name in mlp.items()},
    }

  layers = jax.tree.map(lambda *leaves: np.stack(leaves), *map(layer, range(3)))
  table = np.zeros((128, 24), np.float32)
  table[:40] = state['model.embed_tokens.weight']
  norm = {'scale': state['model.norm.weight']}
  trunk = {'token': {'table': table}, 'stack': {'layers': layers}, 'final_norm': norm}
  return {'params': {'trunk': trunk}}


CASES = {
  'Mistral': (dict(sliding_window=5), dict(window=4)),
  'Qwen3': (dict(use_sliding_window=False), dict(qk_norm=True)),
}


@pytest.mark.parametrize('family', CASES)
@pytest.mark.parametrize('scan_layers', [False, True])
def test_logits_and_gradients_of_the_embedding(family, scan_layers):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  changes, ours = CASES[family]
  cls, config = (getattr(transformers, f'{family}{end}') for end in ('ForCausalLM', 'Config'))
  torch.manual_seed(0)
  rope = {'rope_type': 'default', 'rope_theta': 100.0}
  theirs = cls(config(**SHAPE, **changes, rope_parameters=rope)).eval()
  with torch.no_grad():
    for value in theirs.parameters():
      value.add_(0.2 * torch.randn_like(value))
  inputs = np.random.default_rng(0).integers(3, 40, (2, 24)).astype(np.int32)
  want = theirs(input_ids=torch.tensor(inputs, dtype=torch.long)).logits
  weights = np.random.default_rng(1).normal(size=want.shape).astype(np.float32)
  (want * torch.tensor(weights)).sum().backward()

  model = model_of(config_of('decoder', **OURS, **ours, scan_layers=scan_layers))
  places = np.broadcast_to(np.arange(24, dtype=np.int32), inputs.shape)
  batch = {'inputs': inputs, 'positions': places, 'segment_ids': np.ones_like(inputs)}

  def logits(params):
    output = model.apply(params, batch)[0]
    return (output.hidden @ output.table.T)[..., :40]

  params = parameters_of(theirs)
  got, pull = jax.vjp(logits, params)
  want = want.detach().numpy()
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
  slope = theirs.model.embed_tokens.weight.grad.numpy()
  found = pull(jax.numpy.asarray(weights))[0]['params']['trunk']['token']['table'][:40]
  np.testing.assert_allclose(found, slope, rtol=0, atol=1e-3 * np.abs(slope).max())
