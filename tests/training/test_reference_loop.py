"""The first twenty losses of recipes are those of a plain torch loop over the same batches.

From one model's weights, without dropout: packing, loss, clipping, AdamW with its decay groups and
the schedule all have to agree. The torch side takes the weights from an export and each packed text
as a row of its own.
"""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from flaxlm.commands import _folder, export
from flaxlm.config.field import Named
from flaxlm.objectives import span_corruption

pytestmark = pytest.mark.full
STEPS = 20
PEAK, WARMUP, DECAY, CLIP = 3e-3, 4, 0.1, 0.5
SETTINGS = (
  ('model.dropout_rate', '0'), ('global_batch_size', '4'), ('total_steps', str(STEPS)),
  ('optimizer.learning_rate', str(PEAK)), ('optimizer.warmup_steps', str(WARMUP)),
  ('optimizer.schedule', 'linear'), ('optimizer.end_ratio', '0'), ('optimizer.b2', '0.98'),
  ('optimizer.weight_decay', str(DECAY)), ('optimizer.clip_norm', str(CLIP)),
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('reference'))


def ours(experiment, batches):
  """(losses, gradient norms) of the recipe's own step."""
  state, found = tiny.random_state(experiment), []
  for batch in batches:
    state, metrics = experiment.train_step(state, experiment.put(batch))
    found.append((metrics['loss'].value(), float(metrics['grad_norm'])))
  return np.array(found)


def rate(update):
  """The learning rate of update 1, 2, ...: up to the peak, then down to 0 at the last."""
  return update / WARMUP if update < WARMUP else (STEPS - update) / (STEPS - WARMUP)


def theirs(model, batches, loss_of):
  """As `ours`, by the loop that one would write in torch."""
  plain = lambda name: name.endswith('bias') or 'norm' in name.lower()
  named = list(model.named_parameters())
  groups = [
    {'params': [p for name, p in named if not plain(name)], 'weight_decay': DECAY},
    {'params': [p for name, p in named if plain(name)], 'weight_decay': 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), eps=1e-8)
  schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done + 1))
  model.train()  # Dropout rates are 0.
  found = []
  for batch in batches:
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    schedule.step()
    found.append((loss.item(), norm.item()))
  return np.array(found)


def rows(batch, prefix, *keys):
  """Each packed text as a row of its own: (mask, arrays of the keys), padded with 0."""
  segments = batch[f'{prefix}segment_ids']
  places = [np.flatnonzero(row == s) for row in segments for s in range(1, row.max(initial=0) + 1)]
  owners = [b for b, row in enumerate(segments) for _ in range(row.max(initial=0))]
  longest = max(map(len, places))
  pad = lambda x: np.pad(x, (0, longest - len(x)))
  arrays = [
    torch.tensor(np.stack([pad(batch[k][b][i]) for b, i in zip(owners, places, strict=True)]))
    for k in keys
  ]
  mask = torch.tensor(np.stack([pad(np.ones(len(i), np.int64)) for i in places]))
  return mask, *arrays


def compare(place, folder, tmp_path, loss_of):
  """Runs both loops on a recipe."""
  experiment = tiny.experiment(place, folder, SETTINGS)
  params = tiny.random_state(experiment).params  # Far from 0, so that losses differ.
  config = experiment.config
  if config.objective.name == 'seq2seq':
    # The public class has the head of T5's pretraining, which is the same.
    pretraining = span_corruption.Config(name='span_corruption')
    config = dataclasses.replace(config, objective=pretraining, task=Named())
  _folder.write_run(tmp_path / 'run', config, experiment.tokenizer, params)
  export.main([f'--workdir={tmp_path}/run', f'--to={tmp_path}/public'])
  name = transformers.AutoConfig.from_pretrained(tmp_path / 'public').architectures[0]
  model = getattr(transformers, name).from_pretrained(tmp_path / 'public').float()
  batches = [jax.tree.map(np.asarray, experiment.train_data.batch(i)) for i in range(STEPS)]
  expected, found = theirs(model, batches, loss_of), ours(experiment, batches)
  np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-3)
  np.testing.assert_allclose(found[0, 1], expected[0, 1], rtol=1e-3)
  assert (expected[:, 1] > CLIP).any()
  assert np.ptp(expected[:, 0]) > 0.05, expected  # The weights did change.


def test_classification(folder, tmp_path):
  def loss_of(model, batch):
    mask, ids = rows(batch, '', 'inputs')
    labels = batch['targets'][batch['target_weights'] > 0]
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert len(logits) == len(labels) > len(batch['inputs'])
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long())

  compare('classify.py:encoder', folder, tmp_path, loss_of)


def test_sequence_to_sequence(folder, tmp_path):
  def loss_of(model, batch):
    encoder_mask, ids = rows(batch, 'encoder_', 'encoder_inputs')
    keys = 'decoder_inputs', 'targets', 'target_weights'
    mask, inputs, targets, weights = rows(batch, 'decoder_', *keys)
    logits = model(
      input_ids=ids, attention_mask=encoder_mask, decoder_input_ids=inputs,
      decoder_attention_mask=mask,
    ).logits  # fmt: skip
    labels = torch.where(weights > 0, targets, -100).long()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

  compare('text_to_text.py:encoder_decoder', folder, tmp_path, loss_of)
