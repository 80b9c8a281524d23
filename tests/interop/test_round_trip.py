"""Import, then export, gives the file's tensors byte for byte; what does not fit is refused."""

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import public_cases as cases
import public_models as public
import safetensors.numpy

from flaxlm.commands import _reference
from flaxlm.errors import UserError
from flaxlm.interop import convert, files

pytestmark = pytest.mark.full


def saved(case, folder, dtype=None, shard='50GB'):
  """A folder as transformers writes it."""
  case.make().to(dtype or torch.float32).save_pretrained(folder, max_shard_size=shard)
  return folder


def raw(folder):
  """Name -> (dtype, shape, bytes), in the order of the files."""
  tensors = files.Tensors(folder)
  return {n: (tensors.dtypes[n], s, tensors.read(n).tobytes()) for n, s in tensors.shapes.items()}


def load(folder, case):
  """(Public, Tensors, what became of them)"""
  described, tensors = convert.open_folder(folder)
  batch = _reference.batch_of(described, cases.inputs(case))
  leaves = public.shapes(public.model_of(described), batch)
  return described, tensors, convert.load(described, tensors, leaves)


def exported(described, tensors, found):
  """The tensors again, as after a save and a load of the parameters."""
  source = {name: (tensors.dtypes[name], shape) for name, shape in tensors.shapes.items()}
  return convert.save(described, found.leaves, source, found.kept, 'F32')


def assert_round_trip(folder, case):
  described, tensors, found = load(folder, case)
  assert all(leaf.dtype == np.float32 for leaf in found.leaves.values())
  again = exported(described, tensors, found)
  files.write(folder / 'again.safetensors', again.items(), tensors.metadata)
  assert raw(folder) == {
    name: (written.dtypes[name], shape, written.read(name).tobytes())
    for written in [files.Tensors(folder, 'again.safetensors')]
    for name, shape in written.shapes.items()
  }
  return described, found


@pytest.mark.parametrize('name', cases.CASES)
def test_every_class(name, tmp_path):
  assert_round_trip(saved(cases.CASES[name], tmp_path), cases.CASES[name])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ['bert', 'gpt2', 't5-1.1'])
def test_half_precision(name, dtype, tmp_path):
  assert_round_trip(saved(cases.CASES[name], tmp_path, dtype), cases.CASES[name])


def test_shards(tmp_path):
  case = cases.CASES['llama']
  saved(case, tmp_path, shard='8KB')
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 2
  described, tensors, found = load(tmp_path, case)
  again = exported(described, tensors, found)
  assert {n: a.tobytes() for n, a in again.items()} == {
    n: b for n, (_, _, b) in raw(tmp_path).items()
  }
  missing = sorted(tmp_path.glob('model-*.safetensors'))[1]
  missing.unlink()
  with pytest.raises(UserError, match=f'{missing.name}: .*there is no such file'):
    convert.open_folder(tmp_path)


def rewrite(folder, change):
  """Applies `change` to the tensors of the folder's file."""
  path = folder / files.WEIGHTS
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})


def test_files_of_old_releases(tmp_path):
  """Buffers, both copies of tied tensors, the first names of norms, a head's file of both heads."""
  case = cases.CASES['bert']
  saved(case, tmp_path)

  def old(tensors):
    tensors['bert.embeddings.position_ids'] = np.arange(40)[None]
    tensors['cls.predictions.decoder.weight'] = tensors['bert.embeddings.word_embeddings.weight']
    for name in list(tensors):
      if name.endswith('LayerNorm.weight'):
        tensors[name.replace('weight', 'gamma')] = tensors.pop(name)
        tensors[name.replace('weight', 'beta')] = tensors.pop(name.replace('weight', 'bias'))

  rewrite(tmp_path, old)
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(config | {'architectures': ['BertForMaskedLM']}))
  described, found = assert_round_trip(tmp_path, case)
  assert described.architecture == 'BertForPreTraining'
  assert found.buffers == ['bert.embeddings.position_ids']


def test_causal_masks_of_gpt2(tmp_path):
  case = cases.CASES['gpt2']
  saved(case, tmp_path)

  def old(tensors):
    for name in list(tensors):
      tensors[name.removeprefix('transformer.')] = tensors.pop(name)
    for layer in range(2):
      tensors[f'h.{layer}.attn.bias'] = np.tril(np.ones((1, 1, 40, 40), np.uint8))
      tensors[f'h.{layer}.attn.masked_bias'] = np.array(-1e4, np.float32)

  rewrite(tmp_path, old)
  _, found = assert_round_trip(tmp_path, case)
  assert len(found.buffers) == 4


def test_tensors_that_the_model_does_not_use(tmp_path):
  """As in the first release of T5, and in trunks of RoBERTa, whose pooler no head here reads."""
  case = cases.CASES['t5']
  saved(case, tmp_path)
  name = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  rewrite(tmp_path, lambda tensors: tensors.update({name: np.ones((32, 3), np.float32)}))
  _, found = assert_round_trip(tmp_path, case)
  assert list(found.kept) == [name]


# ---------------------------------------------------------------------------- what is refused


def refused(folder, case, message):
  with pytest.raises(UserError, match=message) as caught:
    load(folder, case)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda t: t.pop('transformer.h.1.ln_2.bias'), r'no tensor transformer\.h\.1\.ln_2\.bias'),
    (lambda t: t.update(extra=np.zeros(3, np.float32)), r'no rule names the tensor extra \[3\]'),
    (
      lambda t: t.update({'transformer.ln_f.bias': np.zeros(25, np.float32)}),
      r'ln_f\.bias has shape \[25\]; config\.json implies \[24\]',
    ),
    (
      lambda t: t.update({'transformer.ln_f.bias': np.zeros(24, np.int32)}),
      r'ln_f\.bias has dtype I32',
    ),
    (
      lambda t: t.update({'transformer.ln_f.bias': np.array([*[0.0] * 23, np.inf], np.float32)}),
      r'ln_f\.bias holds values that are not finite',
    ),
    (
      lambda t: t.update({'lm_head.weight': t['transformer.wte.weight'] + 1}),
      r'lm_head\.weight differs from transformer\.wte\.weight',
    ),
    (
      lambda t: t.update({'transformer.h.0.attn.bias': np.ones((1, 1, 40, 40), np.uint8)}),
      r'attn\.bias: .*not the usual constant',
    ),
  ],
)
def test_tensors_that_do_not_fit(change, message, tmp_path):
  case = cases.CASES['gpt2']
  saved(case, tmp_path)
  rewrite(tmp_path, change)
  refused(tmp_path, case, message)


@pytest.mark.parametrize('cut', [5, 100, -1])
def test_a_truncated_file(cut, tmp_path):
  case = cases.CASES['gpt2']
  path = saved(case, tmp_path) / files.WEIGHTS
  path.write_bytes(path.read_bytes()[:cut])
  refused(tmp_path, case, 'not a whole safetensors file')


@pytest.mark.parametrize(
  'name, change, message',
  [
    ('bert', {'model_type': 'brt'}, r"model_type='brt' is not supported \(did you mean 'bert'"),
    ('bert', {'architectures': ['BertForMaskedLm']}, r"did you mean 'BertForMaskedLM'"),
    (
      'bert',
      {'position_embedding_type': 'relative_key'},
      r"position_embedding_type='relative_key'",
    ),
    ('bert', {'hidden_act': 'mish'}, r"hidden_act='mish' is not supported; those that are"),
    ('bert', {'num_attention_heads': 5}, r'num_heads: 5 heads do not divide'),
    ('roberta', {'hidden_act': 'relu'}, r"hidden_act='relu'"),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True'),
    ('t5', {'feed_forward_proj': 'gated-mish'}, "feed_forward_proj='gated-mish'"),
    ('bart', {'decoder_ffn_dim': 41}, 'decoder_ffn_dim=41'),
    (
      'llama',
      {'rope_parameters': {'rope_type': 'dynamic', 'rope_theta': 1e4}},
      "rope_type='dynamic' is not supported; those that are: default, linear, llama3, yarn",
    ),
    (
      'llama',
      {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 2.0}},
      "rope_type='yarn' needs original_max_position_embeddings",
    ),
    (
      'llama-yarn',
      {'original_max_position_embeddings': 32},
      "original_max_position_embeddings is 32, and 16 of 'yarn'",
    ),
    (
      'llama-yarn',
      {'rope_parameters': cases.YARN | {'mscale': 1.0, 'mscale_all_dim': 0.7}},
      'mscale=1.0 is not supported; give attention_factor',
    ),
    ('llama', {'attention_bias': True}, r'no tensor model\.layers\.0\.self_attn\.q_proj\.bias'),
    ('modernbert', {'layer_types': ['sliding_attention'] * 5}, 'layer_types='),
    ('bert-classes', {'problem_type': 'regression'}, "problem_type='regression'"),
    ('bert', {'vocab_size': None}, 'vocab_size=None'),
  ],
)
def test_configs_that_are_not_supported(name, change, message, tmp_path):
  case = cases.CASES[name]
  saved(case, tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(config | change))
  refused(tmp_path, case, message)


def test_a_pickled_file(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  with pytest.raises(UserError, match='pytorch_model.bin: only safetensors are read; convert it'):
    convert.open_folder(tmp_path)


# ------------------------------------------------------------------------------- from a config


@pytest.mark.parametrize('name', [n for n in cases.CASES if not n.endswith('-trunk')])
def test_a_model_that_was_not_imported_is_read_by_transformers(name, tmp_path):
  """config.json and tensors made from flaxlm's config alone give the same outputs there."""
  import transformers

  case = cases.CASES[name]
  torch_model, arrays = case.make(), cases.inputs(case)
  described, source = public.described(torch_model)
  leaves = public.shapes(public.model_of(described), _reference.batch_of(described, arrays))
  found = convert.load(described, source, leaves)
  options = dict(described.head.options)
  again = convert.for_export(
    described.model, described.head.objective, options, described.labels, case.cls
  )
  tensors = convert.save(again, found.leaves, {}, {}, 'F32')
  files.write(tmp_path / files.WEIGHTS, tensors.items(), {'format': 'pt'})
  ids = {name: value for name, value in case.config.items() if name.endswith('token_id')}
  config = again.config_json | ids | {'pad_token_id': case.pad}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  theirs = getattr(transformers, case.cls).from_pretrained(tmp_path).eval()
  with torch.no_grad():
    expected, written = (
      cases.main_output(cases.run(model, arrays)) for model in (torch_model, theirs)
    )
  keep = arrays['attention_mask'] if expected.ndim == 3 and not case.encoder_decoder else None
  public.assert_close(written, expected, keep)
  assert theirs.config.num_labels == torch_model.config.num_labels
  back, _ = public.described(theirs)
  assert (back.head, back.labels) == (described.head, described.labels)


def test_what_was_fine_tuned_is_of_the_class_it_came_from():
  for name, objective in [('gpt2', 'completion'), ('bart', 'seq2seq'), ('t5', 'seq2seq')]:
    described, _ = public.described(cases.CASES[name].make())
    found = convert.for_export(described.model, objective, {}, ())
    assert found.architecture == described.architecture
  described, _ = public.described(cases.CASES['gpt2'].make())
  # It reads the beginning of a text in both directions, which no public class does.
  with pytest.raises(UserError, match="has the head of the objective 'prefix_lm'"):
    convert.for_export(described.model, 'prefix_lm', {}, ())


def test_how_a_model_is_run_is_no_part_of_its_files():
  import dataclasses

  described, _ = public.described(cases.CASES['bert'].make())
  plain = dataclasses.replace(described.model, attention_kernel='plain')
  convert.for_export(plain, 'masked_lm', {'pairs': 'next_sentence'}, ())
  other = dataclasses.replace(described.model, token_types=0)
  with pytest.raises(UserError, match='config.model.token_types: the files of bert'):
    convert.for_export(other, 'masked_lm', {'pairs': 'next_sentence'}, (), 'BertForPreTraining')


def test_a_number_that_is_too_large_for_a_dtype():
  from flaxlm.interop import engine

  assert engine._cast(np.float32([6e4]), 'F16', 'x').dtype == np.float16
  with pytest.raises(UserError, match='x holds 100000, which float16 cannot'):
    engine._cast(np.float32([-1e5]), 'F16', 'x')


def test_a_model_that_no_public_class_holds():
  described, _ = public.described(cases.CASES['gpt2'].make())
  import dataclasses

  other = dataclasses.replace(described.model, norm='rmsnorm')
  with pytest.raises(UserError, match='no public architecture holds this model; .*GPT2LMHeadModel'):
    convert.for_export(other, 'causal_lm', {}, ())
  with pytest.raises(UserError, match='does not have the head of the objective'):
    convert.for_export(described.model, 'causal_lm', {}, (), 'GPT2ForSequenceClassification')
