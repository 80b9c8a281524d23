"""Every leaf is loaded, declared, or an error."""

import dataclasses

import numpy as np
import pytest

from flaxlm.config.schema import RestoreConfig
from flaxlm.errors import UserError
from flaxlm.training import matching

STORED = {
  'trunk/embedding': np.zeros((10, 4)),
  'trunk/layers/mlp/kernel': np.zeros((3, 4, 8)),
  'trunk/norm/scale': np.zeros(4),
  'head/vocab/bias': np.zeros(10),
}


def plan(stored, wanted, **fields):
  stored, wanted = matching.parts(stored), matching.parts(wanted)
  restore = dataclasses.replace(RestoreConfig(), **fields)
  made = matching.match(stored, wanted, restore)
  return made, matching.report(made, stored, wanted)


def without(leaves, *names, **more):
  return {k: v for k, v in leaves.items() if k not in names} | more


def test_the_same_model_takes_everything():
  made, report = plan(STORED, STORED)
  assert all(made.values())
  assert report == matching.Report(list(STORED), [], [], [], [], [])
  assert made['trunk/layers/2/mlp/kernel'] == matching.Part('trunk/layers/mlp/kernel', 2, (4, 8))


CLASSIFIER = without(STORED, 'head/vocab/bias', **{'head/classes/kernel': np.zeros((4, 2))})


def test_another_head_is_declared_or_an_error():
  with pytest.raises(UserError, match='leaf head/vocab/bias of the checkpoint has no place'):
    plan(STORED, CLASSIFIER)
  with pytest.raises(UserError, match='leaf head/classes/kernel of the model is not in'):
    plan(STORED, CLASSIFIER, skip=('vocab/bias$',))
  _, report = plan(STORED, CLASSIFIER, skip=('^head/',))
  assert (report.fresh, report.dropped) == (['head/classes/kernel'], ['head/vocab/bias'])


@pytest.mark.parametrize('pattern', ['^hed/', 'layers/3/', 'kernel/'])
def test_a_pattern_that_matches_nothing_is_an_error(pattern):
  with pytest.raises(UserError, match=f"config.restore.skip: '.?{pattern[1:]}' matches no leaf"):
    plan(STORED, CLASSIFIER, skip=('^head/', pattern))
  with pytest.raises(UserError, match='config.restore.rename: .* matches no leaf'):
    plan(STORED, CLASSIFIER, skip=('^head/',), rename=(f'{pattern}=x',))


def test_a_single_layer_starts_afresh():
  _, report = plan(STORED, STORED, skip=('layers/1/',))
  assert report.fresh == report.dropped == ['trunk/layers/1/mlp/kernel']
  assert report.loaded.count('trunk/layers/0/mlp/kernel') == 1
  assert 'trunk/layers/mlp/kernel' not in report.loaded


def test_fewer_layers_must_be_declared():
  small = without(STORED, **{'trunk/layers/mlp/kernel': np.zeros((2, 4, 8))})
  with pytest.raises(UserError, match='leaf trunk/layers/2/mlp/kernel of the checkpoint'):
    plan(STORED, small)
  _, report = plan(STORED, small, skip=('layers/2/',))
  assert report.dropped == ['trunk/layers/2/mlp/kernel']
  assert 'trunk/layers/mlp/kernel' in report.loaded


def test_layers_can_be_moved():
  small = without(STORED, **{'trunk/layers/mlp/kernel': np.zeros((1, 4, 8))})
  rules = ('layers/2/=layers/0/', 'layers/0/=dropped/0/', 'layers/1/=dropped/1/')
  made, report = plan(STORED, small, skip=('^trunk/dropped/',), rename=rules)
  assert made['trunk/layers/0/mlp/kernel'].layer == 2
  assert report.dropped == ['trunk/layers/0/mlp/kernel', 'trunk/layers/1/mlp/kernel']


def test_rename_uses_groups_and_notices_collisions():
  wanted = {k.replace('trunk/', 'body/'): v for k, v in STORED.items()}
  _, report = plan(STORED, wanted, rename=(r'^trunk/(.*)=body/\1',))
  assert not report.fresh and not report.dropped
  with pytest.raises(UserError, match='two leaves of the checkpoint become x'):
    plan(STORED, wanted, rename=('^trunk/(embedding|norm/scale)=x',))
  with pytest.raises(UserError, match='not PATTERN=REPLACEMENT'):
    plan(STORED, wanted, rename=('trunk',))
  with pytest.raises(UserError, match='not a replacement'):
    plan(STORED, wanted, rename=(r'^trunk=\9',))


PAIRS = {
  'trunk/layers/kernel': np.zeros((2, 4, 8)),
  'head/nsp/pooler/kernel': np.ones((4, 4)),
  'head/nsp/out/kernel': np.zeros((4, 2)),
}
CLASSES = without(
  PAIRS,
  'head/nsp/pooler/kernel',
  'head/nsp/out/kernel',
  **{'head/classes/pooler/kernel': np.zeros((4, 4)), 'head/classes/out/kernel': np.zeros((4, 3))},
)
REUSE = ('^head/(nsp|sop)/pooler/=head/classes/pooler/',)


def test_a_leaf_of_a_skipped_head_is_reused_where_both_have_it():
  made, report = plan(PAIRS, CLASSES, skip=('^head/',), reuse=REUSE)
  assert made['head/classes/pooler/kernel'].path == 'head/nsp/pooler/kernel'
  assert report == matching.Report(
    ['trunk/layers/kernel', 'head/classes/pooler/kernel'],
    [],
    [],
    ['head/classes/out/kernel'],
    ['head/nsp/out/kernel'],
    ['head/nsp/pooler/kernel -> head/classes/pooler/kernel'],
  )
  masked = without(PAIRS, 'head/nsp/pooler/kernel')
  _, report = plan(masked, CLASSES, skip=('^head/',), reuse=REUSE)
  assert report.fresh == ['head/classes/pooler/kernel', 'head/classes/out/kernel']
  _, report = plan(PAIRS, masked, skip=('^head/',), reuse=REUSE)
  assert report.dropped == list(PAIRS)[1:] and not report.renamed


def test_what_is_reused_must_fit_and_comes_after_renames():
  wider = without(CLASSES, **{'head/classes/pooler/kernel': np.zeros((5, 5))})
  with pytest.raises(
    UserError, match=r'restore.reuse: leaf head/classes/pooler/kernel is \[4, 4\]'
  ):
    plan(PAIRS, wider, skip=('^head/',), reuse=REUSE)
  two = without(PAIRS, **{'head/sop/pooler/kernel': np.zeros((4, 4))})
  with pytest.raises(UserError, match='restore.reuse: two leaves of the checkpoint become'):
    plan(two, CLASSES, skip=('^head/',), reuse=REUSE)
  made, _ = plan(
    two, CLASSES, skip=('/out/', '/nsp/'), reuse=REUSE,
    rename=('^head/sop/pooler/=head/classes/pooler/',),
  )  # fmt: skip
  assert made['head/classes/pooler/kernel'].path == 'head/sop/pooler/kernel'


def test_renamed_layers_are_named_where_they_changed_places():
  moved = {'body/layers/kernel': np.zeros((2, 4, 8))}
  stored = {'trunk/layers/kernel': np.zeros((2, 4, 8))}
  _, report = plan(stored, moved, rename=('^trunk/=body/',))
  assert report.renamed == ['trunk/layers/kernel -> body/layers/kernel']
  _, report = plan(
    stored, moved, rename=('trunk/layers/0/=body/layers/1/', 'trunk/layers/1/=body/layers/0/')
  )
  assert sorted(report.renamed) == [
    'trunk/layers/0/kernel -> body/layers/1/kernel',
    'trunk/layers/1/kernel -> body/layers/0/kernel',
  ]


def test_sizes_must_agree_and_shapes_are_reported():
  reshaped = without(STORED, **{'trunk/layers/mlp/kernel': np.zeros((3, 4, 2, 4))})
  _, report = plan(STORED, reshaped)
  assert report.reshaped == ['trunk/layers/mlp/kernel']
  wider = without(STORED, **{'trunk/embedding': np.zeros((12, 4))})
  with pytest.raises(UserError, match=r'trunk/embedding is \[10, 4\] .* \[12, 4\] in the model'):
    plan(STORED, wider)
  assert plan(STORED, wider, skip=('embedding',))[1].fresh == ['trunk/embedding']


def test_loading_nothing_is_an_error():
  with pytest.raises(UserError, match='nothing would be loaded'):
    plan(STORED, STORED, skip=('.',))
