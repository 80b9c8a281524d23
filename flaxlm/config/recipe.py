"""Recipes: `configs/NAME.py[:variant]` and overrides -> the resolved experiment.

A recipe defines `get_config()`, which returns a ConfigDict made by `tree.new`. One that offers
variants also defines `VARIANTS`, names in order of which the first is the default, and
`get_config(variant)`. Variants choose the model, but for those in `ANY_MODEL`.
"""

import os
import traceback
import types
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict as cd

from flaxlm import files, terminal
from flaxlm.config import overrides as override_lib
from flaxlm.config import schema, tree
from flaxlm.errors import UserError, nearest, nearest_of_all


def load(place: str, overrides: Sequence[tuple[str, str]] = (), workdir: str = '') -> schema.Config:
  """The experiment that a recipe and the user's overrides describe.

  With `init_from`, the tokenizer is that of the checkpoint; so is the model where the recipe offers
  variants of it and the user chose none. Both are said, and both can still be overridden.

  Args:
    place: path of a Python file, and ':variant' if wanted.
    overrides: (dotted key, text) pairs, as in `overrides.apply`.
    workdir: of the run. Where it has begun, the workdir of `init_from` may be gone.

  Raises:
    UserError: for a file or variant that does not exist, a recipe that fails, and every mistake
      that `overrides.apply` and `tree.from_config_dict` know.
  """
  path, variant = split(place)
  recipe = Recipe(path)
  config_dict = recipe.config(variant)
  start = [text for key, text in overrides if key == 'init_from']
  start = os.path.expanduser(start[-1] if start else config_dict.init_from)
  if start:
    adopt(config_dict, start, with_model=recipe.leaves_the_model(variant), resumed=workdir)
  override_lib.apply(config_dict, overrides)
  return tree.from_config_dict(config_dict)


def split(place: str) -> tuple[str, str]:
  """'configs/a.py:b' -> ('configs/a.py', 'b'); without a variant the second is ''."""
  path, colon, variant = place.rpartition('.py:')
  if colon:
    return path + '.py', variant
  return place, ''


class Recipe:
  """A recipe's file, which is run once.

  path: of the file; variants: their names, of which the first is the default, or none;
  imports_recipes: whether it takes its models from other recipes.
  """

  def __init__(self, path: str):
    self.path, self._module = path, _execute(path)
    if not callable(getattr(self._module, 'get_config', None)):
      raise UserError(f'{path}: a recipe defines get_config()')
    self.variants = list(getattr(self._module, 'VARIANTS', ()))
    self.imports_recipes = any(
      isinstance(value, types.ModuleType) and hasattr(value, 'get_config')
      for value in vars(self._module).values()
    )

  def config(self, variant: str = '') -> cd.ConfigDict:
    """The recipe's own config, before overrides."""
    if variant and not self.variants:
      raise UserError(f'{self.path} has no variants, got {variant!r}')
    if variant and variant not in self.variants:
      hint = nearest_of_all(variant, self.variants, 'the variants')
      raise UserError(f'{self.path} has no variant {variant!r}{hint}')
    arguments = (variant or self.variants[0],) if self.variants else ()
    config_dict = _guarded(self.path, lambda: self._module.get_config(*arguments))
    if not isinstance(config_dict, cd.ConfigDict):
      raise UserError(
        f'{self.path}: get_config() must return a config made by flaxlm.config.tree.new'
      )
    return config_dict

  def leaves_the_model(self, variant: str) -> bool:
    """Whether `init_from` may give the model: there are several, and the user chose none."""
    any_model = getattr(self._module, 'ANY_MODEL', ())
    return bool(self.variants) and (not variant or variant in any_model)


def _execute(path: str) -> types.ModuleType:
  """Runs a recipe's file, which may lie wherever epath reads."""
  file = epath.Path(path)
  if not file.is_file():
    # A bare name is most likely one of the recipes that come with flaxlm.
    beside = '/' in path and file.parent.is_dir()
    folder = file.parent if beside else epath.Path('configs')
    names = sorted(str(f) for f in folder.glob('*.py')) if folder.is_dir() else []
    guess = path if path.endswith('.py') else path + '.py'
    hint = nearest_of_all(guess, names, 'the files')
    raise UserError(f'there is no config file {path!r}{hint}')
  module = types.ModuleType(file.stem)
  module.__file__ = str(file)
  text = file.read_text()

  def run() -> None:
    exec(compile(text, str(file), 'exec'), module.__dict__)

  _guarded(path, run)
  return module


def _guarded(path: str, call):
  """Calls into the recipe; what it raises becomes a UserError that names the line."""
  try:
    return call()
  except UserError:
    raise
  except SyntaxError as error:
    raise UserError(f'{error.filename}:{error.lineno}: {error.msg}') from error
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(epath.Path(path))]
    where = f'{path}:{lines[-1]}' if lines else path
    text = ' '.join(str(error.args[0] if error.args else error).split())
    raise UserError(f'{where}: {type(error).__name__}: {text}') from error


def check_workdir(workdir: str) -> epath.Path:
  """The config.json of a run; UserError, naming the nearest run beside it, if there is none."""
  file = epath.Path(workdir) / 'config.json'
  if not file.is_file():
    parent = epath.Path(workdir).parent
    runs = [str(f.parent) for f in parent.glob('*/config.json')] if parent.is_dir() else []
    hint = nearest(workdir, sorted(runs))
    raise UserError(f'{workdir} is not the workdir of a run: it has no config.json{hint}')
  return file


def saved(workdir: str) -> schema.Config:
  """The resolved config that a run left in its workdir."""
  file = check_workdir(workdir)
  content = files.read_json(file)
  if 'model_type' in content:
    raise UserError(
      f'{workdir} has the config.json of a published model; import it first: '
      f'python -m flaxlm import --from={workdir} --workdir=RUN'
    )
  try:
    return tree.from_dict(content)
  except UserError as error:
    raise UserError(f'{file}: {error}') from error


def _begun_from(workdir: str, resumed: str) -> schema.Config | None:
  """The config of the run in `resumed` if it began from that in `workdir`, which is gone."""
  there, here = (epath.Path(folder) / 'config.json' for folder in (workdir, resumed))
  if not resumed or there.is_file() or not here.is_file():
    return None
  config = saved(resumed)
  return config if os.path.expanduser(config.init_from) == workdir else None


# Fields of an objective that say what stands round a text, which the weights have learned.
_MARKS = ('marks', 'decoder_marks', 'pair_separators')
# The field `marks` that objectives of pretraining stand for.
_MARKS_OF = {'denoising': 'bart', 'span_corruption': 't5'}


def adopt(config_dict: cd.ConfigDict, workdir: str, *, with_model: bool, resumed: str = '') -> None:
  """Takes the tokenizer, the marks, and the model if asked, of the run in `workdir`; says so.

  resumed: workdir of a run that may have begun there, and then has taken the same before.
  """
  try:
    config = tree.to_config_dict(_begun_from(workdir, resumed) or saved(workdir))
  except UserError as error:
    raise UserError(f'config.init_from: {error}') from error
  config.tokenizer.path = str(epath.Path(workdir) / 'tokenizer')
  config.tokenizer.add = ()  # It has what the run added.
  nodes = ('model', 'tokenizer') if with_model else ('tokenizer',)
  with config_dict.unlocked():
    for node in nodes:
      del config_dict[node]
      config_dict[node] = config[node]
  config_dict.lock()
  taken = [f'model ({config.model.name})', 'tokenizer'] if with_model else ['tokenizer']
  marks = {name: config.objective[name] for name in _MARKS if name in config.objective}
  learned = config.objective.name
  if learned == 'mixture':  # Its members, as LABEL=OBJECTIVE, have the same marks.
    learned = config.objective.members[0].rpartition('=')[2]
  if learned in _MARKS_OF:
    marks['marks'] = _MARKS_OF[learned]
  if config.model.get('position_offset'):  # RoBERTa and BART; a pretraining objective has no pairs.
    marks.setdefault('pair_separators', 2)
  for name, value in marks.items():
    if config_dict.objective.get(name, value) != value:
      config_dict.objective[name] = value
      taken.append(f'objective.{name}={value}')
  terminal.say(f'{" and ".join(taken)} taken from {workdir}')
