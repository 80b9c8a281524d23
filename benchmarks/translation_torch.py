"""The arm of PyTorch for translation.py: an encoder-decoder of torch's own layers, and its loop."""

import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from flaxlm.layers import position
from flaxlm.paths import leaf_paths, nested

MASKED = -1e9  # Finite: rows of padding have no other place to look at.
LOG_EVERY = 100
PARTS = 4  # of a batch, one after the other; their gradients add up. A CPU's caches hold a part.
Batch = Mapping[str, torch.Tensor]


class Model(nn.Module):
  """The original Transformer, with one table for source, target and output.

  Args:
    config: `config.model` of the run.
    leaves: flaxlm's parameters by path, to begin with.
  """

  def __init__(self, config: Any, leaves: Mapping[str, np.ndarray]):
    super().__init__()
    self.config = c = config
    options = {
      'd_model': c.emb_dim, 'nhead': c.num_heads, 'dim_feedforward': c.mlp_dim,
      'dropout': c.dropout_rate, 'layer_norm_eps': c.norm_eps, 'batch_first': True,
    }  # fmt: skip
    numbers = range(c.num_layers)
    self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(**options) for _ in numbers)
    self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(**options) for _ in numbers)
    self.table = nn.Parameter(torch.tensor(leaves['trunk/token/table']))
    positions = position.sinusoids(np.arange(c.max_length), c.emb_dim)
    self.register_buffer('positions', torch.tensor(np.asarray(positions)), persistent=False)
    self.dropout = nn.Dropout(c.embedding_dropout_rate)
    with torch.no_grad():
      for path, views in self._views():
        for view, leaf in zip(views, leaves[path], strict=True):
          view.copy_(torch.tensor(leaf).reshape(view.shape))

  def leaves(self, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters by flaxlm's paths, with the shapes of `like`."""
    found = {'trunk/token/table': self.table.detach().numpy().copy()}
    for path, views in self._views():
      stacked = np.stack([view.detach().numpy() for view in views])
      found[path] = stacked.reshape(like[path].shape)
    return found

  def _views(self) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """(path, a view of each layer's parameter, its axes in flaxlm's order with heads merged)."""
    for name, stack in (('encoder', self.encoder), ('decoder', self.decoder)):
      layers = [_layer(layer) for layer in stack]
      for path in layers[0]:
        yield f'trunk/{name}/layers/{path}', [layer[path] for layer in layers]

  def forward(self, batch: Batch) -> torch.Tensor:
    """Logits [B, L, V]."""
    source, target = batch['encoder_segment_ids'], batch['decoder_segment_ids']
    x = self._embed(batch['encoder_inputs'], batch['encoder_positions'])
    mask = self._apart(source, source)
    for layer in self.encoder:
      x = layer(x, src_mask=mask)
    y = self._embed(batch['decoder_inputs'], batch['decoder_positions'])
    future = torch.triu(torch.full((target.shape[1],) * 2, MASKED), 1)
    mask, across = self._apart(target, target) + future, self._apart(target, source)
    for layer in self.decoder:
      y = layer(y, x, tgt_mask=mask, memory_mask=across)
    return y @ self.table[: self.config.vocab_size].T

  def _embed(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    x = self.table[ids] * math.sqrt(self.config.emb_dim) + self.positions[positions]
    return self.dropout(x)

  def _apart(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[B * H, Q, K]: 0 between places of one segment, else MASKED."""
    mask = (queries[:, :, None] != keys[:, None, :]) * MASKED
    return mask.repeat_interleave(self.config.num_heads, 0)


def _layer(layer: nn.Module) -> dict[str, torch.Tensor]:
  """Path within a layer -> view."""
  cross = hasattr(layer, 'multihead_attn')
  norms = ('attention_norm', 'cross_attention_norm', 'mlp_norm')
  found = _dense('mlp/up', layer.linear1) | _dense('mlp/down', layer.linear2)
  for number, name in enumerate(norms if cross else (norms[0], norms[2]), start=1):
    norm = getattr(layer, f'norm{number}')
    found |= {f'{name}/scale': norm.weight, f'{name}/bias': norm.bias}
  found |= _attention('attention', layer.self_attn)
  return found | (_attention('cross_attention', layer.multihead_attn) if cross else {})


def _dense(name: str, layer: nn.Linear) -> dict[str, torch.Tensor]:
  return {f'{name}/kernel': layer.weight.T, f'{name}/bias': layer.bias}


def _attention(name: str, layer: nn.MultiheadAttention) -> dict[str, torch.Tensor]:
  found = _dense(f'{name}/out', layer.out_proj)
  parts = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
  for kind, weight, bias in zip(('query', 'key', 'value'), *parts, strict=True):
    found |= {f'{name}/{kind}/kernel': weight.T, f'{name}/{kind}/bias': bias}
  return found


def train(experiment: Any, run: pathlib.Path, averaged: int) -> Any:
  """flaxlm's tree of the mean of the newest `averaged` checkpoints.

  Args:
    experiment: gives the first parameters, the batches, the schedule and the settings.
    run: folder of the checkpoint that a stopped run goes on from.
    averaged: checkpoints, one each `checkpoint.every_steps`.
  """
  config, o = experiment.config, experiment.config.optimizer
  torch.manual_seed(config.seed)
  torch.set_flush_denormal(True)  # as XLA has it
  first = experiment.init_state().params
  leaves = {path: np.asarray(leaf) for path, leaf in leaf_paths(first).items()}
  model = Model(config.model, leaves)
  _compare(experiment, first, model)
  optimizer = torch.optim.Adam(model.parameters(), betas=(o.b1, o.b2), eps=o.eps)
  file = run / 'torch.pt'
  step, saved = 0, []
  if file.exists():
    stored = torch.load(file, weights_only=False)
    step, saved = stored['step'], stored['saved']
    model.load_state_dict(stored['model'])
    optimizer.load_state_dict(stored['optimizer'])
  run.mkdir(parents=True, exist_ok=True)
  begin, total = time.time(), 0.0
  for batch in map(_tensors, experiment.train_data.iterate(step)):
    if step == experiment.total_steps:
      break
    optimizer.param_groups[0]['lr'] = float(experiment.schedule(step))
    optimizer.zero_grad()
    count = batch['target_weights'].sum()
    for part in range(PARTS):
      rows = {key: value.chunk(PARTS)[part] for key, value in batch.items()}
      loss = _loss(model(rows), rows, config.objective.label_smoothing, count)
      loss.backward()
      total += loss.item()
    optimizer.step()
    step += 1
    if step % LOG_EVERY == 0:
      print(f'step {step}: loss {total / LOG_EVERY:.4f}, {time.time() - begin:.0f} s', flush=True)
      total = 0.0
    if step % config.checkpoint.every_steps == 0 or step == experiment.total_steps:
      saved = [*saved, model.leaves(leaves)][-averaged:]
      state = {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
      torch.save({**state, 'step': step, 'saved': saved}, run / 'new.pt')
      (run / 'new.pt').replace(file)
  mean = {path: np.mean([leaves[path] for leaves in saved], axis=0) for path in leaves}
  return jax.device_put(nested(mean))


def _loss(
  logits: torch.Tensor, batch: Batch, smoothing: float, count: torch.Tensor
) -> torch.Tensor:
  """Sum over the targets that count, over `count`."""
  weights = batch['target_weights'].flatten()
  losses = functional.cross_entropy(
    logits.flatten(0, 1), batch['targets'].flatten(), reduction='none', label_smoothing=smoothing
  )
  return (losses * weights).sum() / count


def _tensors(batch: Mapping[str, np.ndarray]) -> Batch:
  return {
    key: torch.tensor(value, dtype=torch.long if value.dtype.kind == 'i' else torch.float32)
    for key, value in batch.items()
  }


def _compare(experiment: Any, params: Any, model: Model) -> None:
  """Prints the losses of both models on one batch; they must agree to 1e-4."""
  batch = experiment.train_data.batch(0)
  means, _, _ = experiment.eval_step(params, experiment.put(batch), None)
  theirs = means['loss'].value()
  model.eval()
  with torch.no_grad():
    batch = _tensors(batch)
    ours = _loss(model(batch), batch, 0.0, batch['target_weights'].sum()).item()
  model.train()
  print(f'loss of the first batch: flaxlm {theirs:.6f}, PyTorch {ours:.6f}', flush=True)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)
