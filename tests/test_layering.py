"""Imports point only downwards, never in a circle; mesh axes and TensorFlow are named where due."""

import ast
import importlib
import pathlib
import socket

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'flaxlm'

# From the bottom to the top. A module imports only its own layer and those below it.
LAYERS = (
  {'errors', 'types', 'terminal', 'config', 'host', 'distributed', 'files', 'paths'},
  {'sharding'},
  {'layers'},
  {'models'},
  {'interop', 'metrics', 'data'},
  {'objectives', 'tasks'},
  {'decoding'},
  {'training', 'evaluation'},
  {'plan'},
  {'commands', 'commandline', '__main__'},
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
# The two files in which a mesh axis has a name: where it is made, and where the user maps to it.
MESH_FILES = ('flaxlm.sharding', 'flaxlm.config.schema')
# Reads sets that were prepared as tfrecord, where the user has TensorFlow.
TENSORFLOW_FILES = ('flaxlm.data.tfds',)


def sources():
  """Module name -> text of every file of the package."""
  found = {}
  for file in sorted(PACKAGE.rglob('*.py')):
    parts = file.relative_to(PACKAGE.parent).with_suffix('').parts
    found['.'.join(parts).removesuffix('.__init__')] = file.read_text()
  return found


def imports(name, text, modules):
  """Modules of the package that a module imports, at its top or inside a function.

  What is imported for annotations only, and never as the program runs, is not among them.
  """
  found, tree = set(), ast.parse(text)
  for block in tree.body:
    if isinstance(block, ast.If) and ast.unparse(block.test) == 'TYPE_CHECKING':
      block.body = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{name}:{node.lineno}: imports are written in full'
      # `from flaxlm.data import cache` names a module, `from flaxlm.errors import UserError` none.
      paths = {f'{node.module}.{alias.name}' for alias in node.names}
      found |= {path if path in modules else node.module for path in paths}
  return {path for path in found if path in modules} - {name}


def layer_of(module):
  """Height of a module's layer; -1 for the package itself, which anything may import."""
  _, _, rest = module.partition('.')
  if not rest:
    return -1
  top = rest.partition('.')[0]
  assert top in HEIGHT, f'{module} belongs to no layer: say in LAYERS where it stands'
  return HEIGHT[top]


def upward(graph):
  """'a imports b' for every import that points to a higher layer."""
  return [
    f'{module} imports {other}'
    for module, others in graph.items()
    for other in sorted(others)
    if layer_of(other) > layer_of(module)
  ]


def cycle(graph):
  """Modules each of which imports the next, and the last the first; [] if there are none."""
  done, path = set(), []

  def visit(module):
    if module in path:
      return path[path.index(module) :]
    if module in done:
      return []
    path.append(module)
    for other in sorted(graph[module]):
      if found := visit(other):
        return found
    done.add(path.pop())
    return []

  return next((found for module in graph if (found := visit(module))), [])


def graph_of(texts):
  return {name: imports(name, text, texts) for name, text in texts.items()}


def test_imports_point_downwards():
  assert not upward(graph_of(sources()))


def test_there_is_no_cycle():
  assert not cycle(graph_of(sources()))


def axis_names(text):
  """Lines of a module on which a mesh axis is named.

  'fsdp' and 'tensor' are no other words of ours. 'data' is: it counts where axes are expected,
  which is in collectives, partition specs, a mesh's shape and arguments called axis_name.
  """
  wanting = {'PartitionSpec', 'P', 'Mesh', 'make_mesh', 'axis_index'}
  wanting |= {'psum', 'pmean', 'pmax', 'all_gather', 'psum_scatter', 'ppermute', 'all_to_all'}
  tree = ast.parse(text)
  found = set()

  def strings(node, words):
    for leaf in ast.walk(node):
      if isinstance(leaf, ast.Constant) and leaf.value in words:
        found.add(leaf.lineno)

  strings(tree, ('fsdp', 'tensor'))
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
      for argument in node.args if name in wanting else ():
        strings(argument, ('data',))
      for keyword in node.keywords:
        if name in wanting or keyword.arg in ('axis_name', 'axis_names'):
          strings(keyword.value, ('data',))
    elif isinstance(node, ast.Subscript) and getattr(node.value, 'attr', '') == 'shape':
      strings(node.slice, ('data',))
  return sorted(found)


def test_only_the_sharding_names_mesh_axes():
  found = {name: axis_names(text) for name, text in sources().items() if name not in MESH_FILES}
  assert not {name: lines for name, lines in found.items() if lines}


def test_only_the_sharding_writes_partition_specs():
  users = [name for name, text in sources().items() if 'PartitionSpec' in text]
  assert users == ['flaxlm.sharding']


def tensorflow_imports(text):
  """(line, whether it is inside a function and may fail) of every import of TensorFlow."""
  tree = ast.parse(text)
  lazy = set()
  for function in ast.walk(tree):
    if isinstance(function, ast.FunctionDef):
      for guard in ast.walk(function):
        if isinstance(guard, ast.Try):
          lazy.update(id(node) for statement in guard.body for node in ast.walk(statement))
  found = []
  for node in ast.walk(tree):
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module] if isinstance(node, ast.ImportFrom) else []
    if any(name.split('.')[0] in ('tensorflow', 'keras', 'tf') for name in names):
      found.append((node.lineno, id(node) in lazy))
  return found


def test_tensorflow_is_never_needed():
  files = {name: text for name, text in sources().items() if tensorflow_imports(text)}
  assert set(files) <= set(TENSORFLOW_FILES)
  for name, text in files.items():
    assert all(guarded for _, guarded in tensorflow_imports(text)), name


# What the walks above must find.


def test_an_upward_import_inside_a_function_is_found():
  texts = {
    'flaxlm': '',
    'flaxlm.layers': '',
    'flaxlm.layers.norm': 'def f():\n  from flaxlm.models import block\n',
    'flaxlm.models': '',
    'flaxlm.models.block': 'from flaxlm import layers\nfrom flaxlm.layers.norm import Norm\n',
  }
  assert upward(graph_of(texts)) == ['flaxlm.layers.norm imports flaxlm.models.block']
  assert set(cycle(graph_of(texts))) == {'flaxlm.layers.norm', 'flaxlm.models.block'}
  texts['flaxlm.layers.norm'] = 'import flaxlm.models.block'
  assert upward(graph_of(texts))
  del texts['flaxlm.layers.norm']
  assert not cycle(graph_of(texts))


def test_a_file_without_a_layer_is_found():
  with pytest.raises(AssertionError, match='flaxlm.helpers belongs to no layer'):
    upward(graph_of({'flaxlm.helpers': 'import flaxlm.types', 'flaxlm.types': ''}))


@pytest.mark.parametrize(
  'line',
  [
    "P('data', None)",
    "jax.lax.psum(x, 'data')",
    "mesh.shape['data']",
    "jax.pmap(f, axis_name='data')",
    "axes = ('batch', 'tensor')",
    "jax.lax.pmean(x, axis_name=('data', 'model'))",
  ],
)
def test_a_mesh_axis_is_found(line):
  assert axis_names(f'def f():\n  {line}\n') == [2]


def test_other_uses_of_the_word_are_not():
  assert not axis_names("terminal.phase('data', x)\ntree['data'] = 1\n'''data+fsdp'''\n")


def test_tensorflow_at_the_top_of_a_file_is_found():
  assert tensorflow_imports('import tensorflow as tf') == [(1, False)]
  assert tensorflow_imports('def f():\n  from tensorflow.io import gfile') == [(2, False)]
  assert tensorflow_imports('import tensorflow_datasets') == []


def test_tests_have_no_network_and_no_tensorflow():
  with pytest.raises(OSError, match='tests have no network'):
    socket.create_connection(('192.0.2.1', 80), timeout=1)
  with pytest.raises(ModuleNotFoundError):
    importlib.import_module('tensorflow')
