"""The plan of a batch: which checkpoint through which analyzer, into which file; and what is left out, and why.

Nothing is loaded and nothing is computed here; no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specdiag import plugins
from specdiag.batch.keys import Shared
from specdiag.batch.settings import Override, Settings, check_analyzer, check_shared
from specdiag.errors import UsageError
from specdiag.loading.patterns import matches
from specdiag.loading.remote import is_remote
from specdiag.store import result_paths

OUT = Path("specdiag-results")
QUICK_SAMPLES = 16
# settled against the checkpoint's own metadata, which they must not contradict
RESOLVED = ("arch", "arch_args", "normalise", "mean", "std")


@dataclass(frozen=True, slots=True)
class Job:
    """One checkpoint (and `others`, for an analyzer that compares several) through one analyzer.

    values: the analyzer's options as the file has them; config: what `resolve` takes from the file; name: the role of
    the checkpoint, `target` without suffix.
    """

    number: int
    name: str
    checkpoint: Path
    analyzer: str
    target: Path
    shared: Shared
    values: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[Path, ...] = ()
    overwrite: bool = False

    def __str__(self) -> str:
        return f"{self.name} · {self.analyzer}"


@dataclass(frozen=True, slots=True)
class Skipped:
    """Work that is not done, with the reason."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All jobs, in the order of the checkpoints and then of the analyzers in the file."""

    jobs: tuple[Job, ...]
    skipped: tuple[Skipped, ...]
    out: Path


def make(
    settings: Settings, *, out: Path | None = None, overwrite: bool = False, quick: bool = False
) -> Plan:
    """The plan for the settings.

    out: in place of the file's; overwrite: replace results made with other settings; quick: a smoke run on at most 16
    samples, into a folder of its own.
    """
    if not settings.analyzers:
        names = ", ".join(plugins.names("analyzer"))
        raise UsageError(
            f"{settings.file} names no analyzer.", f"Add a table such as [spectrum]. Known: {names}."
        )
    folder = out or (settings.inside(settings.top.out) if settings.top.out is not None else OUT)
    folder = folder / "quick" if quick else folder
    paths, skipped = _checkpoints(settings)
    seeds = settings.top.seeds or (None,)
    targets = _targets(settings, paths, folder, seeds)
    jobs: list[Job] = []
    for seed in seeds:
        for path in paths:
            target = targets[path, seed]
            for job in _of_checkpoint(settings, path, target, seed, skipped, quick):
                jobs.append(Job(len(jobs), *job, overwrite=overwrite))
        for job in _comparing(settings, paths, folder, seed, skipped, quick):
            jobs.append(Job(len(jobs), *job, overwrite=overwrite))
    return Plan(tuple(jobs), tuple(skipped), folder)


_Parts = tuple[str, Path, str, Path, Shared, Mapping[str, Any], Mapping[str, Any], tuple[Path, ...]]


def _checkpoints(settings: Settings) -> tuple[list[Path], list[Skipped]]:
    top = settings.top
    patterns = top.checkpoints or ((top.checkpoint,) if top.checkpoint is not None else ())
    if not patterns:
        raise UsageError(f"{settings.file} names no checkpoints.", 'Write checkpoints = ["runs/*.pt"].')
    found: dict[Path, None] = {}
    skipped = []
    for pattern in patterns:
        named = matches(settings.base, pattern)
        if not named:
            where = "there" if is_remote(pattern) else f"in {settings.base.absolute()}"
            skipped.append(Skipped(pattern, f"no file matches it {where}"))
        found |= dict.fromkeys(named)
    return list(found), skipped


def _targets(
    settings: Settings, paths: Sequence[Path], folder: Path, seeds: Sequence[int | None]
) -> dict[tuple[Path, int | None], Path]:
    template = settings.top.name
    if template is None:
        plain = result_paths(paths, folder)
        named = {
            (path, seed): plain[path]
            if len(seeds) == 1
            else plain[path].with_name(f"{plain[path].name.removesuffix('.h5')}-seed{seed}.h5")
            for path in paths
            for seed in seeds
        }
    else:
        named = {
            (path, seed): folder / f"{_filled(template, path, seed)}.h5" for path in paths for seed in seeds
        }
    owners: dict[str, tuple[Path, int | None]] = {}
    for key, target in named.items():
        other = owners.setdefault(target.name.casefold(), key)
        if other != key:
            raise UsageError(
                f"name = '{template}' gives {target.name} for both {other[0]} and {key[0]}.",
                "Use {parent}, {grandparent} or {seed} in it to tell them apart.",
            )
    return named


def _filled(template: str, path: Path, seed: int | None) -> str:
    whole = path.absolute()
    name = template.format(
        stem=path.stem,
        parent=whole.parent.name,
        grandparent=whole.parent.parent.name,
        seed="" if seed is None else seed,
    )
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"name = '{template}' gives '{name}', which is no file name.")
    return name


def _of_checkpoint(
    settings: Settings, path: Path, target: Path, seed: int | None, skipped: list[Skipped], quick: bool
) -> Iterator[_Parts]:
    name = target.name.removesuffix(".h5")
    overrides = [entry for entry in settings.overrides if entry.matches(path, name)]
    shared, config = _shared(settings, overrides, seed, quick)
    for analyzer, values in settings.analyzers.items():
        if plugins.load("analyzer", analyzer).kind == "cross":
            continue
        reasons = [entry.reason for entry in overrides if analyzer in entry.skip]
        if reasons:
            skipped.append(Skipped(f"{name} · {analyzer}", reasons[0]))
            continue
        yield name, path, analyzer, target, shared, _values(settings, overrides, analyzer, values), config, ()


def _comparing(
    settings: Settings,
    paths: Sequence[Path],
    folder: Path,
    seed: int | None,
    skipped: list[Skipped],
    quick: bool,
) -> Iterator[_Parts]:
    """Analyzers that compare several checkpoints: one job over all of them, in its own file."""
    for analyzer, values in settings.analyzers.items():
        if plugins.load("analyzer", analyzer).kind != "cross":
            continue
        left = [
            path
            for path in paths
            if not any(_left_out(entry, path, analyzer) for entry in settings.overrides)
        ]
        if len(left) < 2:
            skipped.append(Skipped(analyzer, f"it compares checkpoints, and there is {len(left)}"))
            continue
        shared, config = _shared(settings, [], seed, quick)
        name = analyzer if seed is None else f"{analyzer}-seed{seed}"
        yield name, left[0], analyzer, folder / f"{name}.h5", shared, values, config, tuple(left[1:])


def _left_out(entry: Override, path: Path, analyzer: str) -> bool:
    return analyzer in entry.skip and entry.matches(path, path.stem)


def _shared(
    settings: Settings, overrides: Sequence[Override], seed: int | None, quick: bool
) -> tuple[Shared, dict[str, Any]]:
    raw = dict(settings.shared)
    for entry in overrides:
        raw |= entry.shared
    if seed is not None:
        raw["seed"] = seed
    shared = check_shared(raw, str(settings.file))
    config = {key: raw[key] for key in RESOLVED if key in raw}
    if isinstance(config.get("arch"), str):
        config["arch"] = _located(settings, config["arch"])
    changes: dict[str, Any] = {}
    if shared.data is not None:
        changes["data"] = _located(settings, shared.data)
    if quick:
        changes["samples"] = min(shared.samples, QUICK_SAMPLES)
    return replace(shared, **changes), config


def _located(settings: Settings, spec: str) -> str:
    """A spec whose file or folder is relative to the configuration file, as seen from the working directory."""
    for before, path, after in _path_in(spec):
        if path and not Path(path).is_absolute() and settings.inside(path).exists():
            return f"{before}{settings.inside(path)}{after}"
    return spec


def _path_in(spec: str) -> Iterator[tuple[str, str, str]]:
    yield "", spec, ""
    head, colon, tail = spec.partition(":")
    if colon:
        yield f"{head}:", tail, ""
        yield "", head, f":{tail}"


def _values(
    settings: Settings, overrides: Sequence[Override], analyzer: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    merged = dict(values)
    for entry in overrides:
        merged |= entry.analyzers.get(analyzer, {})
    if len(merged) != len(values) or any(entry.analyzers.get(analyzer) for entry in overrides):
        check_analyzer(analyzer, merged, str(settings.file))
    return merged
