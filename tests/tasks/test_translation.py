"""Translation and summarisation: rows, and what is reported of written texts."""

import json

import numpy as np
import pytest

from flaxlm.config import tree
from flaxlm.data.cells import NotText
from flaxlm.errors import UserError
from flaxlm.metrics import generation
from flaxlm.tasks import summarization, translation


def make(name, **fields):
  config = tree.new(model='encoder_decoder', objective='seq2seq', task=name)
  config.total_steps, config.data.train = 1, 'x.tsv'
  config.task.update(fields)
  module = {'translation': translation, 'summarization': summarization}[name]
  return module.Task(tree.from_config_dict(config))


def predictions(outputs, numbers=None):
  """Of an example each, one target token; the texts that were written for some."""
  numbers = range(len(outputs)) if numbers is None else numbers
  count = max(numbers) + 1
  return {
    'example_ids': np.arange(count), 'nll': np.ones(count), 'correct': np.ones(count),
    'ends': np.ones(count, bool), 'output_ids': np.array(numbers),
    'outputs': np.array(outputs, object),
  }  # fmt: skip


def test_translations_are_scored_against_their_targets():
  task = make('translation')
  targets = ['ein Hund l\u00e4uft im Park .', 'zwei M\u00e4nner arbeiten auf dem Dach .']
  examples = [task.parse({'text': 'x', 'target': t}, 'f:1') for t in ('never written', *targets)]
  outputs = ['ein Hund l\u00e4uft im Park .', 'zwei Frauen arbeiten auf dem Dach .']
  found = predictions(outputs, [1, 2])
  values, signatures = generation.translation(outputs, [[t] for t in targets])
  assert task.metrics(found, examples) == values | {'exact_match': 1.0}
  assert task.details(found, examples) == signatures
  records = list(task.records(found, examples))
  assert [record.get('output') for record in records] == [None, *outputs]
  assert task.files(found, examples)['outputs.txt'].decode() == '\n'.join(outputs) + '\n'


def test_without_written_texts_there_is_no_bleu():
  task = make('translation')
  examples = [task.parse({'text': 'x', 'target': 'y'}, 'f:1')]
  found = predictions(['y'])
  del found['outputs'], found['output_ids']
  assert task.metrics(found, examples) == {'exact_match': 1.0}
  assert task.details(found, examples) == {} and task.files(found, examples) == {}


@pytest.mark.parametrize('name', ['translation', 'summarization'])
@pytest.mark.parametrize(
  'row, message',
  [
    ({'text': ' ', 'target': 'y'}, "f:1: the source in column 'text' is empty"),
    ({'text': 'x', 'target': ''}, "f:1: the target in column 'target' is empty"),
    ({'text': 'x'}, "f:1: no column 'target'"),
    ({'target': 'x'}, "f:1: no column 'text'"),
    ({'text': NotText("b'\\xff'"), 'target': 'y'}, "f:1: column 'text' is not UTF-8 text"),
    ({'text': 'x', 'target': NotText("b'\\xff'")}, "f:1: column 'target' is not UTF-8 text"),
  ],
)
def test_a_malformed_row_is_named(name, row, message):
  with pytest.raises(UserError, match=message):
    make(name).parse(row, 'f:1')


@pytest.mark.parametrize('target', ['[]', '[""]', '[" "]'])
def test_a_list_without_a_summary_is_an_empty_target(target):
  with pytest.raises(UserError, match="f:1: the target in column 'target' is empty"):
    make('summarization').parse({'text': 'x', 'target': target}, 'f:1')


def test_sentences_and_references_of_a_summary():
  task = make('summarization', lead_sentences=2, prefix='tldr: ')
  row = {'text': json.dumps(['One.', 'Two.', 'Three.']), 'target': json.dumps(['short', 'brief'])}
  example = task.parse(row, 'f:1')
  assert example == {
    'text': 'tldr: One. Two. Three.', 'target': 'short', 'references': ['short', 'brief'],
    'lead': 'One. Two.',
  }  # fmt: skip
  plain = task.parse({'text': 'A b. C d. E.', 'target': '[sic] a summary'}, 'f:1')
  assert plain['lead'] == 'A b. C d.' and plain['references'] == ['[sic] a summary']


def test_rouge_of_the_model_and_of_the_lead():
  task = make('summarization')
  rows = [('The cat sat. It slept.', ['a cat slept', 'the cat sat']), ('A dog. A cat.', ['dogs'])]
  examples = [
    task.parse({'text': text, 'target': json.dumps(targets)}, 'f:1') for text, targets in rows
  ]
  outputs = ['the cat sat', 'nothing']
  found = predictions(outputs)
  references = [targets for _, targets in rows]
  metrics = task.metrics(found, examples)
  assert metrics == generation.rouge(outputs, references) | {'exact_match': 1.0}
  assert metrics['rouge1'] == 0.5
  lead = task.details(found, examples)['lead_1']
  assert lead == generation.rouge(['The cat sat.', 'A dog.'], references)


@pytest.mark.parametrize('target, said', [('\u043c\u0430\u043c\u0430', True), ('mama', False)])
def test_rouge_of_letters_that_it_does_not_know(target, said, capsys):
  task = make('summarization')
  example = task.parse({'text': 'A b.', 'target': target}, 'f:1')
  task.details(predictions([target]), [example])
  assert ('here it finds nothing' in capsys.readouterr().err) == said
