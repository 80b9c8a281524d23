"""Completions and sequence to sequence: what is read, learned, cut and scored."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from objective_setup import byte_tokenizer, make

from flaxlm.data import packing
from flaxlm.data.pipeline import PackedItems
from flaxlm.types import VocabOutput

TOKENIZER = byte_tokenizer(0)
T = TOKENIZER


def completion(**changes):
  return make('completion', 'decoder', T, 'text_to_text', data__train='rows.tsv', **changes)


def seq2seq(**changes):
  return make('seq2seq', 'encoder_decoder', T, 'text_to_text', data__train='rows.tsv', **changes)


def examples(pairs):
  return [{'text': text, 'target': target} for text, target in pairs]


def batch_of(objective, rows):
  """All examples, packed; what does not fit raises."""
  packed = PackedItems(objective, objective.items(examples(rows)), 0)
  rng = np.random.default_rng(0)
  features = [[objective.features(item, rng) for item in packed[i]] for i in range(len(packed))]
  return packing.pack_rows(features, objective.streams)


pairs = st.lists(
  st.tuples(st.text('abc ', max_size=20), st.text('xyz', min_size=1, max_size=20)),
  min_size=1,
  max_size=12,
)


@hypothesis.given(pairs)
def test_a_decoder_learns_the_completion_and_its_end(rows):
  batch = batch_of(completion(), rows)
  for number, (text, target) in enumerate(rows):
    here = (batch['example_ids'] == number) & (batch['segment_ids'] > 0)
    learned = here & (batch['target_weights'] > 0)
    assert batch['inputs'][here].tolist() == [T.bos_id, *T.encode(text + target)]
    assert batch['targets'][learned].tolist() == [*T.encode(target), T.eos_id]
  total = sum(len(target) + 1 for _, target in rows)
  assert completion().weights(batch)['loss'] == total


MARKS = {'t5': ([], [T.bos_id]), 'bart': ([T.bos_id], [T.eos_id, T.bos_id])}


@pytest.mark.parametrize('marks', list(MARKS))
@hypothesis.given(rows=pairs)
def test_an_encoder_reads_the_source_and_a_decoder_learns_the_target(marks, rows):
  before, start = MARKS[marks]
  objective = seq2seq(objective__marks=marks)
  batch = batch_of(objective, rows)
  for number, (text, target) in enumerate(rows):
    here = (batch['example_ids'] == number) & (batch['decoder_segment_ids'] > 0)
    (row,) = set(np.flatnonzero(here.any(1)).tolist())
    (segment,) = set(batch['decoder_segment_ids'][here].tolist())
    source = batch['encoder_inputs'][row][batch['encoder_segment_ids'][row] == segment]
    assert source.tolist() == [*before, *T.encode(text), T.eos_id]
    assert batch['decoder_inputs'][here].tolist() == [*start, *T.encode(target)]
    learned = batch['targets'][here & (batch['target_weights'] > 0)]
    assert learned.tolist() == [*T.encode(target), T.eos_id]
    prompt = objective.prompt(text)
    assert prompt.inputs.tolist() == start and prompt.eos_id == T.eos_id
    np.testing.assert_array_equal(prompt.encoder_inputs, source)


def test_of_a_long_prompt_the_end_stays(capsys):
  """Rows of 64: 63 tokens after BOS, of which each side may have half."""
  objective = completion()
  rows = [('p' * 99 + 'q', 'c' * 10), ('q', 'c' * 99), ('p' * 99 + 'q', 'c' * 99), ('a', 'b')]
  found = objective.items(examples(rows))
  sizes = [(len(item['source']), len(item['target']), item['whole']) for item in found]
  assert sizes == [(53, 10, True), (1, 62, False), (32, 31, False), (1, 1, True)]
  assert all(item['source'][-1] == T.encode('q')[0] for item in found[:3])
  for item in found:
    f = objective.features(item, np.random.default_rng(0))
    assert len(f['inputs']) == objective.lengths(item)['inputs'] <= 64
    # A completion that was cut has no end to learn.
    assert (f['targets'][-1] == T.eos_id) == item['whole']
  assert '3 of 4 rows' in capsys.readouterr().err


def test_a_prompt_that_fills_a_row_leaves_room_for_what_is_written(capsys):
  """As beside a target of that length: a decoder that is full would read on without BOS."""
  (long,), (short,) = examples([('p' * 99 + 'q', '')]), examples([('p' * 60 + 'q', '')])
  for new_tokens, beyond, kept in ((10, 0, 53), (99, 0, 32), (10, 8, 61), (10, 99, 63)):
    objective = completion(model__max_length=64 + beyond, data__max_length=64)
    (prompt,) = objective.prompts([long], new_tokens)
    assert len(prompt.inputs) == 1 + kept and prompt.inputs[0] == T.bos_id
    assert prompt.inputs[-1] == T.encode('q')[0]
    assert len(prompt.inputs) + max(new_tokens - beyond, 0) <= 64 or kept == 32
    (prompt,) = objective.prompts([short], new_tokens)
    assert len(prompt.inputs) == 1 + min(61, kept)
  said = capsys.readouterr().err
  assert '1 of 1 prompts leave no room in a row for a completion of 10 tokens, and are cut' in said
  (prompt,) = seq2seq().prompts([long], 99)
  assert len(prompt.encoder_inputs) == 64
  assert '1 of 1 sources are longer than config.data allows' in capsys.readouterr().err


def test_of_a_long_source_and_target_the_beginning_stays(capsys):
  objective = seq2seq(data__max_target_length=20)
  ((item,), (whole,)) = (
    objective.items(examples([('s' * 99, 't' * 99)])),
    objective.items(examples([('s' * 63, 't' * 19)])),
  )
  assert (len(item['source']), len(item['target']), item['whole']) == (63, 20 - 1, False)
  assert whole['whole'] and objective.lengths(whole) == {'encoder': 64, 'decoder': 20}
  assert '1 of 1 rows' in capsys.readouterr().err


@pytest.mark.parametrize('marks, sizes', [('t5', (63, 19)), ('bart', (62, 18))])
def test_a_long_pair_fills_its_rows_and_no_more(marks, sizes):
  objective = seq2seq(data__max_target_length=20, objective__marks=marks)
  rows = [('s' * 99, 't' * 99), tuple(letter * n for letter, n in zip('st', sizes, strict=True))]
  cut, whole = objective.items(examples(rows))
  assert [(len(item['source']), len(item['target'])) for item in (cut, whole)] == [sizes, sizes]
  assert objective.lengths(whole) == {'encoder': 64, 'decoder': 20}
  batch_of(objective, rows)


@pytest.mark.parametrize('chunk', [10**9, 40])
def test_scores_of_tokens_against_float64(monkeypatch, chunk):
  from flaxlm.objectives import losses

  monkeypatch.setattr(losses, 'CHUNK_LOGITS', chunk)
  rng = np.random.default_rng(0)
  hidden, table = rng.normal(size=(3, 7, 5)), rng.normal(size=(16, 5))
  targets = rng.integers(0, 11, (3, 7))
  output = VocabOutput(jnp.float32(hidden), jnp.float32(table), None, 11)
  nll, correct = losses.token_scores(output, jnp.asarray(targets))
  logits = (hidden @ table.T)[..., :11]
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  want = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(nll, want, rtol=1e-5)
  np.testing.assert_array_equal(correct, logits.argmax(-1) == targets)
  assert 0 < correct.sum() < 21
