"""From published weights to a tuned run that transformers opens: same ids, same answers."""

import contextlib
import json

import jax
import numpy as np
import pytest

from flaxlm import commandline
from flaxlm.__main__ import main
from flaxlm.config import recipe
from flaxlm.data import packing
from flaxlm.training import loop
from flaxlm.training.experiment import open_model

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

pytestmark = pytest.mark.full

TEXTS = ['The quick Brown fox  jumps.', 'A lazy dog sleeps.', 'Foxes, quick ones!', 'In the sun']
# Beginning, padding, end, unknown, mask.
SPECIAL = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
BERT = {
  'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 24,
  'max_position_embeddings': 66,
}  # fmt: skip
BART = {
  'd_model': 16, 'encoder_layers': 1, 'decoder_layers': 1, 'encoder_attention_heads': 2,
  'decoder_attention_heads': 2, 'encoder_ffn_dim': 24, 'decoder_ffn_dim': 24,
  'max_position_embeddings': 64,
}  # fmt: skip
# Class of the published weights, its config, and what a classifier must be to go back as one.
CASES = {
  'bert': ('BertForMaskedLM', BERT, {}),
  'roberta': ('RobertaForMaskedLM', BERT, {}),
  'modernbert': ('ModernBertForMaskedLM', BERT, {'pooler': 'transform'}),
  'xlnet': (
    'XLNetLMHeadModel', {'d_model': 16, 'n_layer': 2, 'n_head': 2, 'd_inner': 24, 'mem_len': 9}, {}
  ),
  'gpt2': ('GPT2LMHeadModel', {'n_embd': 16, 'n_layer': 2, 'n_head': 2, 'n_positions': 64}, {}),
  'llama': ('LlamaForCausalLM', BERT, {}),
  'bart': ('BartForConditionalGeneration', BART, {'pooling': 'last'}),
}  # fmt: skip


def publish(folder, name, fields):
  """A random model of a class, and a byte-level tokenizer of its own."""
  import tokenizers

  made = tokenizers.ByteLevelBPETokenizer()
  made.train_from_iterator(TEXTS * 20, 300, 2, special_tokens=SPECIAL, show_progress=False)
  bos, pad, eos, unk, mask = SPECIAL
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=made._tokenizer, bos_token=bos, eos_token=eos, cls_token=bos, sep_token=eos,
    pad_token=pad, unk_token=unk, mask_token=mask,
  )  # fmt: skip
  tokenizer.save_pretrained(folder)
  cls = getattr(transformers, name)
  ids = {
    f'{role}_token_id': getattr(tokenizer, f'{role}_token_id')
    for role in ('bos', 'pad', 'eos', 'cls', 'sep')
  }
  torch.manual_seed(0)
  cls(cls.config_class(**fields, **ids, vocab_size=len(tokenizer))).save_pretrained(folder)


@pytest.mark.parametrize('family', CASES)
def test_a_fine_tuned_classifier(family, tmp_path, root):
  name, fields, options = CASES[family]
  publish(tmp_path / 'published', name, fields)
  flags = f'--from={tmp_path / "published"}', f'--workdir={tmp_path / "imported"}'
  assert commandline.run(main, ['import', *flags]) == 0
  rows = [f'{text}\t{number % 2}\n' for number, text in enumerate(TEXTS * 4)]
  (tmp_path / 'rows.tsv').write_text('text\tlabel\n' + ''.join(rows))
  overrides = [
    ('init_from', str(tmp_path / 'imported')), ('data.train', str(tmp_path / 'rows.tsv')),
    ('total_steps', '2'), ('num_epochs', 'None'), ('global_batch_size', '2'),
    ('data.max_length', '48'), ('evaluation.every_steps', '0'),
    *((f'objective.{key}', value) for key, value in options.items()),
  ]  # fmt: skip
  config = recipe.load(str(root / 'configs' / 'classify.py'), overrides)
  loop.train(config, str(tmp_path / 'run'), overrides)
  flags = f'--workdir={tmp_path / "run"}', f'--to={tmp_path / "public"}'
  assert commandline.run(main, ['export', *flags]) == 0

  experiment, params, _ = open_model(str(tmp_path / 'run'), 'latest')
  objective = experiment.objective
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'public')
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'public')
  apply = jax.jit(lambda batch: experiment.model.apply({'params': params}, batch)[0])
  for item in objective.items([{'text': text} for text in TEXTS]):
    features = objective.features(item, None)
    read = tokenizer(TEXTS[item['id']], return_tensors='pt')
    with contextlib.suppress(KeyError):  # BART and the decoders have none.
      assert features['token_type_ids'].tolist() == read['token_type_ids'][0].tolist()
    assert features[objective.marks.key].tolist() == read['input_ids'][0].tolist()
    ours = apply(packing.pack_rows([[features]], objective.streams))[0, 0]
    with torch.no_grad():
      expected = theirs.eval()(**read).logits[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-5)


# ------------------------------------------------------------------------------- heads of tasks

CHOICES = ['jumps', 'sleeps', 'in the']
# Family -> recipe, what transformers opens it as, what the run must be to go back as that.
TASKS = {
  'bert': ('tag', 'TokenClassification', {}),
  'roberta': (
    'squad', 'QuestionAnswering', {'pair_separators': '2', 'max_question_length': '16'},
  ),
  'modernbert': ('multiple_choice', 'MultipleChoice', {'pooler': 'transform'}),
  'xlnet': ('multi_label', 'SequenceClassification', {}),
  'gpt2': ('tag', 'TokenClassification', {}),
  'llama': ('regress', 'SequenceClassification', {}),
}  # fmt: skip


def row(number, text):
  """Columns of every task."""
  words = text.split()
  return {
    'text': text, 'label': number % 2, 'tokens': words, 'labels': 'xyz'[: number % 4],
    'tags': ['BI'[i % 2] for i in range(len(words))], 'choices': CHOICES, 'question': 'Which one?',
    'context': text, 'answers': {'text': [words[1]], 'answer_start': [text.index(words[1])]},
  }  # fmt: skip


def outputs(experiment, params, segment):
  """[L, 2] of a span's ends, [words, C] of tags, [C] of a text."""
  streams = experiment.objective.streams
  batch = packing.pack_rows([[segment]], streams)
  found = experiment.model.apply({'params': params}, batch)[0][0]
  name = experiment.config.objective.name
  if name == 'span_qa':
    return found[: len(segment['inputs'])]
  return found[: len(segment['word_ids'])] if name == 'tagging' else found[0]


def theirs_of(name, model, segment, read):
  """The same of transformers; `read` holds a text's tensors."""
  with torch.no_grad():
    if name == 'multiple_choice':
      return model(**{key: tensor[None] for key, tensor in read.items()}).logits[0]
    found = model(**read)
  if name == 'span_qa':
    return torch.stack([found.start_logits[0], found.end_logits[0]], -1)
  return found.logits[0][segment['target_positions']] if name == 'tagging' else found.logits[0]


@pytest.mark.parametrize('family', TASKS)
def test_a_run_of_a_task(family, tmp_path, root):
  cls, fields, _ = CASES[family]
  recipe_name, head, options = TASKS[family]
  publish(tmp_path / 'published', cls, fields)
  flags = f'--from={tmp_path / "published"}', f'--workdir={tmp_path / "imported"}'
  assert commandline.run(main, ['import', *flags]) == 0
  lines = [json.dumps(row(number, text)) for number, text in enumerate(TEXTS * 4)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(lines))
  overrides = [
    ('init_from', str(tmp_path / 'imported')), ('data.train', str(tmp_path / 'rows.jsonl')),
    ('total_steps', '2'), ('num_epochs', 'None'), ('global_batch_size', '2'),
    ('data.max_length', '60'), ('evaluation.every_steps', '0'),
    *((f'objective.{key}', value) for key, value in options.items()),
  ]  # fmt: skip
  config = recipe.load(str(root / 'configs' / f'{recipe_name}.py'), overrides)
  loop.train(config, str(tmp_path / 'run'), overrides)
  flags = f'--workdir={tmp_path / "run"}', f'--to={tmp_path / "public"}'
  assert commandline.run(main, ['export', *flags]) == 0

  experiment, params, _ = open_model(str(tmp_path / 'run'), 'latest')
  objective, name = experiment.objective, experiment.config.objective.name
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'public')
  auto = getattr(transformers, f'AutoModelFor{head}')
  model = auto.from_pretrained(tmp_path / 'public').eval()
  assert model.config.architectures[0].endswith(head)
  if name in ('tagging', 'multi_label'):
    assert tuple(model.config.id2label.values()) == objective.labels
  for text in ('A lazy dog sleeps.', 'In the sun'):
    example = {'text': text, 'words': text.split(), 'question': 'Which one?', 'choices': CHOICES}
    texts = {'span_qa': [('Which one?', text)], 'multiple_choice': [(text, c) for c in CHOICES]}
    read = tokenizer(texts.get(name, [text]), padding=True, return_tensors='pt')
    (item,) = objective.items([example])
    segments = objective.features(item, None)
    segments = segments if isinstance(segments, list) else [segments]
    for segment, ids, mask in zip(segments, read['input_ids'], read['attention_mask'], strict=True):
      assert segment['inputs'].tolist() == ids[mask == 1].tolist()
    found = np.squeeze([outputs(experiment, params, segment) for segment in segments])
    expected = theirs_of(name, model, segments[0], read).numpy()
    np.testing.assert_allclose(found, np.squeeze(expected), atol=2e-5)
