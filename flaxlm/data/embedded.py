"""English prose that every CPython carries: the embedded default corpus, which needs no download.

The language reference (`pydoc_data.topics`) and the docstrings of the standard library, read from
its sources without importing them. The same Python gives the same documents; another version gives
a few others, which the identity shows.
"""

import functools
import hashlib
import inspect
import pathlib
import random
import re
import sysconfig

LEAST = 200  # Characters; shorter docstrings say little ("Return the size.").
# No prose (encodings), or not in every version of Python.
LEFT_OUT = {'site-packages', 'dist-packages', 'test', 'tests', 'encodings', 'idlelib', 'lib2to3'}
LEFT_OUT |= {'distutils', 'pydoc_data', 'ensurepip', 'turtledemo', '__pycache__'}
# A docstring opens a file or follows a line that ends in a colon; parsing instead takes ten
# seconds. Those with backslashes are left out: they hold escapes or code.
DOCSTRING = re.compile(r'(?:\A(?:#.*\n|\n)*|:[ \t]*\n)[ \t]*[rR]?"""([^"\\]*(?:"{1,2}[^"\\]+)*)"""')


@functools.cache
def documents() -> tuple[str, ...]:
  """Topics and docstrings, without repeats, in a fixed mixed order."""
  from pydoc_data import topics

  found = dict.fromkeys(topics.topics[name].strip() for name in sorted(topics.topics))
  library = pathlib.Path(sysconfig.get_path('stdlib'))
  for path in sorted(library.rglob('*.py')):
    if not LEFT_OUT.intersection(path.relative_to(library).parts):
      source = path.read_text(encoding='utf-8', errors='ignore')
      found |= dict.fromkeys(inspect.cleandoc(text) for text in DOCSTRING.findall(source))
  texts = [text for text in found if len(text) >= LEAST]
  # Mixed, so that the held-out part, the last documents, is of the same kind as the rest.
  random.Random(0).shuffle(texts)
  return tuple(texts)


def identity() -> list[str]:
  """What the documents hash to."""
  sha = hashlib.sha256()
  for text in documents():
    sha.update(text.encode() + b'\0')
  return ['embedded', sha.hexdigest()]
