"""Parameter counts of the presets against published ones and against transformers' own models."""

import json

import pytest

from flaxlm.commands import presets

# (with the head of the objective, trunk). That of RoBERTa is without the pooler of D * (D + 1)
# parameters that transformers gives it: the model was trained without one.
PUBLISHED = {
  'bert.py:base': (110_106_428, 109_482_240),
  'bert.py:large': (336_226_108, 335_141_888),
  'roberta.py:base': (124_697_433, 124_645_632 - 768 * 769),
  'roberta.py:large': (355_412_057, 355_359_744 - 1024 * 1025),
  'gpt2.py:124m': (124_439_808, 124_439_808),
  'gpt2.py:355m': (354_823_168, 354_823_168),
  'gpt2.py:774m': (774_030_080, 774_030_080),
  'gpt2.py:1558m': (1_557_611_200, 1_557_611_200),
  'llama.py:2-7b': (6_738_415_616, 6_738_415_616 - 32_000 * 4096),
  'llama.py:2-13b': (13_015_864_320, 13_015_864_320 - 32_000 * 5120),
  'llama.py:2-70b': (68_976_648_192, 68_976_648_192 - 32_000 * 8192),
  'llama.py:3-8b': (8_030_261_248, 8_030_261_248 - 128_256 * 4096),
  'llama.py:3-70b': (70_553_706_496, 70_553_706_496 - 128_256 * 8192),
  'llama.py:3.2-1b': (1_235_814_400, 1_235_814_400),
  'llama.py:3.2-3b': (3_212_749_824, 3_212_749_824),
  'modernbert.py:base': (149_655_232, 149_014_272),
  'modernbert.py:large': (395_881_664, 394_781_696),
  'xlnet.py:base': (116_750_336, 116_718_336),
  'xlnet.py:large': (360_300_800, 360_268_800),
  'bart.py:base': (139_420_416, 139_420_416),
  'bart.py:large': (406_291_456, 406_291_456),
  't5.py:small': (60_506_624, 60_506_624),
  't5.py:base': (222_903_552, 222_903_552),
  't5.py:large': (737_668_096, 737_668_096),
  't5.py:3b': (2_851_598_336, 2_851_598_336),
  't5.py:11b': (11_307_321_344, 11_307_321_344),
  't5.py:v1_1_small': (76_961_152, 76_961_152 - 32_128 * 512),
  't5.py:v1_1_base': (247_577_856, 247_577_856 - 32_128 * 768),
  't5.py:v1_1_large': (783_150_080, 783_150_080 - 32_128 * 1024),
  't5.py:v1_1_xl': (2_849_757_184, 2_849_757_184 - 32_128 * 2048),
  't5.py:v1_1_xxl': (11_135_332_352, 11_135_332_352 - 32_128 * 4096),
}
# Brown et al. 2020, table 2.1, which rounds, not always to the nearest.
GPT3 = {
  '125m': 125e6, '350m': 350e6, '760m': 760e6, '1.3b': 1.3e9, '2.7b': 2.7e9, '6.7b': 6.7e9,
  '13b': 13e9, '175b': 175e9,
}  # fmt: skip


@pytest.mark.parametrize('name', PUBLISHED)
def test_counts_are_the_published_ones(name):
  found = presets.measure(name)
  assert (found.parameters, found.trunk_parameters) == PUBLISHED[name]


@pytest.mark.parametrize('size', GPT3)
def test_gpt3_has_the_published_sizes(size):
  assert presets.measure(f'gpt3.py:{size}').parameters == pytest.approx(GPT3[size], rel=0.02)


# Vaswani et al. 2017, table 3: 65 and 213 million, with a vocabulary of `about` 37,000.
@pytest.mark.parametrize(('size', 'millions'), [('base', 65), ('big', 213)])
def test_the_transformer_has_the_published_sizes(size, millions):
  found = presets.measure(f'transformer.py:{size}').parameters
  assert found == pytest.approx(millions * 1e6, rel=0.04)


def test_every_published_size_is_held_to_a_number():
  """The others are for two cores, or belong to other tests."""
  known = {*PUBLISHED, *(f'gpt3.py:{size}' for size in GPT3), *SMALL}
  found = list(presets.names())
  assert len(found) == len(set(found))
  assert {name for name in found if not name.endswith('mini')} == known
  assert 'classify.py:encoder' not in found


SMALL = ('bert.py:tiny', 'bert.py:small', 'transformer.py:base', 'transformer.py:big')


def test_operations_and_bytes():
  """GPT-2: six operations a weight and token, and two products of attention, thrice."""
  found = presets.measure('gpt2.py:124m')
  weights = 12 * 12 * 768**2
  rows = 50_304  # as stored, padded to a multiple of 128
  attention = 12 * 12 * 1024 * 768
  assert found.flops_per_token == pytest.approx(6 * (weights + rows * 768) + attention, rel=1e-9)
  stored = 124_439_808 + (rows - 50_257) * 768
  assert found.parameter_bytes == 4 * stored
  # Two moments, and how many updates there were: once for Adam, once for the schedule.
  assert found.optimizer_bytes == 8 * stored + 8


def test_operations_of_xlnet():
  """Queries are the row and its targets, keys the memory and the row; distances both ways."""
  found = presets.measure('xlnet.py:base')
  targets = 1 + -(-510 // 6)
  queries, keys = 512 + targets, 384 + 512
  products = 768**2 * (2 * queries + 2 * keys + 8 * queries) + 2 * queries * keys * 768
  relative = (2 * keys - 1) * 768 * (768 + queries)  # of a batch of one row
  forward = 12 * (products + relative) + targets * 768 * 32_000
  assert found.flops_per_token == pytest.approx(6 * forward / 512, rel=1e-9)


def test_both_ways_to_print(monkeypatch, capsys):
  monkeypatch.setattr(presets, 'names', lambda: iter(['gpt2.py:mini', 'bert.py:tiny']))
  presets.main(['--json'])
  found = json.loads(capsys.readouterr().out)
  assert [row['name'] for row in found] == ['gpt2.py:mini', 'bert.py:tiny']
  assert found[0]['parameters'] == 5_289_472
  presets.main([])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3 and lines[1].split()[:3] == ['gpt2.py:mini', '5.29M', '5.29M']


def theirs():
  """Name -> (class of the model, config) of transformers, from its documented arguments."""
  t = pytest.importorskip('transformers')
  bert = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
  roberta = dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
  llama3 = dict(vocab_size=128_256, num_key_value_heads=8)
  small = dict(tie_word_embeddings=True, intermediate_size=8192)
  bart = {
    f'{stack}_{key}': value
    for stack in ('encoder', 'decoder')
    for key, value in dict(layers=6, attention_heads=12, ffn_dim=3072).items()
  }
  bart |= dict(vocab_size=50265, d_model=768)
  modern = dict(hidden_size=1024, intermediate_size=2624, num_hidden_layers=28)
  return {
    'bert.py:base': (t.BertForPreTraining, t.BertConfig()),
    'bert.py:large': (t.BertForPreTraining, t.BertConfig(**bert, intermediate_size=4096)),
    'roberta.py:base': (t.RobertaForMaskedLM, t.RobertaConfig(**roberta)),
    'gpt2.py:124m': (t.GPT2LMHeadModel, t.GPT2Config()),
    'gpt2.py:1558m': (t.GPT2LMHeadModel, t.GPT2Config(n_embd=1600, n_layer=48, n_head=25)),
    'llama.py:2-7b': (t.LlamaForCausalLM, t.LlamaConfig()),
    'llama.py:3-8b': (t.LlamaForCausalLM, t.LlamaConfig(**llama3, intermediate_size=14336)),
    'llama.py:3.2-1b': (
      t.LlamaForCausalLM,
      t.LlamaConfig(**llama3, **small, hidden_size=2048, num_hidden_layers=16, head_dim=64),
    ),
    'modernbert.py:base': (t.ModernBertForMaskedLM, t.ModernBertConfig()),
    'modernbert.py:large': (
      t.ModernBertForMaskedLM,
      t.ModernBertConfig(**modern, num_attention_heads=16),
    ),
    'bart.py:base': (t.BartForConditionalGeneration, t.BartConfig(**bart)),
    'bart.py:large': (t.BartForConditionalGeneration, t.BartConfig(vocab_size=50265)),
    'xlnet.py:base': (
      t.XLNetLMHeadModel,
      t.XLNetConfig(d_model=768, n_layer=12, n_head=12, d_inner=3072),
    ),
    'xlnet.py:large': (t.XLNetLMHeadModel, t.XLNetConfig()),
    't5.py:small': (t.T5ForConditionalGeneration, t.T5Config()),
  }


@pytest.mark.full
def test_counts_against_transformers():
  torch = pytest.importorskip('torch')
  for name, (cls, config) in theirs().items():
    with torch.device('meta'):
      model = cls(config)
    model.tie_weights()
    assert model.num_parameters() == PUBLISHED[name][0], name
