"""The configuration of a training from a YAML file and "key=value" pairs; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..config import FLAT_NAMES, TYPES, LetsTalkConfig
from ..errors import InputError
from .training_config import TASKS, TrainingConfig, need

BASE = "base"  # the key of another file, beside this one, that this one changes
# Values that a key had once, as YAML or the command line gives them, and what they are called now.
FORMER_VALUES = {"gradient_checkpointing": {False: "none", True: "full", "false": "none", "true": "full"}}
MODEL = "model."  # what the keys of a model's own fields begin with on the command line


def load_config(path: str | Path | None, changes: Iterable[str] = ()) -> TrainingConfig:
    """The configuration in a YAML file, with changes "key=value" ("model.depth=4" for the model's own).

    A file with the key `base` holds changes to that other file. Raises InputError for a file that is not there or not a
    mapping, for a key that is unknown (naming the nearest) or of the other task, and for a value of another type.
    """
    values = {} if path is None else _read_with_base(Path(path))
    for change in changes:
        key, separator, text = change.partition("=")
        need(bool(separator) and bool(key), f"{change!r} is not key=value")
        values = _merged(values, _nested(key, _parsed(key, text, change)))
    task = values["task"] = values.get("task") or "transformer"
    need(task in TASKS, f"task is {task!r}, not one of {', '.join(TASKS)}")
    kinds = _types_of(TASKS[task])
    _check_keys(values, kinds, task)
    values = {name: _converted(name, kinds[name], _renamed(name, value)) for name, value in values.items()}
    if "model" in values:
        _check_names(values["model"], MODEL_KINDS, MODEL)
        values["model"] = {
            name: _converted(MODEL + name, MODEL_KINDS[name], value) for name, value in values["model"].items()
        }
    return TASKS[task](**values)


def _read_with_base(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """The values in a file over those of its base; above: the files that are read already, whose base it is."""
    values = _read_yaml(path)
    base = values.pop(BASE, None)
    if base is None:
        return values
    need(isinstance(base, str), f"{BASE} in {path} is {base!r}, not the name of a file")
    above = (*above, path.resolve())
    need((path.parent / base).resolve() not in above, f"{path} is its own {BASE}, by way of {base}")
    return _merged(_read_with_base(path.parent / base, above), values)


def _read_yaml(path: Path) -> dict:
    import yaml

    if not path.is_file():
        raise InputError(f"There is no configuration file {path}; configs/ has examples.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML ({' '.join(str(error).split())}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a mapping of keys to values.")
    return values


def _merged(values: dict, changes: dict) -> dict:
    """The values with changes, those of `model` key by key."""
    both = {**values, **changes}
    models = [given.get("model") or {} for given in (values, changes)]
    if "model" in both:
        for model in models:
            need(isinstance(model, dict), f"model is {model!r}, not a mapping")
        both["model"] = {**models[0], **models[1]}
    return both


def _nested(key: str, value: typing.Any) -> dict:
    return {"model": {key.removeprefix(MODEL): value}} if key.startswith(MODEL) else {key: value}


def _parsed(key: str, text: str, change: str) -> typing.Any:
    """A value of the command line as YAML reads it; text stays text: a path may have a # in it, a run may be 2024."""
    import yaml

    kinds = (
        MODEL_KINDS if key.startswith(MODEL) else {n: k for kind in TASKS.values() for n, k in _types_of(kind).items()}
    )
    if kinds.get(key.removeprefix(MODEL)) is str or not text:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"training configuration: the value of {change!r} cannot be read") from None


def _types_of(owner: type) -> dict[str, type]:
    """A dataclass's fields with their types; a generic one is its origin."""
    hints = typing.get_type_hints(owner)
    kinds = {item.name: hints[item.name] for item in dataclasses.fields(owner)}
    return {name: typing.get_origin(kind) or kind for name, kind in kinds.items()}


def _model_kinds() -> dict[str, type]:
    """The types of a model's fields by their flat names."""
    whole = _types_of(LetsTalkConfig)
    return {name: _types_of(whole[part])[field] if part else whole[field] for name, (part, field) in FLAT_NAMES.items()}


MODEL_KINDS = _model_kinds()


def _check_keys(values: Mapping, known: Mapping, task: str) -> None:
    """Raises InputError for a key that the task would ignore."""
    for key in values:
        others = [name for name, kind in TASKS.items() if name != task and key in _types_of(kind)]
        if key not in known and others:
            hint = {"image_size": "; set model.image_size", "model": "; set image_size"}.get(key, "")
            need(False, f"{key} goes with task {others[0]}, and the task is {task}{hint}")
    _check_names(values, known, "")


def _check_names(values: Mapping, known: Mapping, prefix: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"
            raise InputError(f"training configuration: unknown key {prefix}{key}{hint}")


def _renamed(name: str, value: typing.Any) -> typing.Any:
    former = FORMER_VALUES.get(name, {})
    return former.get(value, value) if isinstance(value, bool | str) else value


def _converted(name: str, wanted: type, value: typing.Any) -> typing.Any:
    """The value in its field's type. YAML reads 1e-4 as text and 1 as int, which a float field takes."""
    if value is None and wanted in (dict, str):
        return wanted()
    if wanted is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is wanted:
        return value
    if wanted is tuple and isinstance(value, list):
        return tuple(value)
    raise InputError(f"training configuration: {name} is {value!r}, not {TYPES[wanted]}")
