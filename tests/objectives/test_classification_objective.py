"""Classification: what each family reads, where it is pooled, and how labels travel."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from objective_setup import byte_tokenizer, make

from flaxlm.config.transformer import TransformerConfig
from flaxlm.data import packing
from flaxlm.data.pipeline import PackedItems
from flaxlm.errors import UserError
from flaxlm.types import ModelOutput

T = byte_tokenizer()
FAMILIES = ('encoder', 'decoder', 'encoder_decoder')
LABELS = ('bad', 'good', 'so-so')
EXAMPLES = [
  {'text': 'dull', 'label': 'bad'},
  {'text': 'a joy from start to end', 'label': 'good'},
  {'text': '', 'label': 'so-so'},
  {'text': 'x' * 500, 'label': 'good'},
]


def classifier(model, **changes):
  return make(
    'classification', model, T, 'text_classification', task__labels=LABELS,
    data__train='rows.tsv', **changes
  )  # fmt: skip


def features_of(objective, examples=EXAMPLES):
  return [objective.features(item, None) for item in objective.items(examples)]


@pytest.mark.parametrize('family', FAMILIES)
def test_what_each_family_reads(family):
  objective = classifier(family)
  short, empty, long = (features_of(objective)[i] for i in (0, 2, 3))
  text = T.encode('dull').tolist()
  marks = {
    'encoder': ([T.cls_id], [T.sep_id]),
    'decoder': ([T.bos_id], [T.eos_id]),
    'encoder_decoder': ([], [T.eos_id]),
  }[family]
  key = 'encoder_inputs' if family == 'encoder_decoder' else 'inputs'
  assert short[key].tolist() == marks[0] + text + marks[1]
  assert empty[key].tolist() == marks[0] + marks[1]
  # A long text loses its end, and not its marks.
  assert len(long[key]) == 64
  assert long[key][-1] == marks[1][0] and long[key][: len(marks[0])].tolist() == marks[0]
  if family == 'encoder_decoder':
    assert short['decoder_inputs'].tolist() == [T.bos_id]


@pytest.mark.parametrize(
  'family, pooling, place',
  [
    ('encoder', 'auto', 0),
    ('encoder', 'first', 0),
    ('encoder', 'last', 5),
    ('decoder', 'auto', 5),
    ('decoder', 'first', 0),
    ('encoder_decoder', 'auto', 0),
  ],
)
def test_where_a_text_is_read(family, pooling, place):
  objective = classifier(family, objective__pooling=pooling)
  assert features_of(objective)[0]['target_positions'] == place


def test_an_encoder_decoder_has_no_mean():
  with pytest.raises(UserError, match=r'config\.objective\.pooling'):
    classifier('encoder_decoder', objective__pooling='mean')


@pytest.mark.parametrize('marks', ['t5', 'bart'])
def test_a_decoder_reads_the_text_one_place_later(marks):
  """What transformers' T5 and BART classifiers feed their decoders, and where they read."""
  objective = classifier('encoder_decoder', objective__pooling='last', objective__marks=marks)
  found = features_of(objective)[0]
  text = T.encode('dull').tolist()
  start, before = (T.bos_id, []) if marks == 't5' else (T.eos_id, [T.bos_id])
  assert found['encoder_inputs'].tolist() == [*before, *text, T.eos_id]
  assert found['decoder_inputs'].tolist() == [start, *before, *text]
  assert found['target_positions'].tolist() == [len(text) + len(before)]
  rows = [features_of(objective)[:3]]
  batch = packing.pack_rows(rows, objective.streams)
  ends = np.cumsum([len(features['decoder_inputs']) for features in rows[0]]) - 1
  assert batch['target_positions'][0, :3].tolist() == ends.tolist()


@pytest.mark.parametrize(
  'family, pooling, pooler',
  [
    *(('encoder', 'first', 'tanh'), ('encoder', 'mean', 'tanh'), ('decoder', 'last', 'none')),
    *(('encoder_decoder', 'first', 'none'), ('encoder_decoder', 'last', 'tanh')),
  ],
)
def test_the_pooler_that_a_family_has(family, pooling, pooler):
  objective = classifier(family, objective__pooling=pooling)
  assert (objective.config.pooling, objective.config.pooler) == (pooling, pooler)


@pytest.mark.parametrize('family', FAMILIES)
def test_packed_labels_belong_to_their_texts(family):
  """A label's text is found again from its row alone."""
  objective = classifier(family)
  rng = np.random.default_rng(0)
  examples = [
    {'text': chr(97 + i % 26) * int(n), 'label': LABELS[i % 3]}
    for i, n in enumerate(rng.integers(0, 30, 80))
  ]
  packed = PackedItems(objective, objective.items(examples), seed=0)
  rows = [[objective.features(item, None) for item in packed[row]] for row in range(len(packed))]
  batch = packing.pack_rows(rows, objective.streams)
  prefix, segments = '', batch.get('segment_ids')
  if family == 'encoder_decoder':
    prefix, segments = 'encoder_', batch['decoder_segment_ids']
  found = []
  for row, slot in zip(*np.nonzero(batch['target_weights']), strict=True):
    number = batch['example_ids'][row, slot]
    found.append(number)
    assert LABELS[batch['targets'][row, slot]] == examples[number]['label']
    segment = segments[row, batch['target_positions'][row, slot]]
    tokens = batch[f'{prefix}inputs'][row][batch[f'{prefix}segment_ids'][row] == segment]
    assert T.decode(tokens) == examples[number]['text']
  assert sorted(found) == list(range(80))
  assert objective.weights(batch)['loss'] == 80


def test_a_row_without_a_label_can_be_predicted():
  (item,) = classifier('encoder').items([{'text': 'x'}])
  assert item['label'] == 0 and item['id'] == 0


@pytest.mark.parametrize('family, pooling', [('encoder', 'mean'), ('decoder', 'last')])
def test_a_packed_text_is_pooled_from_its_own_tokens(family, pooling):
  """The head on a packed row against numpy on each text."""
  objective = classifier(family, objective__pooling=pooling)
  config = TransformerConfig(name=family, emb_dim=8, num_heads=2, init_std=0.5)
  rows = [features_of(objective)[:3]]
  batch = packing.pack_rows(rows, objective.streams)
  hidden = np.random.default_rng(0).normal(size=(1, 64, 8)).astype(np.float32)
  output = ModelOutput(hidden=hidden, embedding=None)
  head = objective.head(config)
  variables = nn.unbox(head.init(jax.random.key(0), output, batch, True))
  logits = np.asarray(head.apply(variables, output, batch, True))[0]
  start = 0
  for number, features in enumerate(rows[0]):
    stop = start + len(features['inputs'])
    x = hidden[0, start:stop].mean(0) if pooling == 'mean' else hidden[0, stop - 1]
    params = jax.tree.map(np.asarray, variables['params'])
    if 'pooler' in params['classes']:
      dense = params['classes']['pooler']
      x = np.tanh(x @ dense['kernel'] + dense['bias'])
    out = params['classes']['out']
    expected = x @ out['kernel'] + out.get('bias', 0.0)
    np.testing.assert_allclose(logits[number], expected, rtol=1e-5, atol=1e-6)
    start = stop
  assert np.isfinite(logits).all()  # Also in slots without a text.


def test_loss_and_accuracy_are_of_the_texts_alone():
  objective = classifier('encoder')
  batch = packing.pack_rows([features_of(objective)[:3]], objective.streams)
  slots = batch['targets'].shape[1]
  logits = np.random.default_rng(0).normal(size=(1, slots, 3)).astype(np.float32)
  totals, metrics = objective.losses(logits, batch)
  x = logits[0, :3].astype(np.float64)
  log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
  labels = [0, 1, 2]
  np.testing.assert_allclose(totals['loss'], -log_p[range(3), labels].sum(), rtol=1e-6)
  assert metrics['accuracy'].value() == np.mean(x.argmax(-1) == labels)
  predictions = objective.predict(logits, batch)
  np.testing.assert_allclose(predictions['probabilities'][0, :3], np.exp(log_p), rtol=1e-5)
  assert predictions['example_ids'][0, :3].tolist() == [0, 1, 2]
  assert (predictions['weights'][0] > 0).sum() == 3
