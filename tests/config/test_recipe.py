"""Recipes: every file and variant resolves, sizes are those published, errors are named."""

import dataclasses
import importlib
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from flaxlm.config import overrides, recipe, tree
from flaxlm.errors import UserError

pytestmark = pytest.mark.usefixtures('in_the_checkout')
FILES = sorted((recipe.epath.Path(__file__).parents[2] / 'configs').glob('*.py'))
PLACES = [
  f'{file}{variant}'
  for file in FILES
  for variant in ['', *(f':{name}' for name in recipe.Recipe(str(file)).variants)]
]


def test_there_are_the_recipes_that_the_documentation_names():
  names = {file.stem for file in FILES}
  assert names >= {'quickstart', 'nanogpt_char', 'gpt2', 'bert', 't5', 'classify'}


@pytest.mark.parametrize('place', PLACES, ids=lambda p: recipe.epath.Path(p).name)
def test_every_recipe_resolves_and_sets_only_what_is_read(place):
  config = recipe.load(place)
  assert tree.from_dict(json.loads(json.dumps(tree.to_dict(config)))) == config
  config_dict = tree.to_config_dict(config)
  for key, value in tree.flatten(config).items():
    parent, _, leaf = key.rpartition('.')
    _, rules, default = tree.fields(overrides.classes(config_dict)[parent])[leaf]
    # What may be left out of a checkpoint is declared for those who set init_from.
    if value != default and not rules.derived and parent != 'restore':
      assert not overrides.unread(config_dict, key), key


def test_each_docstring_opens_with_the_command():
  for file in FILES:
    assert f'python train.py --config=configs/{file.name}' in file.read_text(), file


# Parameters of the released models: Hugging Face `sum(p.numel() for p in model.parameters())` of
# GPT2Model, of BertModel less its pooler, and of T5ForConditionalGeneration less its output table.
PUBLISHED = {
  'gpt2.py:124m': 124_439_808,
  'gpt2.py:355m': 354_823_168,
  'gpt2.py:774m': 774_030_080,
  'gpt2.py:1558m': 1_557_611_200,
  'bert.py:base': 109_482_240 - 768 * 769,
  'bert.py:large': 335_141_888 - 1024 * 1025,
  't5.py:small': 60_506_624,
  't5.py:base': 222_903_552,
  't5.py:large': 737_668_096,
  't5.py:v1_1_small': 76_961_152 - 32128 * 512,
  't5.py:v1_1_base': 247_577_856 - 32128 * 768,
  't5.py:v1_1_large': 783_150_080 - 32128 * 1024,
}


@pytest.mark.parametrize('place', PUBLISHED)
def test_published_sizes(place):
  config = recipe.load(f'configs/{place}')
  vocab_size = config.tokenizer.vocab_size
  model = dataclasses.replace(config.model, vocab_size=vocab_size)
  trunk = importlib.import_module(f'flaxlm.models.{model.name}').Trunk(model)
  names = ('inputs', 'positions', 'segment_ids', 'token_type_ids')
  batch = {
    side + name: jnp.zeros((1, 8), jnp.int32)
    for side in ('', 'encoder_', 'decoder_')
    for name in names
  }
  shapes = jax.eval_shape(lambda key: trunk.init(key, batch), jax.random.key(0))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  # T5's released table has 28 rows that no piece uses; ours are padded to a multiple of 128.
  rows = 32128 if place.startswith('t5') else vocab_size
  assert count - (model.table_size - rows) * model.emb_dim == PUBLISHED[place]


def test_nanogpt_char_is_nanogpts_recipe():
  """config/train_shakespeare_char.py with the CPU flags of the README, field by field."""
  config = recipe.load('configs/nanogpt_char.py')
  model, optimizer = config.model, config.optimizer
  assert (model.num_layers, model.num_heads, model.emb_dim, model.max_length) == (4, 4, 128, 64)
  assert (model.use_bias, model.dropout_rate, model.activation) == (False, 0.0, 'gelu')
  assert (config.global_batch_size, config.total_steps) == (12, 2000)
  assert (optimizer.learning_rate, optimizer.learning_rate * optimizer.end_ratio) == (1e-3, 1e-4)
  assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.99, 0.1)
  assert (optimizer.warmup_steps, optimizer.clip_norm) == (100, 1.0)
  assert (config.data.holdout, config.data.sampling) == (0.1, 'windows')
  assert not config.objective.boundaries


def test_an_override_reaches_the_config():
  config = recipe.load('configs/gpt2.py:mini', [('model.num_layers', '2'), ('seed', '5')])
  assert (config.model.num_layers, config.seed) == (2, 5)


def write(folder, text):
  file = folder / 'mine.py'
  file.write_text('from flaxlm.config import tree\n' + text)
  return str(file)


@pytest.mark.parametrize(
  ('place', 'message'),
  [
    ('configs/gtp2.py', "no config file 'configs/gtp2.py' (did you mean 'configs/gpt2.py'?)"),
    ('gpt2', "no config file 'gpt2' (did you mean 'configs/gpt2.py'?)"),
    ('configs/gpt2.py:minni', "configs/gpt2.py has no variant 'minni' (did you mean 'mini'?)"),
    ('configs/quickstart.py:mini', "configs/quickstart.py has no variants, got 'mini'"),
    ('configs', "no config file 'configs'"),
  ],
)
def test_a_missing_file_or_variant_names_the_nearest(place, message):
  with pytest.raises(UserError) as error:
    recipe.load(place)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config():\n  return tree.new(\n', 'mine.py:3: '),
    ('def get_config():\n  c = tree.new()\n  c.model.num_layer = 3\n', 'mine.py:4: AttributeError'),
    ('def get_config():\n  c = tree.new()\n  c.seed = "x"\n', 'mine.py:4: TypeError'),
    ('import nothing_like_this\n', 'mine.py:2: ModuleNotFoundError'),
    ('def get_config():\n  return 3\n', 'get_config() must return'),
    ('x = 1\n', 'a recipe defines get_config()'),
  ],
)
def test_a_broken_recipe_names_its_line(tmp_path, text, message):
  with pytest.raises(UserError) as error:
    recipe.load(write(tmp_path, text))
  assert message in str(error.value)
  assert '\n' not in str(error.value)


@pytest.fixture
def workdir(tmp_path):
  """A run of gpt2:mini, two layers deep, as far as its config goes."""
  folder = tmp_path / 'run'
  folder.mkdir()
  config = recipe.load(
    'configs/gpt2.py:mini', [('model.num_layers', '2'), ('tokenizer.name', 'bytes')]
  )
  model = dataclasses.replace(config.model, vocab_size=263)
  config = dataclasses.replace(config, model=model)
  (folder / 'config.json').write_text(json.dumps(tree.to_dict(config)))
  return str(folder)


def test_init_from_takes_model_and_tokenizer_of_the_checkpoint(workdir, capsys):
  pairs = [('init_from', workdir)]
  config = recipe.load('configs/classify.py', pairs)
  assert (config.model.name, config.model.num_layers) == ('decoder', 2)
  assert (config.tokenizer.name, config.tokenizer.path) == ('bytes', f'{workdir}/tokenizer')
  assert config.objective.name == 'classification'
  assert f'model (decoder) and tokenizer taken from {workdir}' in capsys.readouterr().err


def test_a_variant_that_was_chosen_stands_but_the_tokenizer_is_the_checkpoints(workdir):
  config = recipe.load('configs/classify.py:encoder', [('init_from', workdir)])
  assert (config.model.name, config.model.num_layers) == ('encoder', 4)
  assert config.tokenizer.path == f'{workdir}/tokenizer'


@pytest.mark.parametrize(
  'place', ['glue.py:stsb', 'summarize.py:decoder', 'text_to_text.py:decoder']
)
def test_a_variant_that_is_none_of_the_model_takes_that_of_the_checkpoint(workdir, place):
  config = recipe.load(f'configs/{place}', [('init_from', workdir)])
  assert (config.model.name, config.model.num_layers) == ('decoder', 2)


def test_the_size_of_a_checkpoint_is_taken_where_the_label_is_written(tmp_path):
  config = recipe.load('configs/t5.py:mini', [('model.num_layers', '2')])
  (tmp_path / 'config.json').write_text(json.dumps(tree.to_dict(config)))
  for place in ('classify.py:text_to_text', 'text_to_text.py:encoder_decoder'):
    found = recipe.load(f'configs/{place}', [('init_from', str(tmp_path))])
    assert (found.model.num_layers, found.objective.name) == (2, 'seq2seq')


def test_marks_round_a_text_are_those_the_weights_have_learned(tmp_path, capsys):
  def start(model, objective, place, *pairs, **fields):
    config = tree.new(model=model, objective=objective, task='text_classification')
    if objective in ('denoising', 'span_corruption', 'mixture'):
      config.task = tree.named_dict('task', '')
    config.total_steps, config.data.train = 1, 'x.tsv'
    config.objective.update(fields)
    saved = tree.to_dict(tree.from_config_dict(config))
    (tmp_path / 'config.json').write_text(json.dumps(saved))
    return recipe.load(f'configs/{place}', [('init_from', str(tmp_path)), *pairs]).objective

  assert start('encoder_decoder', 'denoising', 'text_to_text.py').marks == 'bart'
  assert 'tokenizer and objective.marks=bart taken from' in capsys.readouterr().err
  members = {'members': ('a=denoising', 'b=denoising')}
  assert start('encoder_decoder', 'mixture', 'text_to_text.py', **members).marks == 'bart'
  assert start('encoder_decoder', 'span_corruption', 'summarize.py:bart').marks == 't5'
  asked = ('objective.marks', 't5')
  assert start('encoder_decoder', 'denoising', 'text_to_text.py', asked).marks == 't5'
  assert start('decoder', 'classification', 'classify.py').decoder_marks == 'bos_eos'
  fields = {'decoder_marks': 'none', 'pair_separators': 2}
  found = start('decoder', 'classification', 'classify.py', **fields)
  assert {name: getattr(found, name) for name in fields} == fields


def test_a_published_folder_must_be_imported(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
  with pytest.raises(UserError, match=f'import it first: .* --from={tmp_path} --workdir=RUN'):
    recipe.load('configs/classify.py', [('init_from', str(tmp_path))])


def test_what_the_run_added_to_a_vocabulary_is_not_added_again(workdir):
  file = pathlib.Path(workdir) / 'config.json'
  saved = json.loads(file.read_text())
  saved['tokenizer'] |= {'path': 'downloads/gpt2', 'add': ['mask']}
  file.write_text(json.dumps(saved))
  config = recipe.load('configs/classify.py', [('init_from', workdir)])
  assert config.tokenizer.path == f'{workdir}/tokenizer' and config.tokenizer.add == ()
  pairs = [('init_from', workdir), ('tokenizer.add', 'sentinels')]
  assert recipe.load('configs/classify.py', pairs).tokenizer.add == ('sentinels',)


def test_a_run_goes_on_although_what_it_began_from_is_gone(workdir, tmp_path):
  pairs = [('init_from', workdir), ('model.dropout_rate', '0.3')]
  begun = recipe.load('configs/classify.py', pairs)
  own = tmp_path / 'own'
  own.mkdir()
  (own / 'config.json').write_text(json.dumps(tree.to_dict(begun)))
  (pathlib.Path(workdir) / 'config.json').unlink()
  assert recipe.load('configs/classify.py', pairs, str(own)) == begun
  for other in ('', str(tmp_path / 'new')):
    with pytest.raises(UserError, match='config.init_from: .* is not the workdir of a run'):
      recipe.load('configs/classify.py', pairs, other)
  (own / 'config.json').write_text(json.dumps(tree.to_dict(begun) | {'init_from': 'another'}))
  with pytest.raises(UserError, match='config.init_from: .* is not the workdir of a run'):
    recipe.load('configs/classify.py', pairs, str(own))


def test_what_is_taken_can_be_overridden(workdir):
  pairs = [('model.dropout_rate', '0.3'), ('init_from', workdir)]
  assert recipe.load('configs/classify.py', pairs).model.dropout_rate == 0.3


def test_init_from_a_folder_that_is_no_run_names_the_nearest(workdir):
  with pytest.raises(UserError) as error:
    recipe.load('configs/classify.py', [('init_from', workdir + 'n')])
  assert str(error.value).startswith('config.init_from: ')
  assert f'did you mean {workdir!r}?' in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'\xff\xfe', 'not UTF-8'),
    (b'[1]', 'expected a JSON object'),
    (b'{', ':1: malformed JSON'),
    (b'{"model": {"name": 3}}', 'config.model.name: expected text, got 3'),
    (b'{"seed": "x"}', "config.seed: expected whole number, got 'x'"),
  ],
)
def test_what_is_no_config_of_a_run_is_named_by_its_file(tmp_path, text, message):
  (tmp_path / 'config.json').write_bytes(text)
  with pytest.raises(UserError, match=message) as raised:
    recipe.saved(str(tmp_path))
  assert str(raised.value).startswith(str(tmp_path / 'config.json'))


def test_a_seed_that_would_repeat_another_is_an_error():
  """The keys of parameters and dropout have 32 bits of it."""
  assert recipe.load('configs/gpt2.py:mini', [('seed', str(2**32 - 1))]).seed == 2**32 - 1
  with pytest.raises(UserError, match='config.seed: must be <= 4294967295'):
    recipe.load('configs/gpt2.py:mini', [('seed', str(2**32))])
