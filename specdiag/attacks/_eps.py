"""The eps of an attack where it is left out or `auto`, and the words for where it came from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from specdiag.errors import UsageError
from specdiag.options import build_attack, load_attack
from specdiag.schema import AttackSpec, fields

if TYPE_CHECKING:
    from specdiag.model import Model
    from specdiag.sampling import Batch

# farnia2019 section 5; simongabriel2019 section 4
SHARE_L2, EPS_LINF = 0.05, 0.005
FOOLED, ROUNDS, DOUBLINGS = 0.99, 7, 12

Batches = Callable[[], Iterable["Batch"]]


def norm_of(spec: AttackSpec) -> Literal["l2", "linf"] | None:
    """The norm of an attack's eps; None where it has no eps. foolbox attacks are asked by their class."""
    attack = load_attack(spec)
    name = spec.partition(":")[2]
    if attack.name == "foolbox" and name:
        from specdiag.attacks._foreign import foolbox_norm

        return foolbox_norm(name, tuple(spec.values.get("arguments", ())))
    norm: Literal["l2", "linf"] | None = attack.norm
    return norm


def resolve_options(
    options: Any, model: Model, facts: Mapping[str, float], batches: Batches | None = None
) -> tuple[Any, list[str]]:
    """Analyzer options with the eps of every attack in them settled, and one line on each for the user.

    facts: as `Batch.facts`; batches: gives the samples of the run, needed for `--eps auto` alone.
    """
    clip = getattr(options, "clip", None)
    notes: list[str] = []
    kind: type = type(options)
    for item in fields(kind):
        value = getattr(options, item.name)
        if isinstance(value, AttackSpec):
            settled: Any = _settle(value, model, facts, batches, clip, notes)
        elif isinstance(value, tuple) and any(isinstance(entry, AttackSpec) for entry in value):
            # an eps left out is not used where a list of them is given, and needs no words then
            quiet: list[str] = [] if getattr(options, "eps_sweep", ()) else notes
            settled = tuple(_settle(entry, model, facts, batches, clip, quiet) for entry in value)
        else:
            continue
        options = dataclasses.replace(options, **{item.name: settled})
    return options, list(dict.fromkeys(notes))


def resolve_eps(
    spec: AttackSpec,
    model: Model,
    facts: Mapping[str, float],
    batches: Batches | None = None,
) -> tuple[AttackSpec, str]:
    """The attack with a number for its eps (or, for wrm, its penalty), and a sentence on where it came from.

    The sentence is empty where the number was given. Left out: the training eps of the checkpoint where it is
    of the same norm, else 0.05 mean ||x||_2 (l2) or 0.005 (linf). `auto`: the smallest eps, to one percent,
    at which the attack fools 99 % of the samples of `batches`.
    """
    declared = {item.name for item in fields(load_attack(spec).options)}
    if "penalty" in declared and spec.values.get("penalty") is None:
        from specdiag.attacks._penalised import default_penalty

        penalty = default_penalty(model.input_shape, facts["mean_norm"])
        share = penalty / facts["mean_norm"] if facts["mean_norm"] else 0
        note = f"{spec}: penalty = {penalty:.4g}, {share:g} mean ||x||_2 of the samples (farnia2019)."
        return _with(spec, penalty=penalty), note
    if "eps" not in declared:
        return spec, ""
    eps = spec.values.get("eps")
    if eps is None:
        value, origin = _default(spec, model, facts)
        return _with(spec, eps=value), f"{spec}: eps = {value:.4g}, {origin}." if origin else ""
    if eps == "auto":
        if batches is None:
            raise UsageError("--eps auto needs labelled samples to attack.", "Give a number with --eps.")
        value = _smallest(spec, facts, model, batches)
        return _with(spec, eps=value), f"{spec}: eps = {value:.4g}, the smallest that fools 99 %."
    return spec, ""


def _settle(
    spec: Any,
    model: Model,
    facts: Mapping[str, float],
    batches: Batches | None,
    clip: bool | None,
    notes: list[str],
) -> Any:
    if not isinstance(spec, AttackSpec) or spec in ("clean", "none"):
        return spec
    if clip is not None and "clip" in {item.name for item in fields(load_attack(spec).options)}:
        # the analyzer's own --clip decides, and the stored options say so
        spec = _with(spec, clip=clip)
    settled, note = resolve_eps(spec, model, facts, batches)
    # wrong values are named before anything runs
    build_attack(settled)
    if note:
        notes.append(note)
    return settled


def _default(spec: AttackSpec, model: Model, facts: Mapping[str, float]) -> tuple[float | None, str]:
    norm = norm_of(spec)
    if norm is None or _is_minimal(spec):
        return None, ""
    train = model.info.train
    if model.space == "data" and train.get("norm") == norm and _is_number(train.get("eps")):
        return float(train["eps"]), "the eps it was trained with"
    if norm == "l2":
        return SHARE_L2 * facts["mean_norm"], f"{SHARE_L2:g} mean ||x||_2 of the samples"
    if model.space == "model" and model.normalisation.kind == "channel":
        mean_std = sum(model.normalisation.std) / len(model.normalisation.std)
        return EPS_LINF / mean_std, f"{EPS_LINF:g} of the data's units, normalised"
    return EPS_LINF, "the default for linf"


def _smallest(spec: AttackSpec, facts: Mapping[str, float], model: Model, batches: Batches) -> float:
    """By doubling, then bisection of the logarithm; a sample once fooled counts as fooled at every larger eps."""
    start, _ = _default(spec, model, facts)
    if not start:
        start = SHARE_L2 * facts["mean_norm"] or 1.0
    least: list[Any] = []

    def enough(eps: float) -> bool:
        fooled = _fooled_below(_with(spec, eps=eps), model, batches, least, eps)
        return fooled >= FOOLED

    high, low = start, 0.0
    for _ in range(DOUBLINGS):
        if enough(high):
            break
        low, high = high, 2 * high
    else:
        raise UsageError(
            f"{spec} does not fool 99 % of the samples up to eps = {high / 2:.3g}; --eps auto has no answer.",
            "Give a number with --eps.",
        )
    low = low or high / 1024
    for _ in range(ROUNDS + (3 if low == high / 1024 else 0)):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(f"{high:.6g}")


def _fooled_below(spec: AttackSpec, model: Model, batches: Batches, least: list[Any], eps: float) -> float:
    """Share of samples fooled at `eps` or at a smaller one tried before; `least` keeps the smallest per batch."""
    import torch

    from specdiag.attacks._gradient import Outcome
    from specdiag.attacks._run import labels_of

    attack = build_attack(spec)
    fooled = total = 0
    for number, batch in enumerate(batches()):
        labels = labels_of(getattr(attack, "label", "true"), model, batch)
        if number == len(least):
            wrong = model.logits(batch.x).argmax(1) != labels
            least.append(torch.where(wrong, 0.0, torch.inf).double())
        if bool((least[number] > eps).any()):
            if hasattr(attack, "run"):
                outcome: Outcome = attack.run(model, batch, stop=True)
                x = outcome.x
            else:
                x = attack.perturb(model, batch)
            now = model.logits(x).argmax(1) != labels
            least[number] = torch.where(now & (least[number] > eps), eps, least[number])
        fooled += int((least[number] <= eps).sum())
        total += len(batch)
    return fooled / max(1, total)


def _is_minimal(spec: AttackSpec) -> bool:
    """Whether a foolbox attack looks for the smallest perturbation by itself, so that it needs no eps."""
    if not spec.startswith("foolbox:"):
        return False
    from specdiag.attacks._foreign import is_minimal

    return is_minimal(spec.partition(":")[2], tuple(spec.values.get("arguments", ())))


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )


def _with(spec: AttackSpec, **changed: Any) -> AttackSpec:
    return AttackSpec(spec, {**spec.values, **changed})
