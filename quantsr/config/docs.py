"""The page ``docs/reference/options.md``, made from the schema: ``python -m quantsr.config.docs
docs/reference/options.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from quantsr.config.base import Section
from quantsr.config.comparison import CompareOptions
from quantsr.config.schema import Options
from quantsr.config.wording import section_of, takes

_NOT_WRITTEN = ("phase", "kwargs")

_HEAD = """# Options

<!-- Made from quantsr/config by `python -m quantsr.config.docs docs/reference/options.md`; a test compares. Do not edit. -->

An option file is YAML with BasicSR's keys. `quantsr check -opt FILE` lists everything that is wrong with one, each problem with file,
key and remedy, or sums up what the run would do. An unknown key is an error; so is a key given twice.

- **Inheritance.** `_base_: other.yml`, or a list of files, relative to the file itself: sections are merged key by key, everything
  else is replaced. `key: null` removes an inherited key. Anywhere else null means "not given": the default applies.
- **Command line.** `--set train.total_iter=1000 network_g.nbits_w=2` changes single keys, the value read as YAML; `--force_yml
  train:total_iter=1000` is the same in BasicSR's notation.
- **References.** `${scale}` or `${network_g.nbits_w}` in a value stands for the value of that key, given from the top of the file.
  References are replaced after inheritance and command line; one may stand inside another, `${_vars_.gt_size.${scale}}`, and a
  value that is one whole reference keeps its type. `_vars_` is a section for values that are only referred to. `\\${` is the text
  `${`. In paths, `${NAME}` may also be an environment variable; a key of that name comes first.
- **Values.** `1e-4` is a number; a number without a fraction is accepted as a whole number (`5e3`), but not among the arguments of a
  network, which its constructor gets unchanged. No YAML tag runs code.
- **Paths** start at the current directory, as BasicSR's do; `~` and `$VARIABLES` are replaced.
- **What is needed** depends on the command. `quantsr train`: the section `train`, the data set `train` and, with `val` sets,
  `val.val_freq` and `val.metrics`. `quantsr test`: a data set `test...` (or `val...`), `val.metrics` and
  `path.pretrain_network_g`. The data sets of the other command need not exist.
"""


def options_page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD, *_section("", Options), _COMPARE, *_table(CompareOptions)]
    return "\n".join(parts)


def _section(prefix: str, section: type[Section]) -> Iterator[str]:
    """The table of a section, then those of the sections in it."""
    doc = " ".join(inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].split())
    title = f"`{prefix}`" if prefix else "The file"
    yield f"\n## {title}\n\n{_TOP_DOC if not prefix else _cell(doc)}\n"
    yield from _table(section)
    inner: list[tuple[str, type[Section]]] = []
    for name, field in section.model_fields.items():
        if name in _NOT_WRITTEN:
            continue
        child, many = section_of(field.annotation)
        if child is not None:
            path = f"{prefix}.{name}" if prefix else name
            inner.append((f"{path}.<name>" if many else path, child))
    for path, child in inner:
        if path != "network_teacher":  # as network_g
            yield from _section(path, child)


def _table(section: type[Section]) -> Iterator[str]:
    """A line per key."""
    yield "| key | takes | default | meaning |\n|---|---|---|---|"
    for name, field in section.model_fields.items():
        if name not in _NOT_WRITTEN:
            yield f"| `{name}` | {_cell(takes(field))} | {default_text(field)} | {_cell(field.description or '')} |"
    if "kwargs" in section.model_fields:
        meaning = section.model_fields["kwargs"].description or ""
        yield f"| ... | what the constructor takes | the constructor's | {_cell(meaning)} |"


_COMPARE = """
## Comparison files

`quantsr compare -opt FILE` trains every variant with every seed and tables the results; `options/compare/` has examples. A file:

```yaml
name: bits
base: ../train/QuantSR_C/mini_w4a4_x2.yml
seeds: [1, 2, 3]
variants:
  float: {network_g.nbits_w: 32, network_g.nbits_a: 32}
  w4a4: {path.fp_pretrain_network_g: '{run:float}/models/net_g_latest.pth'}
```

- **Placeholders** in paths: `{seed}`, and `{run:VARIANT}`, the run folder of that variant with the same seed. Such a run is trained after
  the one it starts from. A run leaves `models/net_g_latest.pth`, and with a `val` set `models/net_g_best.pth`.
- **Order**: all variants of a seed, then the next seed. When the command is given again, finished runs are kept and an interrupted one is
  resumed; runs whose options have changed since are refused, or with `--retrain` set aside and trained again.
- **What is evaluated** is `net_g_latest.pth`, the averaged weights where `train.ema_decay` keeps them, at all depths.
- **Command line**: `--set base.train.total_iter=100 variants.w4a4.network_g.nbits_w=3 seeds=[1]`; changes of a variant override `base`.
"""

_TOP_DOC = "The keys at the top of a file."


def default_text(field: FieldInfo) -> str:
    """The default of a key as the page shows it; empty where there is none."""
    if isinstance(field.json_schema_extra, dict) and "default" in field.json_schema_extra:
        # a default that the schema derives from another key
        return str(field.json_schema_extra["default"])
    if field.is_required():
        return "**needed**"
    value: Any = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or isinstance(value, Section) or value == {}:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


def main(argv: list[str]) -> int:
    """Write the page to the file named in ``argv``, or to standard output."""
    if argv:
        Path(argv[0]).write_text(options_page() + "\n", encoding="utf-8")
    else:
        sys.stdout.write(options_page() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
