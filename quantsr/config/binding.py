"""Binding the arguments of a section to the signature of the registered class or function that its
``type`` names.

Sections of networks, losses, metrics, data sets, optimizers and schedulers have this form:
``type``, a registered name, and beside it arguments of the class or function of that name.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from quantsr.config.problems import KeyPath, Problems, did_you_mean, show

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword arguments that a class or function takes.

    Where a class passes ``**kwargs`` on to its base class, those of the base class too.
    """
    found: dict[str, inspect.Parameter] = {}
    owners: Iterable[Any] = target.__mro__ if isinstance(target, type) else (target,)
    for owner in owners:
        function = owner.__dict__.get("__init__") if isinstance(owner, type) else owner
        if function is None:
            continue
        signature = list(inspect.signature(function).parameters.values())
        for parameter in signature[1:] if isinstance(owner, type) else signature:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            break
    return found


def with_defaults(target: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the call ``target(**given)``: those given and the defaults of the others."""
    defaults = {
        name: parameter.default
        for name, parameter in parameters(target).items()
        if parameter.default is not parameter.empty
    }
    return {**defaults, **given}


def bind(
    key: KeyPath,
    name: str,
    target: Callable[..., Any],
    given: Mapping[str, Any],
    problems: Problems,
    *,
    supplied: Collection[str] = (),
    declared: Collection[str] = (),
) -> dict[str, Any]:
    """Check the arguments of a section against the signature of ``target``.

    Args:
        key: of the section, for messages.
        name: the name under which ``target`` is registered.
        target: the class or function that will be called.
        given: the section's keys without ``type``.
        problems: receives unknown, missing and mistyped arguments, all of them.
        supplied: arguments that the caller adds, such as an optimizer's ``params``; a section may
            not hold them.
        declared: fields of the section's schema, which has checked their types and whether they are
            missing.

    Returns:
        The arguments of the call: the valid ones, and the defaults of those that are not given.
    """
    accepted = {word: p for word, p in parameters(target).items() if word not in supplied}
    for word in given:
        if word not in accepted:
            problems.add((*key, word), f"unknown option of {name}; {did_you_mean(word, accepted)}")
    for word, parameter in accepted.items():
        if parameter.default is parameter.empty and word not in given and word not in declared:
            problems.add((*key, word), f"missing; {name} needs it")
    hints = _hints(target)
    valid = {
        word: value
        for word, value in given.items()
        if word in accepted
        and (word in declared or _has_type((*key, word), value, accepted[word], hints, problems))
    }
    defaults = {w: p.default for w, p in accepted.items() if p.default is not p.empty and w not in given}
    return {**defaults, **valid}


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}  # hints that name types only known to a type checker


def _has_type(
    key: KeyPath, value: Any, parameter: inspect.Parameter, hints: dict[str, Any], problems: Problems
) -> bool:
    """Whether the value fits the parameter's type hint, or the type of its default where it has
    none."""
    wanted = hints.get(key[-1], _type_of(parameter.default))
    if wanted is Any:
        return True
    try:
        # As JSON, where a list is accepted as a tuple and 1 as 1.0, but neither "1" nor true as a
        # number.
        TypeAdapter(wanted).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        reason = reason[:1].lower() + reason[1:]
        if wanted in _WORDS:
            reason = f"must be {_WORDS[wanted]}"
        problems.add(key, f"{reason}, got {show(value)}")
        return False
    # a hint without a pydantic schema, e.g. a class of torch: the constructor checks
    except Exception:
        return True
    return True


def _type_of(default: Any) -> Any:
    if isinstance(default, bool):
        return bool
    if isinstance(default, (int, float)):
        return float if isinstance(default, float) else int | float
    if isinstance(default, str):
        return str
    if isinstance(default, (tuple, list)) and default:
        return list[int | float] if all(isinstance(entry, (int, float)) for entry in default) else list[Any]
    return Any
