"""`python -m flaxlm plan`: without data, for the devices here and for TPU slices."""

import json
import types

import pytest

from flaxlm.commands import plan
from flaxlm.config import recipe
from flaxlm.errors import UserError
from flaxlm.plan import advice, hlo, program, report

pytestmark = pytest.mark.usefixtures('in_the_checkout')
SMALL = [
  '--config=configs/gpt2.py:mini', '--config.model.num_layers=2', '--config.model.emb_dim=16',
  '--config.model.num_heads=2', '--config.model.max_length=32', '--config.data.train=/nowhere',
]  # fmt: skip


def test_products_of_the_compiled_step_are_those_of_the_formula(capsys, tmp_path):
  """The compiled program multiplies what the formula counts, to the last operation."""
  assert plan.main([*SMALL, '--json', f'--hlo={tmp_path / "step.txt"}']) == 0
  assert hlo.parse((tmp_path / 'step.txt').read_text()).entry
  found = json.loads(capsys.readouterr().out)
  (one,) = found['attempts']
  assert one['compiler_flops_per_step'] == one['model_flops_per_step']
  assert one['fits'] is None and one['estimate'] is None and not one['collectives_per_device']
  memory = one['memory_per_device']
  assert memory['state'] >= one['parameter_bytes'] + one['optimizer_bytes']
  assert one['activation_bytes_per_device'] == memory['temporaries'] > 0


def test_shapes_alone_need_no_compiler(capsys, monkeypatch):
  monkeypatch.setattr(program, 'compile_step', lambda built: 1 / 0)
  assert plan.main([*SMALL, '--shapes', '--json']) == 0
  (one,) = json.loads(capsys.readouterr().out)['attempts']
  assert one['fits'] is one['compiler_flops_per_step'] is one['memory_per_device'] is None
  assert one['model_flops_per_step'] > 0 and one['parameter_bytes_per_device'] > 0
  assert plan.main([*SMALL, '--shapes']) == 0
  assert 'memory of each device' not in capsys.readouterr().out
  with pytest.raises(UserError, match='--hlo: there is no program with --shapes'):
    plan.main([*SMALL, '--shapes', '--hlo=program.txt'])


def test_recomputation_shows_in_the_compiled_products(capsys):
  plan.main([*SMALL, '--json', '--config.model.remat=full', '--config.model.scan_layers=True'])
  (one,) = json.loads(capsys.readouterr().out)['attempts']
  rows, length, width = one['tokens_per_step'] // 32, 32, 16
  # The forward pass of both layers again, but for the last product of each, which nothing reads.
  again = 2 * 2 * rows * length * ((4 + 4) * width**2 + 2 * length * width)
  assert one['compiler_flops_per_step'] == one['model_flops_per_step'] + again


def attempts(monkeypatch, needs, *flags):
  """Runs the command where a step needs, by config, needs(config) of 1 GiB."""

  def compile_step(built):
    return program.Program(None, None, needs(built.config), limit=2**30)

  monkeypatch.setattr(program, 'compile_step', compile_step)
  args = types.SimpleNamespace(
    config=SMALL[0].partition('=')[2], vocab_size=None, tries=20, shapes=False
  )
  args.overrides = [tuple(f.removeprefix('--config.').split('=')) for f in (*SMALL[1:], *flags)]
  plans, left = plan._attempts(args, None, None)
  return [p.change for p in plans], left


def test_changes_are_tried_from_the_cheapest_in_time(monkeypatch):
  """Heavier recomputation step by step, then micro-batches."""
  changes, left = attempts(monkeypatch, lambda c: 1200 * 2**20)
  assert [c.get('model.remat', 'none') for c in changes[:4]] == [
    'none', 'dots_and_attention', 'dots', 'attention',
  ]  # fmt: skip
  assert int(changes[-1]['num_microbatches']) == 16 and left is not None


def test_as_many_microbatches_as_the_missing_memory_asks_for(monkeypatch):
  needs = lambda c: 3 * 2**30 // c.num_microbatches
  changes, left = attempts(monkeypatch, needs, '--config.model.remat=offload')
  assert changes[:2] == [{}, {'num_microbatches': '4'}] and left is not None


def test_a_change_that_cannot_be_built_is_passed_over(monkeypatch):
  """As parameters of 1,600 columns over 256 devices: the plan so far is not lost."""
  real = plan._built

  def built(args, devices, change):
    if 'model.remat' in change:
      raise UserError('does not divide')
    return real(args, devices, change)

  monkeypatch.setattr(plan, '_built', built)
  changes, left = attempts(monkeypatch, lambda c: 1200 * 2**20)
  assert changes[:2] == [{}, {'num_microbatches': '2'}] and left[1] == {}


def test_parameters_over_as_many_devices_as_can_be():
  config = recipe.load('configs/gpt2.py:mini', [('parallelism', 'pmap')])
  size = dict.fromkeys(('parameter_bytes_per_device', 'optimizer_bytes_per_device'), 1)
  made = types.SimpleNamespace(
    mesh=(6, 1, 1), limit=100, needed=200, sizes=types.SimpleNamespace(**size)
  )
  found = list(advice.changes(types.SimpleNamespace(config=config), made))
  assert found[:3] == [{'mesh': mesh, 'parallelism': 'jit'} for mesh in ('1,6,1', '2,3,1', '3,2,1')]
  assert 'model.remat' in found[3]


def test_what_people_read(monkeypatch, capsys):
  assert plan.main(SMALL) == 0
  text = capsys.readouterr().out
  assert 'parameters' in text and '1.000 of the formula' in text
  full = program.Program(None, None, 2**31, limit=2**30)
  monkeypatch.setattr(program, 'compile_step', lambda built: full)
  assert plan.main([*SMALL, '--tries=1']) == 1
  text = capsys.readouterr().out
  assert text.count('IT DOES NOT FIT') == 2 and 'with --config.model.remat=offload' in text
  assert '--config.num_microbatches=' in text.splitlines()[-2]


TPU = ('v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')


@pytest.mark.full
@pytest.mark.parametrize('topology', TPU)
def test_a_step_for_a_slice(topology, capsys):
  """Compiled by libtpu, with no TPU: everything that is exact agrees with the formula."""
  pytest.importorskip('libtpu', reason='libtpu, the TPU compiler, is not installed')
  flags = [
    '--config.mesh=1,-1,1',
    '--config.precision=bfloat16',
    '--config.model.attention_kernel=plain',  # The other fills rows up to 128 tokens.
    f'--topology={topology}',
    '--json',
  ]
  assert plan.main([*SMALL, *flags]) == 0
  (one,) = json.loads(capsys.readouterr().out)['attempts']
  assert one['devices'] == 4 and one['fits']
  assert one['compiler_flops_per_step'] == pytest.approx(one['model_flops_per_step'], rel=0.02)
  low, high = one['estimate']['seconds']
  assert 0 < low <= high and one['estimate']['measured'] is False
  kinds = {c['kind'] for c in one['collectives_per_device']}
  assert 'all-gather' in kinds and kinds & {'all-reduce', 'reduce-scatter'}
  assert tuple(one['estimate']['left_out']) == report.estimate.LEFT_OUT
