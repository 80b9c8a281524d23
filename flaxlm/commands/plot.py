"""Draws the learning curves of one or more runs as a picture.

  python -m flaxlm plot --workdir runs/quickstart
  python -m flaxlm plot --workdir runs/a runs/b --metric accuracy --output a_and_b.png

Training is drawn faint, and smoothed over itself; held-out text is drawn with markers.
"""

from collections.abc import Mapping, Sequence
from os.path import expanduser
from typing import Any

from etils import epath

from flaxlm import commandline, terminal
from flaxlm.errors import UserError, nearest
from flaxlm.metrics import figures
from flaxlm.training.writers import metrics_files, read_metrics

# Steps over which a training curve is smoothed, as a share of the curve's points.
SMOOTHING = 0.03


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__)
  parser.add_argument(
    '--workdir', required=True, type=expanduser, nargs='+', help='folders of runs'
  )
  parser.add_argument('--metric', default='loss', help='field of metrics.jsonl')
  parser.add_argument('--output', help='PNG to write; curves.png in the first workdir if unset')
  args = parser.parse(argv)
  output = epath.Path(args.output) if args.output else epath.Path(args.workdir[0]) / 'curves.png'
  runs = {workdir: curves(workdir, args.metric) for workdir in args.workdir}
  output.write_bytes(figures.png(draw(runs, args.metric)))
  terminal.say(f'learning curves are in {output}')


def curves(workdir: str, metric: str) -> dict[str, tuple[list[int], list[float]]]:
  """Split -> (steps, values) of a metric of a run, in the order of their steps in the files."""
  files = metrics_files(workdir)
  if not files:
    raise UserError(f'{workdir} is not the workdir of a run: it has no metrics.jsonl')
  found: dict[str, tuple[list[int], list[float]]] = {}
  names: dict[str, None] = {}
  for line in read_metrics(workdir, strict=True):
    names.update(dict.fromkeys(line))
    if isinstance(line.get(metric), int | float):
      steps, values = found.setdefault(line['split'], ([], []))
      steps.append(line['step'])
      values.append(line[metric])
  if not found:
    raise UserError(f'{files[0]}: no line has {metric!r}{nearest(metric, names)}')
  return found


def smooth(values: Sequence[float], window: int) -> list[float]:
  """Mean of up to `window` values on either side of each value."""
  sums = [0.0]
  for value in values:
    sums.append(sums[-1] + value)
  ends = [(max(0, i - window), min(len(values), i + window + 1)) for i in range(len(values))]
  return [(sums[stop] - sums[start]) / (stop - start) for start, stop in ends]


def draw(runs: Mapping[str, Mapping[str, tuple[list[int], list[float]]]], metric: str) -> Any:
  """A Figure: a colour a run; training faint and smoothed over itself, held-out text marked."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 4.5), dpi=150, layout='constrained')
  axes = figure.add_subplot()
  for index, (workdir, splits) in enumerate(runs.items()):
    name = f'{epath.Path(workdir).name} ' if len(runs) > 1 else ''
    markers = iter('osD^v<>*' * len(splits))
    for split, (steps, values) in splits.items():
      if split == 'train':
        axes.plot(steps, values, color=f'C{index}', alpha=0.25, linewidth=0.8)
        window = round(SMOOTHING * len(values))  # of a short curve: none
        axes.plot(
          steps, smooth(values, window), color=f'C{index}', linewidth=1.2, label=f'{name}train'
        )
      else:
        axes.plot(
          steps,
          values,
          color=f'C{index}',
          linestyle='--',
          marker=next(markers),
          markersize=4,
          label=name + split,
        )
  axes.set_xlabel('step')
  unit = ' (nats per target)' if metric == 'loss' else ''
  axes.set_ylabel(metric.replace('_', ' ') + unit)
  axes.grid(alpha=0.3)
  axes.legend()
  return figure
