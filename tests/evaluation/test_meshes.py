"""A run whose parameters were divided is evaluated and decoded as it was trained, or as fits."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest
import tiny
from processes import simulated

from flaxlm.decoding import generate as sampler
from flaxlm.decoding.cache import Reader
from flaxlm.decoding.sampling import Sampling
from flaxlm.evaluation.evaluator import evaluate_workdir
from flaxlm.training import loop
from flaxlm.training.experiment import open_model

CHANGES = (
  ('global_batch_size', '8'),
  ('total_steps', '2'),
  ('evaluation.every_steps', '0'),
  ('mesh', '1,4,2'),
)


def observe(workdir):
  """Of a run: what an evaluation says, what is written, the mesh, and the bytes of a device as a
  share of all parameters."""
  metrics = evaluate_workdir(str(workdir))['validation']
  experiment, params, _ = open_model(str(workdir), 'latest')
  leaves = jax.tree.leaves(params)
  share = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
  reader = Reader.of(experiment.model, params, experiment.objective)
  prompts = [experiment.objective.prompt(text) for text in ('ab', 'the lot', 'gis')]
  written = sampler.generate(reader, prompts, Sampling(max_new_tokens=6, temperature=0))
  return {
    'loss': metrics['loss'],
    'accuracy': metrics['accuracy'],
    'written': [continuation.tokens.tolist() for continuation in written],
    'mesh': list(experiment.mesh.devices.shape),
    'share': share / sum(leaf.size for leaf in leaves),
  }


def run(place, folder):
  """What the process with eight devices prints: of the run that it trains, divided over them."""
  workdir = folder / 'run'
  config = tiny.load(place, folder, CHANGES)
  loop.fit(tiny.build(config, workdir), workdir)
  return observe(workdir)


@pytest.mark.parametrize(
  'place', ['gpt2.py:mini', pytest.param('t5.py:mini', marks=pytest.mark.full)]
)
def test_a_divided_run_is_read_divided(place, tmp_path):
  folder = tiny.write_corpus(tmp_path)
  program = (
    'import json, pathlib, sys; import test_meshes as t; '
    'print(json.dumps(t.run(sys.argv[1], pathlib.Path(sys.argv[2]))))'
  )
  printed = simulated(program, place, str(folder), folders=[pathlib.Path(__file__).parent])
  divided, whole = json.loads(printed.splitlines()[-1]), observe(folder / 'run')
  assert divided['mesh'] == [1, 4, 2] and whole['mesh'] == [1, 1, 1]
  assert divided['share'] < 0.25 and whole['share'] == 1
  np.testing.assert_allclose(divided['loss'], whole['loss'], rtol=1e-5)
  assert divided['accuracy'] == pytest.approx(whole['accuracy'], abs=1e-3)
  assert divided['written'] == whole['written'] and any(whole['written'])
