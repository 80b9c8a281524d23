"""What a tokenizer learns from text: pieces of SentencePiece, WordPiece and BPE, or characters."""

import collections
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flaxlm.config.data import TokenizerConfig
from flaxlm.errors import UserError

SPECIAL = ('<pad>', '</s>', '<unk>', '<s>', '[CLS]', '[SEP]', '[MASK]')
PIECES = ('sentencepiece', 'wordpiece', 'byte_bpe')  # Kinds with a vocabulary of a chosen size.
CHUNK = 2000  # Characters of a training sentence; SentencePiece leaves out those over 4192 bytes.
COVERAGE = 0.9995  # Of the characters of the text; SentencePiece's own default.


def special_pieces(sentinels: int) -> tuple[str, ...]:
  """The names of the special tokens, in the order of their ids."""
  return SPECIAL + tuple(f'<extra_id_{i}>' for i in range(sentinels))


def train(
  config: TokenizerConfig, texts: Iterable[str], mixed: Sequence[tuple[float, Iterable[str]]] = ()
) -> tuple[dict[str, Any], dict[str, bytes]]:
  """(spec, files) of the tokenizer that `config` describes.

  mixed: (weight, texts) of the sources of a mixture, whose shares of what pieces are learned from
  are their weights; `texts` are all of them.
  """
  spec = {'name': config.name, 'sentinels': config.sentinels}
  if config.name == 'bytes':
    return spec, {}
  if config.name == 'characters':
    characters: set[str] = set()
    for text in texts:
      characters.update(text)
    if not characters:
      raise UserError('config.data.train: no text to take characters from')
    return spec, {'characters.json': json.dumps(sorted(characters)).encode()}
  spec['lowercase'] = config.lowercase
  num_bytes = int(config.train_megabytes * 1e6)
  sample = mixed_sample(mixed, num_bytes) if mixed else spread_sample(texts, num_bytes)
  if not sample:
    raise UserError('config.data.train: no text to train a tokenizer on')
  if config.name == 'sentencepiece':
    return spec, {'tokenizer.model': _train_sentencepiece(config, sample)}
  trainer = {'wordpiece': _train_wordpiece, 'byte_bpe': _train_byte_bpe}[config.name]
  return spec, trainer(config, sample, spec)


def _train_wordpiece(
  config: TokenizerConfig, sample: list[str], spec: dict[str, Any]
) -> dict[str, bytes]:
  """vocab.txt of pieces that BPE merges, as Hugging Face trains WordPiece.

  The library numbers the first pieces in the order of a hash table, which decides ties, so that
  two runs differ; given all single characters in order, it has nothing left to number.
  """
  from tokenizers import trainers

  from flaxlm.data import tokenizer_library

  special = special_pieces(config.sentinels)
  ids = {name: id for id, name in enumerate(special)}
  made = tokenizer_library.wordpiece(ids, spec)
  words: collections.Counter[str] = collections.Counter()
  for text in sample:
    normal = made.normalizer.normalize_str(text)
    words.update(word for word, _ in made.pre_tokenizer.pre_tokenize_str(normal))
  alphabet = _covering(words)
  words = {word: n for word, n in words.items() if alphabet.issuperset(word)}
  single = sorted(set().union(*words))  # The library takes all, also where no word begins so.
  within = sorted({tokenizer_library.CONTINUES + c for word in words for c in word[1:]})
  least = len(special) + len(single) + len(within)
  if least > config.vocab_size:
    raise UserError(
      f'config.tokenizer.vocab_size: {config.vocab_size} is too small for the characters and '
      f'{config.sentinels} sentinels; the least is {least}'
    )
  trainer = trainers.WordPieceTrainer(
    vocab_size=config.vocab_size,
    special_tokens=[*special, *single, *within],
    continuing_subword_prefix=tokenizer_library.CONTINUES,
    show_progress=False,
  )
  made.train_from_iterator((' '.join([word] * n) for word, n in sorted(words.items())), trainer)
  pieces = sorted(made.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
  return {'vocab.txt': ''.join(f'{piece}\n' for piece, _ in pieces).encode()}


def _covering(words: collections.Counter[str]) -> set[str]:
  """The most frequent characters that make up COVERAGE of the words."""
  counts: collections.Counter[str] = collections.Counter()
  for word, n in words.items():
    for character in word:
      counts[character] += n
  missing, found = (1 - COVERAGE) * counts.total(), set(counts)
  for character, n in sorted(counts.items(), key=lambda item: (item[1], item[0])):
    missing -= n
    if missing < 0:
      break
    found.remove(character)
  return found


def _train_byte_bpe(
  config: TokenizerConfig, sample: list[str], spec: dict[str, Any]
) -> dict[str, bytes]:
  """vocab.json and merges.txt of pieces merged from the 256 bytes."""
  from tokenizers import pre_tokenizers, trainers

  from flaxlm.data import tokenizer_library

  special = special_pieces(config.sentinels)
  if config.vocab_size < len(special) + 256:
    raise UserError(
      f'config.tokenizer.vocab_size: {config.vocab_size} is too small for the bytes and '
      f'{config.sentinels} sentinels; the least is {len(special) + 256}'
    )
  made = tokenizer_library.byte_bpe(b'{}', b'', spec)
  trainer = trainers.BpeTrainer(
    vocab_size=config.vocab_size,
    special_tokens=list(special),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  made.train_from_iterator(sample, trainer)
  model = json.loads(made.to_str())['model']
  merges = ''.join(f'{first} {second}\n' for first, second in model['merges'])
  vocab = dict(sorted(model['vocab'].items(), key=lambda item: item[1]))
  return {'vocab.json': json.dumps(vocab).encode(), 'merges.txt': merges.encode()}


def _train_sentencepiece(config: TokenizerConfig, sample: list[str]) -> bytes:
  import sentencepiece

  if config.lowercase:
    sample = [text.lower() for text in sample]
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sample),
      model_writer=model,
      vocab_size=config.vocab_size,
      model_type=config.model_type,
      **dict(pad_id=0, eos_id=1, unk_id=2, bos_id=3),
      control_symbols=list(special_pieces(config.sentinels)[4:]),
      user_defined_symbols=['\n'],  # Always one piece: words after it are cut as within a line.
      byte_fallback=True,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,  # Indentation is one piece, not one a space.
      hard_vocab_limit=False,
      num_threads=2,  # Part of the result: sums are added up by thread.
      minloglevel=2,
    )
  except RuntimeError as error:
    least = re.search(r'smaller than required_chars\. \d+ vs (\d+)', str(error))
    if least:
      raise UserError(
        f'config.tokenizer.vocab_size: {config.vocab_size} is too small for the characters, bytes '
        f'and {config.sentinels} sentinels; the least is {least[1]}'
      ) from None
    raise UserError(f'config.tokenizer: SentencePiece cannot be trained: {error}') from None
  return model.getvalue()


def spread_sample(texts: Iterable[str], num_bytes: int) -> list[str]:
  """Chunks of the texts, evenly spread over them, of about `num_bytes` (half of it to all of it).

  One pass, in memory for the sample: where it grows too big, every second chunk goes and from
  there on half as many are taken.
  """
  sample: list[str] = []
  stride, size = 1, 0
  for number, chunk in enumerate(_chunks(texts)):
    if number % stride:
      continue
    sample.append(chunk)
    size += len(chunk.encode())
    if size > num_bytes and len(sample) > 1:
      sample = sample[::2]
      stride *= 2
      size = sum(len(chunk.encode()) for chunk in sample)
  return sample


def mixed_sample(sources: Sequence[tuple[float, Iterable[str]]], num_bytes: int) -> list[str]:
  """Chunks of (weight, texts) of several sources, each with its share of `num_bytes`.

  Those of a source are evenly spread over it; one with less text than its share is repeated, as
  its rows are in training.
  """
  total = sum(weight for weight, _ in sources)
  sample: list[str] = []
  for weight, texts in sources:
    share = int(num_bytes * weight / total)
    chunks = spread_sample(texts, 2 * share)  # Of what there is at least half of that.
    size = sum(len(chunk.encode()) for chunk in chunks)
    if chunks:
      number = max(round(len(chunks) * share / size), 1)
      places = np.arange(number) * len(chunks) // number if number < len(chunks) else range(number)
      sample += [chunks[place % len(chunks)] for place in places]
  return sample


def _chunks(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    text = text.replace('\0', ' ')  # SentencePiece's trainer takes it for the end.
    start = 0
    while start < len(text):
      stop = start + CHUNK
      if stop < len(text):
        space = max(text.rfind(' ', start + 1, stop), text.rfind('\n', start + 1, stop))
        stop = space if space > 0 else stop
      # Bytes bound what SentencePiece accepts: 2,000 characters of Chinese are over it.
      chunk = text[start:stop].encode()[:4000].decode(errors='ignore')
      start += len(chunk)
      if text[start : start + 1] == ' ':
        start += 1  # SentencePiece puts a space before a sentence itself.
      yield chunk
