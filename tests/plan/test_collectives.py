"""What programs for several devices exchange, against what their shardings say."""

import json
import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.full
def test_a_sharded_product_exchanges_what_it_must(root):
  script = pathlib.Path(__file__).parent / 'sharded_product.py'
  env = {**os.environ, 'PYTHONPATH': str(root), 'JAX_NUM_CPU_DEVICES': '8'}
  run = subprocess.run([sys.executable, script], env=env, capture_output=True, check=True)
  found = json.loads(run.stdout)
  whole = 2 * 64 * 128 * 32
  # Rows over 2 devices, nothing to exchange.
  assert found['rows'] == {'flops': whole / 2, 'collectives': {}}
  # The sum over 4 parts of 128, of [64, 32] float32.
  assert found['contracted'] == {'flops': whole / 4, 'collectives': {'all-reduce': [1, 8192]}}
  # Rows of both over 4: the matrix [128, 32] is gathered.
  assert found['gathered'] == {'flops': whole / 4, 'collectives': {'all-gather': [1, 16384]}}
