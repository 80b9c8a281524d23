"""Fine-tuning against a loop written in PyTorch: same weights, same batches, the same losses.

The trunks are transformers' own, with heads of a linear layer; losses, clipping, the schedule and
the optimizer are torch's or written out here. Dropout is off.
"""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from flaxlm.data.tokenizer import Tokenizer
from flaxlm.interop import convert
from flaxlm.paths import leaf_paths, nested

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
public = pytest.importorskip('public_models')

pytestmark = pytest.mark.full
STEPS, WARMUP, RATE, DECAY, LENGTH = 20, 4, 2e-3, 0.1, 64
CHANGES = (
  ('tokenizer.name', 'bytes'), ('tokenizer.sentinels', '0'), ('data.pack', 'False'),
  ('data.max_length', str(LENGTH)), ('optimizer.warmup_steps', str(WARMUP)),
  ('optimizer.learning_rate', str(RATE)), ('optimizer.weight_decay', str(DECAY)),
  ('optimizer.b2', '0.98'), ('num_epochs', 'none'), ('total_steps', str(STEPS)),
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('reference'))


def tensor(x):
  return torch.tensor(np.asarray(x))


class Bert(torch.nn.Module):
  """transformers' BERT, a pooler where one is wanted, and a linear head."""

  def __init__(self, vocab_size, outputs, pooler):
    super().__init__()
    config = transformers.BertConfig(
      vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
      intermediate_size=24, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0, initializer_range=0.3,
    )  # fmt: skip
    self.trunk = transformers.BertModel(config, add_pooling_layer=False)
    self.pooler = torch.nn.Linear(16, 16) if pooler else None
    self.out = torch.nn.Linear(16, outputs)

  def forward(self, batch):
    hidden = self.trunk(
      input_ids=tensor(batch['inputs']),
      attention_mask=tensor(batch['segment_ids'] > 0),
      token_type_ids=tensor(batch['token_type_ids']),
    ).last_hidden_state
    if 'target_positions' in batch:
      place = tensor(batch['target_positions']).long()
      hidden = torch.take_along_dim(hidden, place[..., None], 1)
    if self.pooler:
      hidden = torch.tanh(self.pooler(hidden))
    return self.out(hidden)

  def heads(self, name):
    """Parameters of the head by path."""
    layers = {'head/classes/pooler': self.pooler, name: self.out}
    found = {}
    for path, layer in layers.items():
      if layer is not None:
        found[f'{path}/kernel'] = layer.weight.detach().numpy().T
        found[f'{path}/bias'] = layer.bias.detach().numpy()
    return found


def class_loss(logits, batch):
  """Mean cross-entropy of the targets that count."""
  weights = tensor(batch['target_weights'])
  nll = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), tensor(batch['targets']).long().flatten(), reduction='none'
  )
  return (nll * weights.flatten()).sum() / weights.sum()


def span_loss(logits, batch):
  """Mean cross-entropy of beginning and end; a row is one window."""
  real = tensor(batch['segment_ids'] > 0)[..., None]
  logits = logits.masked_fill(~real, -1e30)
  cross_entropy = torch.nn.functional.cross_entropy
  ends = [tensor(batch[f'{end}_targets'][:, 0]).long() for end in ('start', 'end')]
  return sum(cross_entropy(logits[..., i], target) for i, target in enumerate(ends)) / 2


class T5(torch.nn.Module):
  """transformers' T5, which has its head."""

  def __init__(self, vocab_size):
    super().__init__()
    config = transformers.T5Config(
      vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
      dropout_rate=0.0,
    )  # fmt: skip
    self.trunk = transformers.T5ForConditionalGeneration(config)

  def forward(self, batch):
    return self.trunk(
      input_ids=tensor(batch['encoder_inputs']),
      attention_mask=tensor(batch['encoder_segment_ids'] > 0),
      decoder_input_ids=tensor(batch['decoder_inputs']),
    ).logits

  def heads(self, name):
    return {}


def train(model, loss_of, batches):
  """Losses of the loop: AdamW, linear warm-up and decay, clipping by the global norm."""
  plain = ('bias', 'LayerNorm.weight', 'layer_norm.weight')
  groups = [
    {'params': [p for n, p in model.named_parameters() if n.endswith(plain) == off],
     'weight_decay': 0.0 if off else DECAY}
    for off in (False, True)
  ]  # fmt: skip
  optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-8)
  schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
  found = []
  for batch in batches:
    # Before the update: transformers' own loop spends the first one on its first rate, which is 0.
    schedule.step()
    loss = loss_of(model(batch), batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    found.append(loss.item())
  return found


def ours(config, folder, model, head):
  """(experiment, state) with the weights of a torch model."""
  described, source = public.described(model.trunk)
  config = dataclasses.replace(
    config, model=dataclasses.replace(described.model, name=config.model.name)
  )
  experiment = tiny.build(config, folder / 'no_run')
  abstract = leaf_paths(experiment.abstract_state.params)
  own = model.heads(head)
  wanted = {path: leaf for path, leaf in abstract.items() if path not in own}
  leaves = convert.load(described, source, wanted).leaves | own
  assert set(leaves) == set(abstract)
  state = tiny.random_state(experiment)
  # A copy: torch goes on to change its own.
  put = lambda leaf, value: jax.device_put(np.array(value, leaf.dtype), leaf.sharding)
  return experiment, state.replace(params=jax.tree.map(put, state.params, nested(leaves)))


CASES = {
  'classify.py:encoder': ('head/classes/out', class_loss, lambda v: Bert(v, 2, True)),
  'tag.py:encoder': ('head/classes/out', class_loss, lambda v: Bert(v, 3, False)),
  'squad.py:encoder': ('head/span', span_loss, lambda v: Bert(v, 2, False)),
  'text_to_text.py:encoder_decoder': ('', class_loss, T5),
}


@pytest.mark.filterwarnings('ignore:Detected call of `lr_scheduler.step')
@pytest.mark.parametrize('place', CASES)
def test_losses_are_those_of_a_plain_loop(place, folder):
  head, loss_of, make = CASES[place]
  torch.manual_seed(0)
  config = tiny.load(place, folder, CHANGES)
  model = make(Tokenizer({'name': 'bytes', 'sentinels': 0}).vocab_size)
  experiment, state = ours(config, folder, model, head)
  batches = [experiment.train_data.batch(step) for step in range(STEPS)]
  theirs = train(model, loss_of, batches)
  found = []
  for batch in batches:
    state, metrics = experiment.train_step(state, experiment.put(batch))
    found.append(metrics['loss'].value())
  np.testing.assert_allclose(found, theirs, rtol=1e-3)
  assert max(found) - min(found) > 0.02 * max(found)  # It moves, so that something is compared.
