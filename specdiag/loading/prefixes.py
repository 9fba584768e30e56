"""Wrapper prefixes of parameter names: stripped to a fixed point, and reported. Pure text."""

from __future__ import annotations

from collections.abc import Iterable

ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
FRONT = "module"
COUNTERS = ("n_averaged",)


def strip_wrappers(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """({name in the file: plain name}, prefixes stripped in the order in which they were met).

    `_orig_mod.` and its kin are no names a network would give, so they go wherever they stand in the path.
    `module.` goes from the front only, and only when every name (but the counter of weight averaging) has
    it. To a fixed point: `_orig_mod.module.` and `module._orig_mod.` both vanish. Where two names would
    become one, nothing is stripped.
    """
    names = list(names)
    plain = {name: name for name in names}
    stripped: list[str] = []
    while True:
        step = {name: _without_segments(current, stripped) for name, current in plain.items()}
        body = [current for current in step.values() if current not in COUNTERS]
        if body and all(current.startswith(FRONT + ".") for current in body):
            stripped.append(FRONT + ".")
            step = {name: current.removeprefix(FRONT + ".") for name, current in step.items()}
        if len(set(step.values())) < len(names):
            return {name: name for name in names}, ()
        if step == plain:
            return plain, tuple(dict.fromkeys(stripped))
        plain = step


def _without_segments(name: str, stripped: list[str]) -> str:
    parts = name.split(".")
    found = [part for part in parts[:-1] if part in ANYWHERE]
    if not found:
        return name
    stripped.extend(part + "." for part in found)
    return ".".join([part for part in parts[:-1] if part not in ANYWHERE] + parts[-1:])
