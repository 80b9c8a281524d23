"""`import` of sharded weights, whole and spoilt; a T5 with a real SentencePiece model, and back."""

import io
import json

import numpy as np
import pytest
import safetensors.numpy
from public_folder import raw, run, write, write_bert

from flaxlm.data.tokenizer import Tokenizer
from flaxlm.evaluation import evaluator
from flaxlm.interop import files

SHARDS = 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'
SPOILT = 'bert.pooler.dense.weight'


def shard(folder):
  """Splits model.safetensors into two files and an index, tensor by tensor in turn."""
  tensors = safetensors.numpy.load(raw(folder))
  (folder / files.WEIGHTS).unlink()
  places = {name: SHARDS[i % 2] for i, name in enumerate(sorted(tensors))}
  for file in SHARDS:
    part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
    safetensors.numpy.save_file(part, folder / file, metadata={'format': 'pt'})
  index = {'metadata': {'total_size': 1}, 'weight_map': places}
  (folder / files.INDEX).write_text(json.dumps(index))
  return tensors


def test_sharded_weights_are_one_model(tmp_path):
  tensors = shard(write_bert(tmp_path / 'bert'))
  assert run('import', f'--from={tmp_path / "bert"}', f'--workdir={tmp_path / "run"}') == 0
  assert run('export', f'--workdir={tmp_path / "run"}', f'--to={tmp_path / "again"}') == 0
  again = safetensors.numpy.load(raw(tmp_path / 'again'))
  assert set(again) == set(tensors)
  for name, tensor in tensors.items():
    assert again[name].dtype == tensor.dtype and again[name].tobytes() == tensor.tobytes(), name


def test_what_is_too_large_for_a_file_is_several(tmp_path):
  """As many tensors as fit go into each; together they are what was read."""
  whole = safetensors.numpy.load(raw(write_bert(tmp_path / 'bert')))
  assert run('import', f'--from={tmp_path / "bert"}', f'--workdir={tmp_path / "run"}') == 0
  flags = f'--workdir={tmp_path / "run"}', f'--to={tmp_path / "again"}'
  assert run('export', *flags, '--max-shard-size=2e-6') == 0
  index = json.loads((tmp_path / 'again' / files.INDEX).read_text())
  assert index['metadata']['total_size'] == sum(tensor.nbytes for tensor in whole.values())
  shards = sorted(tmp_path.glob('again/model-*-of-*.safetensors'))
  sizes = []
  for number, shard in enumerate(shards, 1):
    assert shard.name == f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    held = safetensors.numpy.load_file(shard)
    assert {name for name, file in index['weight_map'].items() if file == shard.name} == set(held)
    sizes.append(sum(tensor.nbytes for tensor in held.values()))
    for name, tensor in held.items():
      assert whole.pop(name).tobytes() == tensor.tobytes()
  assert not whole and max(sizes) <= 2000
  assert all(a + b > 2000 for a, b in zip(sizes, sizes[1:], strict=False))
  assert run('import', f'--from={tmp_path / "again"}', f'--workdir={tmp_path / "run2"}') == 0


@pytest.mark.parametrize('size', ['0', '-1', 'nan', 'much'])
def test_a_file_holds_something(size, tmp_path, capsys):
  flags = f'--workdir={tmp_path / "run"}', f'--to={tmp_path / "again"}'
  assert run('export', *flags, f'--max-shard-size={size}') != 0
  assert f"argument --max-shard-size: invalid gigabytes value: '{size}'" in capsys.readouterr().err


def missing(folder):
  (folder / SHARDS[1]).unlink()


def truncated(folder):
  content = (folder / SHARDS[1]).read_bytes()
  (folder / SHARDS[1]).write_bytes(content[:-5])


def in_the_wrong_shard(folder):
  index = json.loads((folder / files.INDEX).read_text())
  at = SHARDS.index(index['weight_map'][SPOILT])
  index['weight_map'][SPOILT] = SHARDS[1 - at]
  (folder / files.INDEX).write_text(json.dumps(index))


def in_both_shards(folder):
  index = json.loads((folder / files.INDEX).read_text())
  at = SHARDS.index(index['weight_map'][SPOILT])
  tensor = safetensors.numpy.load_file(folder / SHARDS[at])[SPOILT]
  other = safetensors.numpy.load_file(folder / SHARDS[1 - at])
  safetensors.numpy.save_file(other | {SPOILT: tensor}, folder / SHARDS[1 - at])


def without_a_map(folder):
  (folder / files.INDEX).write_text('{"metadata": {}}')


@pytest.mark.parametrize(
  'spoil, message',
  [
    (missing, f'{SHARDS[1]}: {files.INDEX} names it, but there is no such file'),
    (truncated, f'{SHARDS[1]}: not a whole safetensors file'),
    (in_the_wrong_shard, f'{files.INDEX} and the file do not agree on {SPOILT}'),
    (in_both_shards, f'{files.INDEX} and the file do not agree on {SPOILT}'),
    (without_a_map, f'{files.INDEX}: it has no weight_map'),
  ],
)
def test_spoilt_shards_are_one_line_and_nothing_is_written(spoil, message, tmp_path, capsys):
  folder = write_bert(tmp_path / 'bert')
  shard(folder)
  spoil(folder)
  assert run('import', f'--from={folder}', f'--workdir={tmp_path / "runs" / "x"}') == 1
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith('error: ') and message in last
  assert not (tmp_path / 'runs').exists() or not list((tmp_path / 'runs').iterdir())


# ------------------------------------------------------------------------------------------- T5

SENTENCES = [
  'The quick brown fox jumps over the lazy dog.', 'A lazy dog sleeps in the sun all day long.',
  'Foxes are quick, and dogs are not always lazy.', 'In the sun the brown fox and the dog play.',
] * 20  # fmt: skip


def spiece():
  """A SentencePiece model as T5's: pad 0, eos 1, unk 2, no bos."""
  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=70, hard_vocab_limit=False,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
  )  # fmt: skip
  return model.getvalue()


@pytest.fixture(scope='module')
def t5(tmp_path_factory):
  """(the folder, the workdir it was read into)"""
  import sentencepiece

  content = spiece()
  pieces = sentencepiece.SentencePieceProcessor(model_proto=content).vocab_size()
  config = {
    'model_type': 't5', 'architectures': ['T5ForConditionalGeneration'], 'd_model': 16,
    'd_kv': 8, 'num_heads': 2, 'd_ff': 24, 'num_layers': 2, 'n_positions': 32,
    'is_encoder_decoder': True, 'decoder_start_token_id': 0,
    # As T5's own, the table has a few rows that no token has.
    'vocab_size': pieces + 100 + 8,
  }  # fmt: skip
  special = {'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>', 'extra_ids': 100}
  tokenizer = {'spiece.model': content, 'tokenizer_config.json': json.dumps(special).encode()}
  folder = write(tmp_path_factory.mktemp('public') / 't5', config, tokenizer, 'F32')
  workdir = folder.parent / 'run'
  assert run('import', f'--from={folder}', f'--workdir={workdir}') == 0
  return folder, workdir


def test_a_t5_goes_back_as_it_came(t5, tmp_path):
  folder, workdir = t5
  assert run('export', f'--workdir={workdir}', f'--to={tmp_path / "again"}') == 0
  assert raw(tmp_path / 'again') == raw(folder)
  for name in ('spiece.model', 'tokenizer_config.json'):
    assert (tmp_path / 'again' / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.full
def test_an_imported_t5_generates_and_is_evaluated(t5, tmp_path, capsys):
  _, workdir = t5
  capsys.readouterr()
  text = 'The quick <extra_id_0> jumps over the dog.'
  flags = '--max-new-tokens=6', '--temperature=0', '--json'
  assert run('generate', f'--workdir={workdir}', f'--prompt={text}', *flags) == 0
  found = json.loads(capsys.readouterr().out)
  assert 0 < len(found['tokens']) <= 6
  (tmp_path / 'text.txt').write_text('\n\n'.join(SENTENCES))
  overrides = [('data.validation', str(tmp_path / 'text.txt'))]
  result = evaluator.evaluate_workdir(str(workdir), 'latest', overrides)
  assert np.isfinite(result['validation']['loss'])


def assert_answers_alike(folder, workdir, text):
  """The public model writes to a prompt what the run does, greedily."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  from flaxlm.decoding import generate
  from flaxlm.decoding.cache import Reader
  from flaxlm.decoding.sampling import Sampling
  from flaxlm.training.experiment import open_model

  experiment, params, _ = open_model(str(workdir), 'latest')
  theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
  prompt = experiment.objective.prompt(text)
  assert prompt.inputs.tolist() == [0] and prompt.encoder_inputs[-1] == 1
  reader = Reader.of(experiment.model, params)
  (ours,) = generate.generate(reader, [prompt], Sampling(8, temperature=0.0))
  with torch.no_grad():
    expected = theirs.generate(
      torch.tensor(prompt.encoder_inputs[None].astype(np.int64)), max_new_tokens=8, do_sample=False
    )[0, 1:].tolist()
  ends = expected.index(1) if 1 in expected else len(expected)
  assert ours.tokens.tolist()[:ends] == expected[:ends] and ends > 1
  np.testing.assert_array_equal(
    transformers.AutoTokenizer.from_pretrained(folder)(text).input_ids, prompt.encoder_inputs
  )


@pytest.mark.full
def test_a_t5_and_its_ids_are_those_of_transformers(t5):
  assert_answers_alike(*t5, 'The lazy <extra_id_0> sleeps in the sun.')


@pytest.mark.full
def test_a_t5_that_was_taught_to_answer_is_handed_on(t5, tmp_path, root):
  from flaxlm.config import recipe
  from flaxlm.training import loop

  _, workdir = t5
  rows = [f'{text}\t{text[:12]}\n' for text in SENTENCES]
  (tmp_path / 'rows.tsv').write_text('text\ttarget\n' + ''.join(rows))
  overrides = [
    ('init_from', str(workdir)), ('data.train', str(tmp_path / 'rows.tsv')),
    ('total_steps', '3'), ('num_epochs', 'None'), ('global_batch_size', '4'),
    ('data.max_length', '64'), ('evaluation.every_steps', '0'),
  ]  # fmt: skip
  config = recipe.load(str(root / 'configs' / 'text_to_text.py'), overrides)
  loop.train(config, str(tmp_path / 'run'), overrides)
  assert run('export', f'--workdir={tmp_path / "run"}', f'--to={tmp_path / "public"}') == 0
  before, after = (files.Tensors(folder) for folder in (t5[0], tmp_path / 'public'))
  assert (before.read('shared.weight') != after.read('shared.weight')).any()
  assert_answers_alike(tmp_path / 'public', tmp_path / 'run', 'The lazy dog sleeps in the sun.')


# ------------------------------------------------------------------- published classifiers


def test_a_published_classifier_is_gone_on_from(tmp_path, root):
  """Decoder, pooler and output layer: with the same labels, nothing starts afresh."""
  from flaxlm.config import recipe
  from flaxlm.training import loop
  from flaxlm.training.experiment import build

  config = {
    'model_type': 'bart', 'architectures': ['BartForSequenceClassification'], 'd_model': 16,
    'encoder_layers': 1, 'decoder_layers': 1, 'encoder_attention_heads': 2,
    'decoder_attention_heads': 2, 'encoder_ffn_dim': 24, 'decoder_ffn_dim': 24,
    'max_position_embeddings': 32, 'vocab_size': 265, 'id2label': {'0': 'no', '1': 'yes'},
  }  # fmt: skip
  names = ['<s>', '<pad>', '</s>', '<unk>', *(f'<{i}>' for i in range(5))]
  vocabulary = {name: i for i, name in enumerate([*names, *map(chr, range(256, 512))])}
  tokenizer = {'vocab.json': json.dumps(vocabulary).encode(), 'merges.txt': b'#version: 0.2\n'}
  folder = write(tmp_path / 'bart', config, tokenizer, 'F32')
  assert run('import', f'--from={folder}', f'--workdir={tmp_path / "run"}') == 0
  rows = 'text\tlabel\n' + 'a b\tyes\nc d\tno\n' * 20
  (tmp_path / 'rows.tsv').write_text(rows)
  overrides = [
    ('init_from', str(tmp_path / 'run')), ('data.train', str(tmp_path / 'rows.tsv')),
    ('objective.pooling', 'last'), ('objective.marks', 'bart'), ('restore.skip', ''),
  ]  # fmt: skip
  found = recipe.load(str(root / 'configs' / 'classify.py'), overrides)
  loop.start(build(found, tmp_path / 'more'), tmp_path / 'more')
  report = json.loads((tmp_path / 'more' / 'restore_report.json').read_text())
  assert 'head/classes/pooler/kernel' in report['loaded']
  assert not report['fresh'] + report['dropped'] + report['reshaped'] + report['renamed']


def write_bart(folder, tokens, rows, extra=()):
  """A random BART whose last token is <mask>; `rows`: of its table."""
  special = ['<s>', '<pad>', '</s>', '<unk>']
  names = [*special, *(chr(c) for c in range(256, 256 + tokens - len(special) - 1)), '<mask>']
  settings = {
    f'{role}_token': name
    for role, name in zip(('bos', 'pad', 'eos', 'unk', 'mask'), [*special, '<mask>'], strict=True)
  }
  config = {
    'model_type': 'bart', 'architectures': ['BartForConditionalGeneration'], 'vocab_size': rows,
    'd_model': 16, 'encoder_layers': 1, 'decoder_layers': 1, 'encoder_attention_heads': 2,
    'decoder_attention_heads': 2, 'encoder_ffn_dim': 24, 'decoder_ffn_dim': 24,
    'max_position_embeddings': 32,
  }  # fmt: skip
  tokenizer = {
    'vocab.json': json.dumps({name: i for i, name in enumerate(names)}).encode(),
    'merges.txt': b'#version: 0.2\n',
    'tokenizer_config.json': json.dumps(settings).encode(),
  }
  return write(folder, config, tokenizer, 'F32', dict(extra))


def test_a_bart_without_a_row_for_its_mask(tmp_path, capsys):
  """As those fine-tuned to summarise; the version of fairseq is in them, too."""
  extra = {
    f'model.{stack}.version': np.array([3.0], np.float32) for stack in ('encoder', 'decoder')
  }
  folder = write_bart(tmp_path / 'bart', tokens=300, rows=299, extra=extra)
  workdir = tmp_path / 'run'
  assert run('import', f'--from={folder}', f'--workdir={workdir}') == 0
  assert 'no row for them: <mask>' in capsys.readouterr().err
  assert run('export', f'--workdir={workdir}', f'--to={tmp_path / "again"}') == 0
  assert raw(tmp_path / 'again') == raw(folder)
  made = Tokenizer.load(workdir / 'tokenizer')
  assert made.vocab_size == 299 and made.encode('a <mask> b').max() < 299
  assert run('generate', f'--workdir={workdir}', '--prompt=a b', '--max-new-tokens=2') == 0
  assert run('generate', f'--workdir={workdir}', '--prompt=a [MASK]', '--max-new-tokens=2') == 1
  assert 'has no mask token' in capsys.readouterr().err


def test_a_word_without_a_row_is_an_error(tmp_path, capsys):
  folder = write_bart(tmp_path / 'bart', tokens=300, rows=298)
  assert run('import', f'--from={folder}', f'--workdir={tmp_path / "run"}') == 1
  assert 'the tokenizer has 300 tokens, the model 298' in capsys.readouterr().err
