"""The programs as a user runs them, on a few hundred kilobytes of text.

Processes are few, because each takes seconds to start: runs are shared, and mistakes that need no
process of their own are made in this one.
"""

import importlib.util
import json
import math
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import ROOT
from processes import finish, start

from flaxlm import __main__, commandline
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.training.writers import read_metrics

STEPS = 60
TINY = {
  'model.num_layers': 2,
  'model.emb_dim': 32,
  'model.num_heads': 2,
  'model.max_length': 64,
  'tokenizer.vocab_size': 420,
  'global_batch_size': 8,
  'total_steps': STEPS,
  'optimizer.learning_rate': 3e-3,
  'optimizer.warmup_steps': 10,
  'evaluation.every_steps': 20,
  'evaluation.max_batches': 4,
  'checkpoint.every_steps': 10,
  'logging.every_steps': 1,
}


def flags(**changes):
  """--config.a.b=value for each; of keys, a double underscore stands for a dot."""
  changes = {key.replace('__', '.'): value for key, value in changes.items()}
  return [f'--config.{key}={value}' for key, value in (TINY | changes).items()]


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """text.txt, 300 kB of documents; {train,dev,test}.tsv, rows whose adjective is their label."""
  folder = tmp_path_factory.mktemp('corpus')
  rng = np.random.default_rng(0)
  nouns, verbs = ['film', 'plot', 'actor', 'scene', 'song'], ['was', 'seemed', 'felt', 'is']
  adjectives = {
    'good': ['great', 'lovely', 'superb', 'warm'],
    'bad': ['dull', 'awful', 'weak', 'cold'],
  }
  words = lambda kind: str(rng.choice(kind))

  def sentence(label):
    return f'The {words(nouns)} {words(verbs)} {words(adjectives[label])} and long.'

  documents = []
  for _ in range(1200):
    label = words(['good', 'bad'])
    documents.append('\n'.join(sentence(label) for _ in range(rng.integers(2, 15))))
  (folder / 'text.txt').write_text('\n\n'.join(documents))
  assert 200_000 < (folder / 'text.txt').stat().st_size < 500_000
  for split, count in (('train', 400), ('dev', 60), ('test', 60)):
    labels = [words(['good', 'bad']) for _ in range(count)]
    rows = [f'{sentence(label)}\t{label}' for label in labels]
    (folder / f'{split}.tsv').write_text('\n'.join(['text\tlabel', *rows]) + '\n')
  return folder


def stop(process, workdir, step, signum):
  """Sends a signal once metrics.jsonl has reached a step."""
  file = workdir / 'metrics.jsonl'
  while process.poll() is None:
    if file.exists() and any(line['step'] >= step for line in read_metrics(workdir)):
      process.send_signal(signum)
      return
    time.sleep(0.005)
  pytest.fail(process.stderr.read())


def train(recipe, workdir, **changes):
  return start('train.py', f'--config=configs/{recipe}', f'--workdir={workdir}', *flags(**changes))


@pytest.fixture(scope='module')
def bert(corpus, tmp_path_factory):
  """(workdir of a run that was killed and repeated, workdir of one that was left alone)."""
  killed, whole = tmp_path_factory.mktemp('bert') / 'killed', tmp_path_factory.mktemp('bert') / 'w'
  finish(train('bert.py:mini', whole, data__train=corpus / 'text.txt'))
  process = train('bert.py:mini', killed, data__train=corpus / 'text.txt')
  stop(process, killed, 25, signal.SIGKILL)
  finish(process, -signal.SIGKILL)
  _, errors = finish(train('bert.py:mini', killed, data__train=corpus / 'text.txt'))
  assert 'going on from step' in errors
  return killed, whole


@pytest.fixture(scope='module')
def gpt(corpus, tmp_path_factory):
  """(workdir, stderr of each start) of a run stopped by SIGTERM, by Ctrl-C, then left alone."""
  workdir = tmp_path_factory.mktemp('gpt') / 'run'
  said = []
  for step, signum in ((15, signal.SIGTERM), (35, signal.SIGINT)):
    process = train('gpt2.py:mini', workdir, data__train=corpus / 'text.txt')
    stop(process, workdir, step, signum)
    said.append(finish(process, 128 + signum)[1])
  said.append(finish(train('gpt2.py:mini', workdir, data__train=corpus / 'text.txt'))[1])
  return workdir, said


def test_kill_9_and_resume_equals_left_alone(bert):
  lines = [[line | {'tokens_per_second': 0} for line in read_metrics(w)] for w in bert]
  assert lines[0] == lines[1]
  steps = [line['step'] for line in lines[0] if line['split'] == 'train']
  assert steps == list(range(1, STEPS + 1))
  assert [line['step'] for line in lines[0] if line['split'] == 'validation'] == [20, 40, 60]
  losses = [line['loss'] for line in lines[0] if line['split'] == 'train']
  assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_stopped_runs_save_and_go_on(gpt):
  workdir, said = gpt
  stopped = []
  for errors, name in zip(said[:2], ('SIGTERM', 'SIGINT'), strict=True):
    (line,) = [line for line in errors.splitlines() if 'the same command goes on' in line]
    assert f'stopped by {name}' in line
    stopped.append(line.split('at step ')[1].split(';')[0])
  for step, errors in zip(stopped, said[1:], strict=True):
    # No step is lost: the run goes on from the one at which it was stopped.
    assert f'going on from step {step}' in errors
  lines = [line for line in read_metrics(workdir) if line['split'] == 'train']
  assert [line['step'] for line in lines] == list(range(1, STEPS + 1))


def test_eval(bert, tmp_path):
  workdir = shutil.copytree(bert[0], tmp_path / 'moved')  # It needs nothing but the workdir.
  result = json.loads(finish(start('eval.py', f'--workdir={workdir}'))[0])
  assert result['checkpoint'] == STEPS
  assert {'loss', 'mlm_loss', 'nsp_loss', 'mlm_accuracy', 'nsp_accuracy'} <= set(
    result['validation']
  )
  assert json.loads((workdir / 'eval' / f'{STEPS}.json').read_text()) == result


@pytest.mark.full
def test_fine_tune_and_predict(bert, corpus, tmp_path):
  """The trunk is loaded, the labels are learned, and eval.py writes what it predicted."""
  workdir = tmp_path / 'tuned'
  finish(
    start(
      'train.py', '--config=configs/classify.py', f'--workdir={workdir}',
      f'--config.init_from={bert[0]}', f'--config.data.train={corpus}/train.tsv',
      f'--config.data.validation={corpus}/dev.tsv', f'--config.data.test={corpus}/test.tsv',
      '--config.num_epochs=6', '--config.optimizer.learning_rate=3e-3',
    )
  )  # fmt: skip
  report = json.loads((workdir / 'restore_report.json').read_text())
  pooler = {f'head/classes/pooler/{name}' for name in ('bias', 'kernel')}
  assert pooler == {path for path in report['loaded'] if not path.startswith('trunk/')}
  assert report['fresh'] and all(path.startswith('head/') for path in report['fresh'])
  result = json.loads(finish(start('eval.py', f'--workdir={workdir}', '--checkpoint=best'))[0])
  test = result['test']
  assert test['accuracy'] > 0.8
  assert {'loss', 'accuracy', 'f1'} <= {key.split('_')[0] for key in test}
  file = workdir / 'eval' / f'{result["checkpoint"]}-test.jsonl'
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  texts = [line.split('\t') for line in (corpus / 'test.tsv').read_text().splitlines()[1:]]
  assert [[row['text'], row['label']] for row in rows] == texts
  accuracy = np.mean([row['prediction'] == row['label'] for row in rows])
  assert math.isclose(accuracy, test['accuracy'], abs_tol=1e-6)
  output = tmp_path / 'predicted.jsonl'
  words = ['--checkpoint=best', f'--input={corpus}/test.tsv', f'--output={output}']
  finish(start('-m', 'flaxlm', 'predict', f'--workdir={workdir}', *words))
  predicted = [json.loads(line)['prediction'] for line in output.read_text().splitlines()]
  assert predicted == [row['prediction'] for row in rows]


def test_fill_mask(bert):
  text = 'The film was [MASK] and long.'
  output, _ = finish(
    start('-m', 'flaxlm', 'fill-mask', f'--workdir={bert[0]}', f'--text={text}', '--json')
  )
  found = json.loads(output)
  (mask,) = found['masks']
  assert found['text'] == text and len(mask['candidates']) == 5
  probabilities = [candidate['probability'] for candidate in mask['candidates']]
  assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1.001


def test_generate(gpt):
  words = ['--prompt=The film', '--max-new-tokens=20', '--temperature=0', '--json']
  output, _ = finish(start('-m', 'flaxlm', 'generate', f'--workdir={gpt[0]}', *words))
  found = json.loads(output)
  tokenizer = Tokenizer.load(gpt[0] / 'tokenizer')
  tokens = [*tokenizer.encode('The film'), *found['tokens']]
  assert found['prompt'] + found['output'] == tokenizer.decode(tokens)
  assert 0 < len(found['tokens']) <= 20


def test_plot(gpt):
  finish(start('-m', 'flaxlm', 'plot', f'--workdir={gpt[0]}'))
  assert (gpt[0] / 'curves.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.full
def test_encoder_decoder(corpus, tmp_path):
  """Pretrain, generate and fine-tune the third family."""
  workdir, tuned = tmp_path / 't5', tmp_path / 'tuned'
  sizes = {'tokenizer__vocab_size': 520, 'data__train': corpus / 'text.txt'}
  finish(train('t5.py:mini', workdir, **sizes))
  words = ['--prompt=The film <extra_id_0> and long.', '--max-new-tokens=8', '--json']
  output, _ = finish(start('-m', 'flaxlm', 'generate', f'--workdir={workdir}', *words))
  assert len(json.loads(output)['tokens']) <= 8
  finish(
    start(
      'train.py', '--config=configs/classify.py', f'--workdir={tuned}',
      f'--config.init_from={workdir}', f'--config.data.train={corpus}/train.tsv',
      f'--config.data.validation={corpus}/dev.tsv', '--config.num_epochs=1',
    )
  )  # fmt: skip
  result = json.loads(finish(start('eval.py', f'--workdir={tuned}'))[0])
  assert 0 <= result['validation']['accuracy'] <= 1


# Mistakes: one `error:` line that names the culprit, status 1, no traceback.


def program(name):
  """main of train.py, eval.py or `python -m flaxlm`."""
  if name == 'flaxlm':
    return __main__.main
  spec = importlib.util.spec_from_file_location(name, ROOT / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.main


def check_error(errors, *parts):
  lines = [line for line in errors.splitlines() if line.startswith('error:')]
  assert len(lines) == 1 and errors.splitlines()[-1] == lines[0], errors
  assert 'Traceback' not in errors
  for part in parts:
    assert part in lines[0]


@pytest.fixture
def fails(capfd, monkeypatch):
  """Runs a program in this process, and checks how it fails."""
  monkeypatch.chdir(ROOT)

  def run(name, words, *parts):
    capfd.readouterr()
    assert commandline.run(program(name), [str(word) for word in words]) == 1
    check_error(capfd.readouterr().err, *parts)

  return run


GPT = '--config=configs/gpt2.py:mini'


@pytest.mark.parametrize(
  'words, parts',
  [
    ([GPT, '--config.data.train=nosuch.txt'], ('config.data', 'nosuch.txt')),
    ([GPT, '--config.optimizer.learning_rat=1'], ('learning_rat', 'learning_rate')),
    ([GPT, '--config.total_steps=many'], ('config.total_steps', 'many')),
    ([GPT, '--config.total_steps=0'], ('config.total_steps',)),
    ([GPT, '--config.model.num_heads=3'], ('config.model.num_heads', '256')),
    ([GPT, '--config.objective.name=masked_lm'], ('config.objective.name', 'encoder')),
    ([GPT, '--config.init_from=nosuch'], ('config.init_from', 'nosuch')),
    ([GPT, '--configg.seed=1'], ('--configg',)),
    (['--config=configs/gpt2.py:tiny'], ("'tiny'", 'mini')),
    (['--config=configs/gpt9.py'], ('configs/gpt9.py', 'configs/gpt2.py')),
    ([], ('--config',)),
  ],
)
def test_mistakes_on_the_command_line(fails, tmp_path, words, parts):
  fails('train', [f'--workdir={tmp_path}/run', *words], *parts)


def test_a_mistake_in_a_process_of_its_own(tmp_path):
  words = ('train.py', GPT, f'--workdir={tmp_path}/run', '--config.model.emb_dimm=8')
  output, errors = finish(start(*words), status=1)
  assert not output
  check_error(errors, 'config.model.emb_dimm', 'emb_dim')


def test_malformed_rows_are_named_by_file_and_line(fails, corpus, tmp_path):
  words = ['--config=configs/classify.py', f'--workdir={tmp_path}/run']
  words.append(f'--config.data.train={corpus}/train.tsv')
  jsonl, tsv = tmp_path / 'dev.jsonl', tmp_path / 'dev.tsv'
  jsonl.write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": }\n')
  fails('train', [*words, f'--config.data.validation={jsonl}'], f'{jsonl}:2')
  jsonl.write_text('{"text": "a", "label": "good"}\n{"txt": "b", "label": "bad"}\n')
  fails('train', [*words, f'--config.data.validation={jsonl}'], f'{jsonl}:2', 'text_column')
  # A label that no training row has.
  tsv.write_text('text\tlabel\nx\tgood\ny\tgod\n')
  fails('train', [*words, f'--config.data.validation={tsv}'], f'{tsv}:3', "'god'", "'good'")


@pytest.mark.parametrize(
  'changes, key',
  [
    ({'optimizer__learning_rate': 1e-4}, 'config.optimizer.learning_rate'),
    ({'model__emb_dim': 64}, 'config.model.emb_dim'),
    ({'seed': 1}, 'config.seed'),
    ({'global_batch_size': 16}, 'config.global_batch_size'),
  ],
)
def test_a_second_run_in_the_same_workdir_changes_nothing(fails, gpt, corpus, changes, key):
  workdir = gpt[0]
  before = (workdir / 'metrics.jsonl').read_text(), (workdir / 'config.json').read_text()
  words = flags(**({'data__train': corpus / 'text.txt'} | changes))
  fails('train', [GPT, f'--workdir={workdir}', *words], key)
  assert before == ((workdir / 'metrics.jsonl').read_text(), (workdir / 'config.json').read_text())


def test_what_a_workdir_is_not_for(fails, gpt, bert, tmp_path):
  fails('eval', [f'--workdir={tmp_path}/none'], f'{tmp_path}/none')
  fails('eval', [f'--workdir={gpt[0]}', '--checkpoint=7'], '--checkpoint=7', str(STEPS))
  fails('eval', [f'--workdir={gpt[0]}', '--config.seed=2'], 'config.seed')
  fails('flaxlm', ['generate', f'--workdir={bert[0]}'], str(bert[0]), 'masked_lm')
  fails('flaxlm', ['generate', f'--workdir={gpt[0]}', '--top-p=2'], '--top-p')
  fails('flaxlm', ['fill-mask', f'--workdir={gpt[0]}', '--text=a [MASK]'], 'causal_lm')
  fails('flaxlm', ['fill-mask', f'--workdir={bert[0]}', '--text=a mask'], '[MASK]')
  fails('flaxlm', ['genrate', f'--workdir={gpt[0]}'], "'genrate'", "'generate'")
  words = [GPT, f'--workdir={tmp_path}/run', f'--config.init_from={bert[0]}']
  fails('train', words, 'config.model', 'init_from', "'encoder'", "'decoder'")


def flip_a_byte(directory):
  """In the middle of every file: eval.py does not read those of the optimizer's state."""
  for file in directory.rglob('*'):
    if file.is_file():
      content = bytearray(file.read_bytes())
      content[len(content) // 2] ^= 1
      file.write_bytes(content)


def test_a_flipped_byte_is_found(fails, gpt, corpus, tmp_path):
  workdir = shutil.copytree(gpt[0], tmp_path / 'run')
  checkpoints = workdir / 'checkpoints'
  flip_a_byte(checkpoints / str(STEPS) / 'state')
  fails('eval', [f'--workdir={workdir}', f'--checkpoint={STEPS}'], 'damaged', str(STEPS))
  for path in checkpoints.iterdir():
    if path.name != str(STEPS):
      flip_a_byte(path / 'state')
  fails('eval', [f'--workdir={workdir}'], 'none of the checkpoints', str(STEPS))
  words = flags(data__train=corpus / 'text.txt')
  fails('train', [GPT, f'--workdir={workdir}', *words], 'none of the checkpoints')
  words = ['--config=configs/classify.py', f'--config.data.train={corpus}/train.tsv']
  words += [f'--workdir={tmp_path}/new', f'--config.init_from={workdir}']
  fails('train', words, 'none of the checkpoints', str(workdir))


def test_a_loss_that_is_not_finite_names_step_and_batch(fails, corpus, tmp_path):
  words = flags(
    data__train=corpus / 'text.txt', optimizer__learning_rate=1e38, optimizer__clip_norm=0,
    optimizer__warmup_steps=0,
  )  # fmt: skip
  fails('train', [GPT, f'--workdir={tmp_path}/run', *words], 'step 2: loss', 'documents')
