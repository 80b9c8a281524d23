"""A stand-in for Google Cloud Storage: objects in memory, seen by epath and by tensorstore.

epath reaches it through a backend, tensorstore (and with it the checkpoint library) through a small
HTTP server that speaks the part of the JSON API that tensorstore uses. As there, nothing can be
appended to or renamed, an object appears as a whole, and there are no empty folders.
"""

import http.server
import io
import json
import re
import threading
import urllib.parse

from etils.epath import backend, stat_utils


class Store:
  """bucket/name -> (bytes, generation)."""

  def __init__(self):
    self.objects, self.lock, self.generation = {}, threading.RLock(), 0

  def put(self, name, content):
    with self.lock:
      self.generation += 1
      self.objects[name] = content, self.generation
      return self.generation

  def below(self, folder):
    """Names that begin with `folder/`."""
    with self.lock:
      return [name for name in self.objects if name.startswith(folder.rstrip('/') + '/')]


class _Writing(io.BytesIO):
  """A file that becomes an object when it is closed."""

  def __init__(self, store, name):
    super().__init__()
    self._store, self._name = store, name

  def close(self):
    if not self.closed:
      self._store.put(self._name, self.getvalue())
    super().close()


class Backend(backend.Backend):
  """What epath does with gs:// paths."""

  def __init__(self, store):
    self.store = store

  def _name(self, path):
    return str(path).removeprefix('gs://').rstrip('/')

  def open(self, path, mode):
    name = self._name(path)
    if 'a' in mode or '+' in mode:
      raise NotImplementedError('objects cannot be appended to')
    if 'w' in mode:
      raw = _Writing(self.store, name)
    elif name in self.store.objects:
      raw = io.BytesIO(self.store.objects[name][0])
    else:
      raise FileNotFoundError(2, 'No such object', str(path))
    return raw if 'b' in mode else io.TextIOWrapper(raw, encoding='utf-8', write_through=True)

  def exists(self, path):
    return self._name(path) in self.store.objects or self.isdir(path)

  def isdir(self, path):
    return bool(self.store.below(self._name(path)))

  def listdir(self, path):
    folder = self._name(path)
    names = {name[len(folder) + 1 :].split('/')[0] for name in self.store.below(folder)}
    if not names:
      raise FileNotFoundError(2, 'No such folder', str(path))
    return sorted(names)

  def glob(self, path):
    pattern = re.escape(self._name(path)).replace(r'\*\*/', '(.*/)?').replace(r'\*', '[^/]*')
    names = set()
    for name in self.store.objects:
      parts = name.split('/')
      names |= {'/'.join(parts[:i]) for i in range(1, len(parts) + 1)}
    return [f'gs://{name}' for name in sorted(names) if re.fullmatch(pattern, name)]

  def walk(self, top, *, top_down=True, on_error=None):
    raise NotImplementedError

  def makedirs(self, path, *, exist_ok=False, mode=None):
    pass  # There are no folders.

  def mkdir(self, path, *, exist_ok=False, mode=None):
    pass

  def rmtree(self, path):
    with self.store.lock:
      for name in self.store.below(self._name(path)):
        del self.store.objects[name]

  def remove(self, path):
    with self.store.lock:
      if self.store.objects.pop(self._name(path), None) is None:
        raise FileNotFoundError(2, 'No such object', str(path))

  def rename(self, path, dst):
    raise NotImplementedError('objects cannot be renamed')

  replace = rename

  def copy(self, path, dst, overwrite):
    self.store.put(self._name(dst), self.store.objects[self._name(path)][0])

  def stat(self, path):
    name = self._name(path)
    if name not in self.store.objects and not self.isdir(path):
      raise FileNotFoundError(2, 'No such object', str(path))
    content, generation = self.store.objects.get(name, (b'', 0))
    return stat_utils.StatResult(
      is_directory=name not in self.store.objects, length=len(content), mtime=generation
    )


class _Handler(http.server.BaseHTTPRequestHandler):
  """GET, POST and DELETE of the JSON API, with the conditions on generations."""

  protocol_version = 'HTTP/1.1'
  store = None

  def log_message(self, *_):
    pass

  def _answer(self, status, content=b'', **headers):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key.replace('_', '-'), str(value))
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _parsed(self):
    """(bucket/name or bucket/, query)."""
    place = urllib.parse.urlsplit(self.path)
    query = {key: values[0] for key, values in urllib.parse.parse_qs(place.query).items()}
    found = re.fullmatch(r'(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?', place.path)
    return f'{found[1]}/{urllib.parse.unquote(found[2] or query.get("name", ""))}', query

  def _generation(self, name):
    return self.store.objects.get(name, (b'', 0))[1]

  def _is_refused(self, name, query):
    wanted = query.get('ifGenerationMatch')
    if wanted is not None and int(wanted) != self._generation(name):
      self._answer(412)
      return True
    return False

  def do_GET(self):
    name, query = self._parsed()
    with self.store.lock:
      if name.endswith('/') and 'alt' not in query:
        self._answer(200, self._listed(name, query))
      elif name not in self.store.objects:
        self._answer(404)
      elif query.get('ifGenerationNotMatch') == str(self._generation(name)):
        self._answer(304)
      elif not self._is_refused(name, query):
        self._answer_part(*self.store.objects[name])

  def _answer_part(self, content, generation):
    span = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
    if not span:
      self._answer(200, content, x_goog_generation=generation)
      return
    first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
    shown = f'bytes {first}-{last}/{len(content)}'
    part = content[first : last + 1]
    self._answer(206, part, x_goog_generation=generation, Content_Range=shown)

  def _listed(self, bucket, query):
    names = [name.removeprefix(bucket) for name in self.store.objects if name.startswith(bucket)]
    first, end = query.get('startOffset', ''), query.get('endOffset')
    names = [n for n in sorted(names) if n.startswith(query.get('prefix', '')) and n >= first]
    items = [n for n in names if end is None or n < end]
    return {
      'items': [{'name': n, 'size': str(len(self.store.objects[bucket + n][0]))} for n in items]
    }

  def do_POST(self):
    name, query = self._parsed()
    content = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    with self.store.lock:
      if not self._is_refused(name, query):
        generation = self.store.put(name, content)
        self._answer(200, {'name': name.partition('/')[2], 'generation': str(generation)})

  def do_DELETE(self):
    name, query = self._parsed()
    with self.store.lock:
      if name not in self.store.objects:
        self._answer(404)
      elif not self._is_refused(name, query):
        del self.store.objects[name]
        self._answer(204)


def serve(store):
  """A server of the store on a free port of the loopback; `server_port` says which."""
  handler = type('Handler', (_Handler,), {'store': store})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  return server
