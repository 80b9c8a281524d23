"""GLUE's files as they are: quotation marks, missing headers, ragged rows, tests without labels."""

import pytest

from flaxlm.config import recipe, tree
from flaxlm.config.data import DataConfig
from flaxlm.data import glue, source
from flaxlm.data.bad_rows import BadRows
from flaxlm.errors import UserError
from flaxlm.tasks.glue import Task
from flaxlm.training import inputs


def make(subset, objective=''):
  objective = objective or ('regression' if subset == 'stsb' else 'classification')
  model = 'encoder_decoder' if objective == 'seq2seq' else 'encoder'
  config = tree.new(model=model, objective=objective, task='glue')
  config.task.subset, config.total_steps, config.data.train = subset, 1, 'x.tsv'
  return Task(tree.from_config_dict(config))


def read(path, subset, split='train', objective=''):
  """Examples of a file, as a run reads them."""
  task = make(subset, objective)
  rows = source.rows(str(path), DataConfig(), split, task.readers)
  has_label = task.has_label if split == 'test' else lambda row: True
  return [task.parse(row, where, has_label(row)) for where, row in rows]


FILES = {
  'cola': (
    'gj04\t1\t\tThe "sailors rode.\ngj04\t0\t*\tRode "the" sailors"\n',
    [('The "sailors rode.', None, 'acceptable'), ('Rode "the" sailors"', None, 'unacceptable')],
  ),
  'sst2': ('sentence\tlabel\nfine \t1\n', [('fine ', None, 'positive')]),
  'mrpc': (
    '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t" It\'s so .\tSo " it is .\n',
    [('" It\'s so .', 'So " it is .', 'equivalent')],
  ),
  'rte': (
    'index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n',
    [('A.', 'B.', 'not_entailment')],
  ),
  'qnli': (
    'index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n',
    [('Who?', 'He.', 'entailment')],
  ),
  'qqp': (
    'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWho?\tWhat?\t0\n',
    [('Who?', 'What?', 'not_duplicate')],
  ),
  'mnli': (
    'index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n0\t1\tA.\tB.\tneutral\tcontradiction\n',
    [('A.', 'B.', 'contradiction')],
  ),
  'stsb': ('index\tsentence1\tsentence2\tscore\n0\tA.\tB.\t3.800\n', [('A.', 'B.', 3.8)]),
}


# As in appendix D of Raffel et al. 2020.
PROMPTS = {
  'cola': 'cola sentence: The "sailors rode.',
  'sst2': 'sst2 sentence: fine ',
  'mrpc': 'mrpc sentence1: " It\'s so . sentence2: So " it is .',
  'rte': 'rte sentence1: A. sentence2: B.',
  'qnli': 'qnli question: Who? sentence: He.',
  'qqp': 'qqp question1: Who? question2: What?',
  'mnli': 'mnli hypothesis: B. premise: A.',
}


@pytest.mark.parametrize('subset', PROMPTS)
def test_a_model_that_writes_reads_what_t5_was_trained_on(tmp_path, subset):
  text, expected = FILES[subset]
  (tmp_path / 'train.tsv').write_text(text)
  example = read(tmp_path / 'train.tsv', subset, objective='seq2seq')[0]
  assert (example['source'], example['target']) == (PROMPTS[subset], expected[0][-1])


def test_a_variant_that_writes_takes_all_of_a_checkpoint():
  for subset in glue.SUBSETS:
    if subset == 'stsb':
      with pytest.raises(UserError, match='no variant'):
        recipe.load('configs/glue.py:stsb-text_to_text')
      continue
    config = recipe.load(f'configs/glue.py:{subset}-text_to_text')
    plain = recipe.load(f'configs/glue.py:{subset}')
    assert (config.objective.name, config.model.name) == ('seq2seq', 'encoder_decoder')
    # The head of pretraining is what writes.
    assert not config.restore.skip and plain.restore.skip == ('^head/',)
    assert (config.task, config.data) == (plain.task, plain.data)


@pytest.mark.parametrize('subset', glue.SUBSETS)
def test_own_files(tmp_path, subset):
  text, expected = FILES[subset]
  (tmp_path / 'train.tsv').write_text(text)
  found = [
    (e['text'], e.get('text_pair'), e['label']) for e in read(tmp_path / 'train.tsv', subset)
  ]
  assert found == expected


def test_the_original_files_of_the_sts_benchmark_are_ragged(tmp_path):
  rows = ['g\tf\ty\t1\t2.500\tA.\tB.', 'g\tf\ty\t2\t0.000\tC.\tD.\tsource\tother', 'g\tf\ty']
  (tmp_path / 'sts-test.tsv').write_text('\n'.join(rows[:2]) + '\n')
  found = [(e['text'], e['text_pair'], e['label']) for e in read(tmp_path / 'sts-test.tsv', 'stsb')]
  assert found == [('A.', 'B.', 2.5), ('C.', 'D.', 0.0)]
  (tmp_path / 'sts-test.tsv').write_text('\n'.join(rows) + '\n')
  with pytest.raises(UserError, match=r'sts-test.tsv:3: 3 columns, but stsb has 7'):
    read(tmp_path / 'sts-test.tsv', 'stsb')


def test_a_test_set_without_labels_is_predicted_a_training_set_is_refused(tmp_path):
  (tmp_path / 'test.tsv').write_text('index\tsentence\n0\tBill whistled.\n')
  (example,) = read(tmp_path / 'test.tsv', 'cola', 'test')
  assert example['text'] == 'Bill whistled.' and 'label' not in example
  with pytest.raises(UserError, match=r"test.tsv:2: no column 'label'"):
    read(tmp_path / 'test.tsv', 'cola')


def with_test(subset, file):
  """The config of a run with two rows to train on and the file to test on."""
  config = tree.new(model='encoder', objective='classification', task='glue')
  config.task.subset, config.total_steps = subset, 1
  train = file.with_name('train.tsv')
  train.write_text('gj04\t1\t\tBill sang.\ngj04\t0\t*\tBill sang whistled.\n')
  config.data.train = config.data.validation = str(train)
  config.data.test = str(file)
  return tree.from_config_dict(config)


def test_a_test_set_may_lack_labels_but_not_have_wrong_ones(tmp_path):
  file = tmp_path / 'test.tsv'
  file.write_text('gj04\t1\t\tBill sang.\ngj04\tacceptible\t\tBill whistled.\n')
  with pytest.raises(UserError, match=r"test.tsv:2: unknown label 'acceptible'.*'acceptable'"):
    inputs.read_examples(with_test('cola', file), False, BadRows('error'))
  file.write_text('gj04\t1\t\tBill sang.\ngj04\t\t\tBill whistled.\n')
  _, examples = inputs.read_examples(with_test('cola', file), False, BadRows('error'))
  assert [example.get('label') for example in examples['test']] == ['acceptable', None]


def test_the_file_of_another_subset_is_named(tmp_path):
  (tmp_path / 'train.tsv').write_text('sentence\tlabel\nfine\t1\n')
  with pytest.raises(UserError, match=r'train.tsv:1: not a file of mrpc: its columns are Quality'):
    read(tmp_path / 'train.tsv', 'mrpc')


def test_rows_of_tfds_have_names_of_labels_and_no_label_in_test_sets():
  task = make('rte')
  row = {'idx': '0', 'sentence1': 'A.', 'sentence2': 'B.', 'label': 'entailment'}
  assert task.parse(row, 'tfds:glue/rte/train:0')['label'] == 'entailment'
  assert 'label' not in task.parse(row | {'label': '-1'}, 'tfds:glue/rte/test:0', labelled=False)
  with pytest.raises(UserError, match="unknown label '-1'"):
    task.parse(row | {'label': '-1'}, 'tfds:glue/rte/train:0')
  for label in ('2', '²'):
    with pytest.raises(UserError, match=f"unknown label '{label}'"):
      task.parse(row | {'label': label}, 'rte.tsv:1')


@pytest.mark.parametrize('subset, objective', [('stsb', 'classification'), ('cola', 'regression')])
def test_a_subset_is_one_of_labels_or_of_numbers(subset, objective):
  with pytest.raises(UserError, match=f'config.objective.name: {subset} of GLUE needs'):
    make(subset, objective)


def test_the_columns_are_those_of_tfds():
  """What TFDS calls its columns and labels, asked of TFDS itself, without its data."""
  builders = pytest.importorskip('tensorflow_datasets.text.glue')
  for config in builders.Glue.BUILDER_CONFIGS:
    if config.name in glue.SUBSETS:
      subset = glue.SUBSETS[config.name]
      assert tuple(config.text_features) == subset.columns
      assert tuple(config.label_classes or ()) == subset.labels


ROWS = {
  'CoLA/train.tsv.xz': 8551, 'CoLA/dev.tsv': 1043, 'CoLA/test.tsv': 1063,
  'MRPC/train.tsv.xz': 3668, 'MRPC/dev.tsv': 408, 'MRPC/test.tsv.xz': 1725,
  'MRPC/msr_paraphrase_test.txt.xz': 1725, 'RTE/train.tsv.xz': 2490, 'RTE/dev.tsv': 277,
  'SST-2/train.tsv.xz': 67349, 'SST-2/dev.tsv': 872, 'SST-2/test.tsv': 1821,
  'STS-B/train.tsv.xz': 5749, 'STS-B/dev.tsv': 1500, 'STS-B/original/sts-test.tsv': 1379,
}  # fmt: skip
NAMES = {'CoLA': 'cola', 'MRPC': 'mrpc', 'RTE': 'rte', 'SST-2': 'sst2', 'STS-B': 'stsb'}


@pytest.mark.full
@pytest.mark.parametrize('place', ROWS)
def test_the_real_files_have_as_many_rows_as_published(data_folder, place):
  name = NAMES[place.partition('/')[0]]
  split = 'test' if place.endswith(('/test.tsv', '/test.tsv.xz')) else 'train'
  examples = read(data_folder / 'glue' / place, name, split)
  assert len(examples) == ROWS[place]
  assert all(('label' in example) == (split == 'train') for example in examples)
