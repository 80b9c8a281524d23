"""ConfigDict, dataclasses and JSON are the same experiment; what is wrong is named."""

import dataclasses
import json
import sys
import textwrap

import pytest

from flaxlm.config import tree
from flaxlm.errors import UserError
from flaxlm.objectives import base


def small(**changes):
  config = tree.new()
  config.total_steps = 10
  for key, value in changes.items():
    config[key] = value
  return config


def test_three_forms_are_one_experiment():
  config_dict = small(mesh=(1, 1, 1))
  config_dict.model.num_kv_heads = 2
  config = tree.from_config_dict(config_dict)
  assert config.mesh == (1, 1, 1)
  assert config.model.num_kv_heads == 2
  assert config.data.max_rows is None
  text = json.dumps(tree.to_dict(config))
  assert tree.from_dict(json.loads(text)) == config
  assert tree.from_config_dict(tree.to_config_dict(config)) == config


def test_derived_fields_are_kept_in_json_only():
  config = tree.from_config_dict(small())
  model = dataclasses.replace(config.model, vocab_size=300, precision='bfloat16')
  config = dataclasses.replace(config, model=model)
  assert tree.from_dict(tree.to_dict(config)) == config
  assert 'vocab_size' not in tree.to_config_dict(config).model
  with pytest.raises(AttributeError):
    small().model.vocab_size = 3


def test_new_is_locked_and_its_unset_fields_can_be_set():
  config = tree.new()
  with pytest.raises(AttributeError):
    config.modle = 1
  with pytest.raises(TypeError):
    config.total_steps = 'many'
  config.total_steps = 3
  config.num_epochs = None
  config.data.max_rows = 7
  assert tree.from_config_dict(config).data.max_rows == 7


def test_absent_fields_have_their_defaults():
  saved = tree.to_dict(tree.from_config_dict(small()))
  del saved['optimizer']['b2'], saved['profile']
  assert tree.from_dict(saved) == tree.from_config_dict(small())


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'num_layer': 3},
      "config.model.num_layer: there is no such field (did you mean 'num_layers'?)",
    ),
    ({'num_layers': 2.5}, 'config.model.num_layers: expected whole number, got 2.5'),
    ({'num_layers': True}, 'config.model.num_layers: expected whole number, got True'),
    ({'num_layers': None}, 'config.model.num_layers: expected whole number, got none'),
    ({'num_layers': 0}, 'config.model.num_layers: must be >= 1, got 0'),
    ({'dropout_rate': 1}, 'config.model.dropout_rate: must be < 1.0, got 1.0'),
    ({'norm': 'layer'}, "config.model.norm: 'layer' is not a choice (did you mean 'layernorm'?)"),
    ({'num_heads': 3}, 'config.model.num_heads: 3 heads do not divide emb_dim=256'),
    (
      {'name': 'decodr'},
      "config.model.name: flaxlm/models has no 'decodr' (did you mean 'decoder'?)",
    ),
    ({'name': ''}, "config.model.name: flaxlm/models has no ''"),
  ],
)
def test_a_wrong_value_is_named(change, message):
  saved = tree.to_dict(tree.from_config_dict(small()))
  saved['model'] |= change
  with pytest.raises(UserError) as error:
    tree.from_dict(saved)
  assert str(error.value).startswith(message)
  assert '\n' not in str(error.value)


def test_elements_of_tuples_are_checked():
  with pytest.raises(UserError, match='config.mesh: expected whole number'):
    tree.from_config_dict(small(mesh=(1, 1, '1')))


def test_number_of_steps_is_said_once():
  with pytest.raises(UserError, match='neither is set'):
    tree.from_config_dict(tree.new())
  config = small()
  config.num_epochs = 1.0
  with pytest.raises(UserError, match='both are set'):
    tree.from_config_dict(config)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
  (tmp_path / 'own_objectives.py').write_text(
    textwrap.dedent("""
      import dataclasses
      from flaxlm.config.field import Named, field

      @dataclasses.dataclass(frozen=True)
      class Config(Named):
        rate: float = field(0.5, 'a rate', low=0.0)
    """)
  )
  (tmp_path / 'own_package').mkdir()
  (tmp_path / 'own_package' / '__init__.py').touch()
  (tmp_path / 'own_objectives.py').rename(tmp_path / 'own_package' / 'novel.py')
  (tmp_path / 'own_package' / 'broken.py').write_text('import no_such_library\n')
  (tmp_path / 'own_package' / 'empty.py').touch()
  monkeypatch.syspath_prepend(tmp_path)
  for name in [name for name in sys.modules if name.startswith('own_package')]:
    monkeypatch.delitem(sys.modules, name)  # Of the test before, from another folder.
  return 'own_package.novel'


def test_a_dotted_name_is_the_users_own_file(own_module):
  config = tree.new(objective=own_module)
  config.total_steps = 1
  config.objective.rate = 0.25
  config = tree.from_config_dict(config)
  assert config.objective.rate == 0.25
  assert tree.from_dict(tree.to_dict(config)) == config


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('own_package.nothing', "there is no module 'own_package.nothing' on the Python path"),
    ('no_package.nothing', "there is no module 'no_package.nothing' on the Python path"),
    ('own_package.broken', "'own_package.broken' cannot be imported: No module named 'no_such_"),
    ('own_package.empty', "module 'own_package.empty' has no class Config"),
    ('losses', "flaxlm/objectives has no 'losses'"),
    ('../causal_lm', "flaxlm/objectives has no '../causal_lm' (did you mean 'causal_lm'?)"),
  ],
)
def test_a_module_that_cannot_be_used_is_named(own_module, name, message):
  with pytest.raises(UserError) as error:
    tree.new(objective=name)
  assert message in str(error.value)


def test_a_class_that_breaks_its_contract_is_named(own_module, tmp_path):
  load = lambda: tree.load_class('flaxlm.objectives', own_module, base.Objective)
  with pytest.raises(UserError, match='has no class Objective that derives from flaxlm.obj'):
    load()
  code = """
    from flaxlm.objectives import base

    class Objective(base.Objective):
      def features(self, item, rng): ...
      def head(self, model): ...
  """
  with (tmp_path / 'own_package' / 'novel.py').open('a') as file:
    file.write(textwrap.dedent(code))
  sys.modules.pop(own_module)
  with pytest.raises(UserError, match=f"{own_module!r}: Objective has no method 'losses' of"):
    load()


def test_every_field_is_documented_and_its_default_is_valid():
  nodes = [tree.schema.Config] + [
    tree.node_class(node, name)
    for node, package in tree.PACKAGES.items()
    for name in tree.named_files(package)
  ]
  seen = 0
  while nodes:
    for name, (kind, rules, default) in tree.fields(nodes.pop()).items():
      if not isinstance(kind, tree.Kind):
        nodes.append(type(default))
        continue
      assert rules.doc, name
      if not rules.derived:
        tree.checked(name, default, kind, rules)
      seen += 1
  assert seen > 80
