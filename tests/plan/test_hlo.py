"""The reader of compiled programs, on texts written by hand and on programs compiled here."""

import re

import jax
import jax.numpy as jnp
import pytest

from flaxlm.plan import costs, estimate, hlo

LOOP = """HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: f32[8,16], w: f32[6,16,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %w = f32[6,16,16]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,16,16]{2,1,0} dynamic-slice(%w, %zero, %zero, %zero), dynamic_slice_sizes={1,16,16}
  %flat = f32[16,16]{1,0} bitcast(%one)
  ROOT %product = f32[8,16]{1,0} dot(%p, %flat), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (s32[], f32[8,16], f32[6,16,16])) -> (s32[], f32[8,16], f32[6,16,16]) {
  %t = (s32[], f32[8,16]{1,0}, f32[6,16,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%t), index=1
  %ws = f32[6,16,16]{2,1,0} get-tuple-element(%t), index=2
  %step = s32[] constant(1)
  %next = s32[] add(%i, %step)
  %y = f32[8,16]{1,0:T(8,128)} fusion(%x, %ws), kind=kOutput, calls=%inner, metadata={op_name="jit(f)/mlp/dot" n=1}, backend_config={"window_config":{"estimated_cycles":"1503"},"x":"}"}
  %z = f32[8,16]{1,0} all-reduce(%y), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %out = (s32[], f32[8,16]{1,0}, f32[6,16,16]{2,1,0}) tuple(%next, %z, %ws)
}

%cond (t.1: (s32[], f32[8,16], f32[6,16,16])) -> pred[] {
  %t.1 = (s32[], f32[8,16]{1,0}, f32[6,16,16]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %bound = s32[] constant(6)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (x.1: f32[8,16], w.1: f32[6,16,16]) -> f32[8,16] {
  %x.1 = f32[8,16]{1,0} parameter(0)
  %w.1 = f32[6,16,16]{2,1,0} parameter(1)
  %start = s32[] constant(2)
  %state = (s32[], f32[8,16]{1,0}, /*index=2*/f32[6,16,16]{2,1,0}) tuple(%start, %x.1, %w.1)
  %loop = (s32[], f32[8,16]{1,0}, f32[6,16,16]{2,1,0}) while(%state), condition=%cond, body=%body
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_loop_runs_as_often_as_its_condition_says():
  """From 2 up to 6; and as often as XLA notes, where it does."""
  module = hlo.parse(LOOP)
  times = {i.name: n for _, i, n in module.runs()}
  assert (times['loop'], times['y'], times['z']) == (1, 4, 4)
  noted = LOOP.replace('body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"9"}}')
  assert {i.name: n for _, i, n in hlo.parse(noted).runs()}['y'] == 9


def test_what_a_loop_does():
  module = hlo.parse(LOOP)
  (product,) = [w for w in costs.works(module) if w.flops]
  assert (product.times, product.flops, product.cycles) == (4, 2 * 8 * 16 * 16, 1503)
  assert product.source == 'jit(f)/mlp/dot'
  # x in and out, and one of the six matrices.
  assert product.bytes == 4 * (8 * 16 * 2 + 16 * 16)
  (reduced,) = costs.transfers(module)
  assert (reduced.kind, reduced.times, reduced.bytes, reduced.group) == ('all-reduce', 4, 512, 4)
  assert reduced.wire == 2 * 3 / 4 * 512


def test_a_condition_that_is_not_understood_is_an_error():
  text = LOOP.replace('direction=LT', 'direction=NE')
  with pytest.raises(ValueError, match='loop'):
    list(hlo.parse(text).runs())
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse(LOOP.replace('ENTRY ', ''))


def test_types():
  (array,) = hlo.parse_type('bf16[64,2048,16]{2,1,0:T(8,128)(2,1)S(1)}')
  assert (array.dtype, array.dims, array.space) == ('bf16', (64, 2048, 16), 1)
  found = hlo.parse_type('(f32[]{:T(128)}, s4[3]{0}, pred[2,2]{1,0}, token[])')
  assert [a.bytes for a in found] == [4, 2, 4, 0]


INSTRUCTION = """HloModule m
ENTRY %main (a: bf16[32,8]) -> bf16[64,8] {{
  %a = bf16[{rows},8]{{1,0}} parameter(0)
  ROOT %r = {type} {opcode}(%a), channel_id=1, {groups}, dimensions={{0}}
}}
"""


@pytest.mark.parametrize(
  ('opcode', 'type', 'rows', 'groups', 'want'),
  [
    # kind, bytes, wire, group
    ('all-gather', 'bf16[64,8]{1,0}', 16, 'replica_groups=[2,4]<=[8]',
     ('all-gather', 1024, 768, 4)),
    ('all-gather-start', '(bf16[16,8]{1,0}, bf16[64,8]{1,0}, u32[])', 16,
     "replica_groups=mesh['a'=4,'b'=2] {'a'}", ('all-gather', 1024, 768, 4)),
    ('reduce-scatter', 'bf16[8,8]{1,0}', 64, "replica_groups=mesh['a'=4,'b'=2] {'a','b'}",
     ('reduce-scatter', 1024, 896, 8)),
    ('all-reduce-start', 'bf16[64,8]{1,0}', 64, 'replica_groups={{0,1}}',
     ('all-reduce', 1024, 1024, 2)),
    ('all-to-all', 'bf16[64,8]{1,0}', 64, 'replica_groups={{0,1,2,3}}',
     ('all-to-all', 1024, 768, 4)),
    ('collective-permute', 'bf16[64,8]{1,0}', 64, 'source_target_pairs={{0,1},{1,0}}',
     ('collective-permute', 1024, 1024, 2)),
  ],
)  # fmt: skip
def test_what_collectives_send(opcode, type, rows, groups, want):
  text = INSTRUCTION.format(opcode=opcode, type=type, rows=rows, groups=groups)
  (found,) = costs.transfers(hlo.parse(text))
  assert (found.kind, found.bytes, found.wire, found.group) == want
  assert found.hidden == opcode.endswith('-start')
  assert not [w for w in costs.works(hlo.parse(text)) if w.bytes and not w.hidden]


FUSED = """HloModule m
%step (a: bf16[16,8]) -> bf16[64,8] {
  %a = bf16[16,8]{1,0} parameter(0)
  ROOT %g = bf16[64,8]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}
ENTRY %main (a.1: bf16[16,8]) -> bf16[64,8] {
  %a.1 = bf16[16,8]{1,0} parameter(0)
  %f = bf16[64,8]{1,0} fusion(%a.1), kind=kCustom, calls=%step
  ROOT %h = bf16[64,8]{1,0} fusion(%a.1), kind=kCustom, calls=%step
}
"""


def test_a_collective_that_spans_fusions_counts_once():
  (found,) = costs.transfers(hlo.parse(FUSED))
  assert found.hidden and found.bytes == 1024


CONVOLUTION = """HloModule m
ENTRY %main (a: f32[{a}], b: f32[{b}]) -> f32[{out}] {{
  %a = f32[{a}] parameter(0)
  %b = f32[{b}] parameter(1)
  ROOT %c = f32[{out}] convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}
"""


@pytest.mark.parametrize(
  ('a', 'b', 'out', 'window', 'labels', 'want'),
  [
    # [64, 128] @ [128, 32]
    ('64,128', '128,32', '64,32', '', 'bf_io->bf', 2 * 64 * 128 * 32),
    # 16 heads of 8 as a window that is slid over nothing but padding: each meets one place.
    ('4,1,128', '16,128,8', '4,16,8', 'size=16 pad=15_15 rhs_reversal=1', 'b0f_0io->b0f',
     2 * 4 * 128 * 16 * 8),
    # A batch of 4 products as a window with holes: place i of the output meets input i alone.
    ('4,64,128', '4,128,32', '4,64,32', 'size=4 stride=3 pad=0_0 lhs_dilate=4', '0bf_0io->0bf',
     2 * 4 * 64 * 128 * 32),
    # A convolution in earnest, 3 taps with padding: the ends meet 2.
    ('1,10,5', '3,5,7', '1,10,7', 'size=3 pad=1_1', 'b0f_0io->b0f', 2 * 28 * 5 * 7),
  ],
)  # fmt: skip
def test_products_that_a_tpu_runs_as_convolutions(a, b, out, window, labels, want):
  text = CONVOLUTION.format(a=a, b=b, out=out, window=window, labels=labels)
  assert estimate.flops(hlo.parse(text)) == want


def test_products_of_a_compiled_scan_are_counted_exactly():
  """5 turns of [12, 24] @ [24, 24] and one of [12, 24] @ [24, 40], forward and backward."""

  def f(x, ws, head):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)
    return (x @ head).sum()

  shapes = ((12, 24), (5, 24, 24), (24, 40))
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  text = jax.jit(jax.grad(lambda ws, head, x: f(x, ws, head) ** 2, (0, 1)))
  text = text.lower(args[1], args[2], args[0]).compile().as_text()
  assert re.search(r'\bwhile\(', text)
  turn, head = 2 * 12 * 24 * 24, 2 * 12 * 24 * 40
  # Once forward, and backward once for the matrix and once for what went in.
  assert estimate.flops(hlo.parse(text)) == 3 * 5 * turn + 3 * head


KERNEL = """HloModule m
ENTRY %main (a: s8[1,4,{steps}], q: bf16[3,2,2048,128]) -> bf16[3,2,2048,128] {{
  %a = s8[1,4,{steps}]{{2,1,0}} parameter(0)
  %q = bf16[3,2,2048,128]{{3,2,1,0}} parameter(1)
  %ids = s32[{ids}]{{1,0}} constant({{...}})
  ROOT %splash_mha_{part}_segmented.1 = bf16[3,2,2048,128]{{3,2,1,0}} custom-call(%a, %q, %ids), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{}}"
}}}}, metadata={{op_name="jit(f)/splash"}}
}}
"""  # noqa: E501


@pytest.mark.parametrize(
  ('part', 'steps', 'ids', 'products', 'blocks'),
  [
    ('fwd', 4, '2048,128', 2, 10),  # causal: on and below the diagonal
    ('dq', 2, '2048,128', 3, 8),  # within a window
    ('dkv', 4, '3,8,2048', 4, 16),  # all pairs: the last operand is not places
  ],
)
def test_an_attention_kernel_multiplies_the_blocks_that_it_visits(
  part, steps, ids, products, blocks
):
  """Three rows, two heads of 128, blocks of 512 x 512; its attributes go over three lines."""
  text = KERNEL.format(part=part, steps=steps, ids=ids)
  (found,) = [w for w in costs.works(hlo.parse(text)) if w.kernel]
  assert found.flops == products * 2 * 3 * 2 * 128 * blocks * 512**2
  assert found.source == 'jit(f)/splash'
