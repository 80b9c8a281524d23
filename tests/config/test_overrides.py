"""Overrides: two passes, typed, named when wrong, and never without effect."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxlm.config import overrides, tree
from flaxlm.errors import UserError


def apply(*pairs, model='decoder', objective='causal_lm'):
  config_dict = tree.new(model=model, objective=objective)
  config_dict.total_steps = 10
  overrides.apply(config_dict, pairs)
  return tree.from_config_dict(config_dict)


def message(*pairs, **names):
  with pytest.raises(UserError) as error:
    apply(*pairs, **names)
  text = str(error.value)
  assert '\n' not in text
  return text


PAIRS = (
  ('objective.noise_density', '.3'),
  ('objective.name', 'span_corruption'),
  ('model.name', 'encoder_decoder'),
  ('model.num_decoder_layers', '3'),
  ('model.position', 't5_bias'),
  ('model.relative_buckets', '16'),
)


@settings(deadline=None)
@given(st.permutations(PAIRS))
def test_names_come_first_in_whatever_order_they_stand(pairs):
  assert apply(*pairs) == apply(*PAIRS)
  assert apply(*pairs).objective.noise_density == 0.3


def test_a_rebuilt_node_keeps_its_values_only_under_the_same_dataclass():
  config_dict = tree.new(model='decoder', objective='causal_lm')
  config_dict.total_steps = 10
  config_dict.model.emb_dim = 64
  config_dict.objective.boundaries = False
  pairs = [('model.name', 'encoder_decoder'), ('objective.name', 'span_corruption')]
  overrides.apply(config_dict, pairs)
  config = tree.from_config_dict(config_dict)
  assert config.model.emb_dim == 64
  assert config.objective.noise_density == 0.15
  assert not hasattr(config.objective, 'boundaries')
  with pytest.raises(AttributeError):
    config_dict.objective.boundaries = True


@pytest.mark.parametrize(
  ('key', 'text', 'value'),
  [
    ('seed', '7', 7),
    ('optimizer.learning_rate', '3e-4', 3e-4),
    ('optimizer.learning_rate', '1', 1.0),
    ('model.use_bias', 'False', False),
    ('model.use_bias', '1', True),
    ('init_from', '', ''),
    ('data.train', 'a,b (1).txt', 'a,b (1).txt'),
    ('data.max_rows', '5', 5),
    ('data.max_rows', 'none', None),
    ('mesh', '1,2,-1', (1, 2, -1)),
    ('mesh', '(1, 2, 1)', (1, 2, 1)),
    ('profile.steps', '[10, 15]', (10, 15)),
    ('profile.steps', '', ()),
    ('optimizer.decay_exclude', 'bias$', ('bias$',)),
    ('optimizer.decay_exclude', '(bias|scale)$,norm', ('(bias|scale)$', 'norm')),
    ('optimizer.decay_exclude', '[0-9]+/bias', ('[0-9]+/bias',)),
    ('optimizer.decay_exclude', '["a{1,2}", "b"]', ('a{1,2}', 'b')),
    ('logging.writers', 'a.b,c.d', ('a.b', 'c.d')),
  ],
)
def test_texts_are_parsed_by_the_type_of_the_field(key, text, value):
  assert tree.flatten(apply((key, text)))[key] == value


@pytest.mark.parametrize(
  ('key', 'text', 'rest'),
  [
    # Unknown keys: the nearest in the node, the same name elsewhere, initials, a misspelt node.
    ('model.num_layer', '3', "there is no such field (did you mean 'config.model.num_layers'?)"),
    ('num_layers', '3', "there is no such field (did you mean 'config.model.num_layers'?)"),
    (
      'optimizer.lr',
      '3',
      "there is no such field (did you mean 'config.optimizer.learning_rate'?)",
    ),
    ('optimiser.b1', '3', "there is no such field (did you mean 'config.optimizer.b1'?)"),
    ('a.b.c.d', '3', 'there is no such field'),
    ('.model', '3', 'there is no such field'),
    ('', '3', 'has fields of its own'),
    ('model', 'x', 'has fields of its own: set one of them, as config.model.name'),
    # Wrong types.
    ('seed', '1.5', "expected whole number, got '1.5'"),
    ('total_steps', '1e5', "expected whole number or none, got '1e5' (did you mean 100000?)"),
    ('seed', 'none', "expected whole number, got 'none'"),
    ('optimizer.learning_rate', 'fast', "expected number, got 'fast'"),
    ('optimizer.learning_rate', 'nan', 'expected number, got nan'),
    ('model.use_bias', 'maybe', "expected true or false, got 'maybe'"),
    ('mesh', '1,x,1', "expected whole numbers with commas between, got 'x'"),
    # Out of range.
    ('model.num_layers', '0', 'must be >= 1, got 0; the nearest valid value is 1'),
    ('data.holdout', '1', 'must be < 1.0, got 1.0'),
    ('model.norm', 'rms', "'rms' is not a choice (did you mean 'rmsnorm'?)"),
    (
      'objective.name',
      'casual_lm',
      "flaxlm/objectives has no 'casual_lm' (did you mean 'causal_lm'?)",
    ),
    # Impossible combinations.
    (
      'model.num_heads',
      '3',
      '3 heads do not divide emb_dim=256; the nearest number that does is 2',
    ),
    ('num_microbatches', '5', '5 does not divide global_batch_size=32'),
    # Without effect.
    ('model.rope_theta', '5', 'would do nothing: it is read only with config.model.position=rope'),
    ('model.num_decoder_layers', '5', 'would do nothing'),
    (
      'optimizer.momentum',
      '0.9',
      'would do nothing: it is read only with config.optimizer.name=sgd',
    ),
    ('model.vocab_size', '5', 'cannot be set: it comes from the tokenizer'),
  ],
)
def test_a_mistake_is_one_line_that_names_the_key(key, text, rest):
  assert message((key, text)).startswith(f'config.{key}: {rest}')


def test_a_field_is_read_if_the_resolved_config_reads_it():
  config = apply(('model.rope_theta', '5'), ('model.position', 'rope'))
  assert config.model.rope_theta == 5.0
  # Also where it is set to what it is anyway.
  assert 'would do nothing' in message(('optimizer.momentum', '0'))
  assert 'would do nothing' in message(('tokenizer.vocab_size', '99'), ('tokenizer.path', 'a'))


def test_the_length_of_the_run_may_be_said_in_either_way():
  config = apply(('num_epochs', '2'))
  assert (config.total_steps, config.num_epochs) == (None, 2.0)
  assert 'both are set' in message(('num_epochs', '2'), ('total_steps', '5'))


def test_the_last_of_two_values_wins():
  assert apply(('seed', '1'), ('seed', '2')).seed == 2


def test_differing_fields():
  first = apply(('seed', '1'))
  assert overrides.differing_fields(first, first) == []
  assert overrides.differing_fields(first, apply()) == [('seed', 1, 0)]
  other = apply(('objective.name', 'span_corruption'), ('model.name', 'encoder_decoder'))
  found = {key: (a, b) for key, a, b in overrides.differing_fields(apply(), other)}
  assert found['model.name'] == ('decoder', 'encoder_decoder')
  assert found['objective.boundaries'] == (True, overrides.ABSENT)
  assert found['objective.noise_density'] == (overrides.ABSENT, 0.15)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ([('restore.skip', 'a')], 'config.init_from=a value'),
    ([('data.label_column', 'a')], 'config.task.name=text_classification'),
    ([('data.max_target_length', '8')], 'config.model.name=encoder_decoder'),
    (
      [('optimizer.decay_exclude', 'table'), ('optimizer.weight_decay', '0')],
      'config.optimizer.weight_decay=a value',
    ),
  ],
)
def test_a_field_that_another_node_leaves_unread(overrides, message):
  with pytest.raises(UserError, match='would do nothing') as caught:
    apply(*overrides)
  assert message in str(caught.value)
