"""`import` and `export`: a workdir like any other, byte-equal files, errors of one line."""

import importlib
import json
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from public_folder import BERT as CONFIG
from public_folder import WORDS, raw, run, write_bert

from flaxlm.errors import UserError
from flaxlm.interop import convert, files, mapping
from flaxlm.training import loop


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """(the folder, the workdir it was read into)"""
  folder = write_bert(tmp_path_factory.mktemp('public') / 'bert')
  workdir = folder.parent / 'runs' / 'bert'
  assert run('import', f'--from={folder}', f'--workdir={workdir}') == 0
  return folder, workdir


def test_export_gives_back_the_file(imported, tmp_path, capsys):
  folder, workdir = imported
  assert run('export', f'--workdir={workdir}', f'--to={tmp_path / "again"}') == 0
  assert raw(tmp_path / 'again') == raw(folder)
  assert (tmp_path / 'again' / 'vocab.txt').read_text() == (folder / 'vocab.txt').read_text()
  again = json.loads((tmp_path / 'again' / 'config.json').read_text())
  assert again == json.loads((folder / 'config.json').read_text())
  manifest = json.loads((workdir / 'hf' / 'manifest.json').read_text())
  assert manifest['rebuilt'] == ['bert.embeddings.position_ids']
  assert set(d for d, _ in manifest['tensors'].values()) == {'F16', 'I64'}


def test_another_dtype_is_that_of_what_was_learned(imported, tmp_path):
  flags = f'--workdir={imported[1]}', f'--to={tmp_path / "out"}', '--dtype=bfloat16'
  assert run('export', *flags) == 0
  tensors = files.Tensors(tmp_path / 'out')
  places = 'bert.embeddings.position_ids'
  assert {tensors.dtypes[name] for name in tensors.shapes if name != places} == {'BF16'}
  assert tensors.dtypes[places] == 'I64'
  np.testing.assert_array_equal(tensors.read(places)[0], np.arange(tensors.shapes[places][1]))


def test_another_class_and_dtype(imported, tmp_path):
  folder, workdir = imported
  flags = f'--workdir={workdir}', f'--to={tmp_path / "trunk"}'
  assert run('export', *flags, '--architecture=BertModel', '--dtype=bfloat16') == 0
  tensors = files.Tensors(tmp_path / 'trunk')
  assert set(tensors.dtypes.values()) == {'BF16'}
  assert {'embeddings.LayerNorm.weight', 'pooler.dense.bias'} <= tensors.shapes.keys()
  assert not [name for name in tensors.shapes if name.startswith(('cls', 'bert'))]
  described, _ = convert.open_folder(tmp_path / 'trunk')
  assert described.architecture == 'BertModel' and described.config_json['dtype'] == 'bfloat16'
  for name in ('vocab.txt', 'tokenizer_config.json'):
    assert (tmp_path / 'trunk' / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.full
def test_a_mixture_is_of_the_class_of_its_first_member(tmp_path):
  folder = tiny.write_corpus(tmp_path / 'text')
  config = tiny.load('mixture.py', folder, (('total_steps', '1'),))
  loop.fit(tiny.build(config, tmp_path / 'run'), tmp_path / 'run')
  assert run('export', f'--workdir={tmp_path / "run"}', f'--to={tmp_path / "public"}') == 0
  described, tensors = convert.open_folder(tmp_path / 'public')
  assert (
    described.architecture == 'T5ForConditionalGeneration' and 'shared.weight' in tensors.shapes
  )


def test_the_workdir_serves_other_commands(imported, capsys):
  _, workdir = imported
  capsys.readouterr()
  assert run('fill-mask', f'--workdir={workdir}', '--text=a [MASK] c.', '--json') == 0
  (mask,) = json.loads(capsys.readouterr().out)['masks']
  assert len(mask['candidates']) == 5
  assert {candidate['token'] for candidate in mask['candidates']} <= set(WORDS)


def test_a_classifier_starts_from_the_pooler(imported, tmp_path, root):
  """The one that was pretrained on pairs, and nothing else of that head."""
  from flaxlm.config import recipe
  from flaxlm.training import checkpoint
  from flaxlm.training.experiment import build

  _, workdir = imported
  rows = tmp_path / 'rows.tsv'
  rows.write_text('text\tlabel\n' + 'a b\tx\nc d\ty\n' * 20)
  overrides = [('init_from', str(workdir)), ('data.train', str(rows))]
  config = recipe.load(str(root / 'configs' / 'classify.py'), overrides)
  state, *_ = loop.start(build(config, tmp_path / 'run'), tmp_path / 'run')
  directory = workdir / 'checkpoints'
  stored = checkpoint.stored_params(directory, 0)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    for path, leaf in stored.items()
    if path.startswith('head/nsp/pooler/')
  }
  pretrained = checkpoint.restore_params(directory, 0, wanted, checkpoint.read_meta(directory, 0))
  for name in ('bias', 'kernel'):
    mine = state.params['head']['classes']['pooler'][name]
    np.testing.assert_array_equal(mine, pretrained[f'head/nsp/pooler/{name}'])
  report = json.loads((tmp_path / 'run' / 'restore_report.json').read_text())
  assert report['renamed'] == [
    f'head/nsp/pooler/{name} -> head/classes/pooler/{name}' for name in ('bias', 'kernel')
  ]
  assert report['fresh'] == ['head/classes/out/bias', 'head/classes/out/kernel']


def reference(folder, change=0.0):
  """Adds reference logits, made by a copy of the model that was imported without them."""
  from flaxlm.commands import _reference
  from flaxlm.training.experiment import open_model

  workdir = folder.parent / 'first'
  assert run('import', f'--from={folder}', f'--workdir={workdir}') == 0
  experiment, params, _ = open_model(workdir, 'latest')
  described, _ = convert.open_folder(folder)
  arrays = {'input_ids': np.array([[2, 5, 6, 3]]), 'attention_mask': np.array([[1, 1, 1, 0]])}
  batch = _reference.batch_of(described, arrays)
  logits = _reference.outputs(described, experiment.model, params, batch) + change
  safetensors.numpy.save_file(arrays | {'logits': logits}, folder / _reference.FILE)


def test_reference_logits_are_compared(tmp_path, capsys):
  folder = write_bert(tmp_path / 'bert')
  reference(folder)
  assert run('import', f'--from={folder}', f'--workdir={tmp_path / "second"}') == 0
  assert 'agree with reference.safetensors' in capsys.readouterr().err


def test_other_reference_logits_are_an_error(tmp_path, capsys):
  folder = write_bert(tmp_path / 'bert')
  reference(folder, change=0.5)
  assert run('import', f'--from={folder}', f'--workdir={tmp_path / "second"}') == 1
  assert 'differs from the original by' in capsys.readouterr().err
  assert not (tmp_path / 'second').exists()


def truncate(folder):
  (folder / files.WEIGHTS).write_bytes(raw(folder)[:-7])


def other_shape(folder):
  (folder / 'config.json').write_text(json.dumps(CONFIG | {'intermediate_size': 32}))


def more_words(folder):
  (folder / 'vocab.txt').write_text('\n'.join([*WORDS, 'e', 'f']) + '\n')


def fewer_words(folder):
  """As a download leaves it that was cut short."""
  (folder / 'vocab.txt').write_text('\n'.join(WORDS[:4]) + '\n')


def no_tokenizer(folder):
  (folder / 'vocab.txt').unlink()


def other_architecture(folder):
  (folder / 'config.json').write_text(json.dumps(CONFIG | {'model_type': 'bertt'}))


@pytest.mark.parametrize(
  'spoil, message',
  [
    (truncate, 'model.safetensors: not a whole safetensors file'),
    (other_shape, 'config.json implies [32, 16]'),
    (more_words, 'the tokenizer has 12 tokens, the model 10'),
    (fewer_words, 'the tokenizer has 4 tokens, the model 10'),
    (no_tokenizer, 'none of tokenizer.json'),
    (other_architecture, "model_type='bertt' is not supported (did you mean 'bert'?)"),
  ],
)
def test_bad_input_is_one_line_and_nothing_is_written(spoil, message, tmp_path, capsys):
  folder = write_bert(tmp_path / 'bert')
  spoil(folder)
  assert run('import', f'--from={folder}', f'--workdir={tmp_path / "runs" / "x"}') == 1
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith('error: ') and message in last
  assert not (tmp_path / 'runs').exists() or not list((tmp_path / 'runs').iterdir())


def test_a_folder_that_is_there_is_not_written_over(imported, capsys):
  folder, workdir = imported
  assert run('import', f'--from={folder}', f'--workdir={workdir}') == 1
  assert run('export', f'--workdir={workdir}', f'--to={folder}') == 1
  assert capsys.readouterr().err.count('is there already') == 2


def test_the_weights_alone_are_no_run_to_go_on_with(imported, tmp_path, root):
  """Resuming wants an optimizer's state; the message says what to do instead."""
  from flaxlm.training import checkpoint
  from flaxlm.training.experiment import open_model

  _, workdir = imported
  experiment, _, _ = open_model(str(workdir), 'latest')
  directory = workdir / 'checkpoints'
  meta = checkpoint.read_meta(directory, 0)
  with pytest.raises(UserError, match='--config.init_from'):
    checkpoint.restore_tree(directory, 0, experiment.abstract_state, meta)


def test_the_tokens_that_an_export_names(tmp_path):
  """RoBERTa's code takes token 1 for padding, whatever config.json says."""
  from flaxlm.commands import export
  from flaxlm.config.data import TokenizerConfig
  from flaxlm.data import tokenizer
  from flaxlm.data.tokenizer import Tokenizer

  own = tokenizer.train(TokenizerConfig(name='bytes'), [])
  families = mapping.families()
  ids = {'pad_token_id': 0, 'eos_token_id': 1, 'bos_token_id': 3}
  ids |= {'cls_token_id': 4, 'sep_token_id': 5}
  assert export._token_ids(families['gpt2'], own) == ids
  assert export._token_ids(families['t5'], own) == ids | {'decoder_start_token_id': 3}
  forced = {'forced_bos_token_id': 3, 'forced_eos_token_id': 1}
  assert export._token_ids(families['bart'], own) == ids | {'decoder_start_token_id': 1} | forced
  # No text of an encoder has the token 1, EOS, and padding is masked.
  assert export._token_ids(families['roberta'], own) == ids | {'pad_token_id': 1}
  words = ''.join(f'{word}\n' for word in WORDS)
  (tmp_path / 'vocab.txt').write_text(words)
  with pytest.raises(UserError, match='roberta want pad_token_id=1, and the vocabulary has 0'):
    export._token_ids(families['roberta'], Tokenizer.load(tmp_path))
  # A classifier would take the end of a text for padding.
  own = types.SimpleNamespace(pad_id=1, bos_id=3, eos_id=1, cls_id=4, sep_id=5)
  assert 'pad_token_id' not in export._token_ids(families['gpt2'], own)


def config_of(**fields):
  """The config of the run that an import makes of a config.json."""
  module = importlib.import_module('flaxlm.commands.import')
  return module._config(convert.describe({'vocab_size': 300, **fields}, []), 'tokenizer')


XLNET = {
  'model_type': 'xlnet', 'd_model': 16, 'n_layer': 1, 'n_head': 2, 'd_inner': 24,
  'architectures': ['XLNetLMHeadModel'],
}  # fmt: skip


def test_an_xlnet_with_a_memory_reads_what_it_remembers():
  found = config_of(**XLNET, mem_len=512)
  assert found.model.memory_length == 512 and found.data.sampling == 'streams'
  assert config_of(**XLNET).data.sampling == 'epochs'


@pytest.mark.parametrize(
  'fields, options',
  [
    (
      {'model_type': 'gpt2', 'n_embd': 16, 'n_layer': 1, 'n_head': 2},
      {'decoder_marks': 'none', 'pooling': 'last', 'pooler': 'none'},
    ),
    (
      {
        'model_type': 'llama', 'hidden_size': 16, 'num_hidden_layers': 1, 'intermediate_size': 24,
        'num_attention_heads': 2,
      },
      {'decoder_marks': 'bos', 'pooling': 'last', 'pooler': 'none'},
    ),
    (
      {**CONFIG, 'model_type': 'roberta', 'pad_token_id': 1},
      {'pair_separators': 2, 'pooling': 'first', 'pooler': 'tanh'},
    ),
    (CONFIG, {'pair_separators': 1, 'pooling': 'first', 'pooler': 'tanh'}),
    (
      {
        'model_type': 'bart', 'd_model': 16, 'encoder_layers': 1, 'decoder_layers': 1,
        'encoder_attention_heads': 2, 'decoder_attention_heads': 2, 'encoder_ffn_dim': 24,
        'decoder_ffn_dim': 24,
      },
      {'pair_separators': 2, 'marks': 'bart', 'pooling': 'last'},
    ),
  ],
  ids=['gpt2', 'llama', 'roberta', 'bert', 'bart'],
)  # fmt: skip
def test_a_classifier_reads_what_it_was_trained_on(fields, options):
  name = {'gpt2': 'GPT2', 'llama': 'Llama', 'roberta': 'Roberta', 'bert': 'Bert', 'bart': 'Bart'}
  architecture = f'{name[fields["model_type"]]}ForSequenceClassification'
  objective = config_of(**{**fields, 'architectures': [architecture]}).objective
  assert {key: getattr(objective, key) for key in options} == options


@pytest.mark.parametrize(
  'model, objective, pair, known',
  [
    ('encoder', 'classification', 'other', True),
    ('encoder', 'classification', '', False),
    # It writes the label, and knows no separators.
    ('encoder_decoder', 'seq2seq', '', False),
  ],
)
def test_separators_count_where_texts_are_pairs(model, objective, pair, known):
  from flaxlm.commands import export
  from flaxlm.config import tree

  config = tree.new(model=model, objective=objective, task='text_classification')
  config.total_steps, config.data.train, config.task.pair_column = 1, 'x.tsv', pair
  config = tree.from_config_dict(config)
  assert ('pair_separators' in export._options(config, config.objective)) == known


def test_what_an_export_would_compute_otherwise_is_named():
  model = config_of(**CONFIG).model
  options = {'pooling': 'mean', 'pooler': 'tanh', 'pair_separators': 1}
  with pytest.raises(
    UserError, match="BertFor.*: config.objective.pooling is 'mean', and the class has"
  ):
    convert.for_export(model, 'classification', options, ('a', 'b'))
