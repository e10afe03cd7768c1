"""Ray Serve's configuration files, read strictly: it ignores misspelt keys without a word, this does not.

``python -m cryoray.serving.config FILE…`` says of each whether `serve deploy` would do what it says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from cryoray.errors import CryorayError, SettingsError
from cryoray.serving.app import Arguments, deployments
from cryoray.serving.scaling import ByQueuedImages

_BUILD = "cryoray.serving.app:build"
_POLICY = f"{ByQueuedImages.__module__}:{ByQueuedImages.__name__}"


def load(file: Path) -> ServeDeploySchema:
    """Read a file for ``serve deploy``, ``serve run`` or a RayService.

    Raises:
        SettingsError: it is no YAML, a key is unknown or given twice, a value is out of range, or it
            names a deployment that `cryoray.serving.app.build` does not make.
    """
    try:
        given = yaml.load(file.read_text(encoding="utf-8"), _Strict)
    except OSError as error:
        raise SettingsError(f"cannot be read: {error.strerror}", file=file) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"not YAML: {' '.join(str(error).split())}", file=file) from error
    try:
        schema = ServeDeploySchema.model_validate(given)
    except ValidationError as error:
        raise SettingsError(_first(error), file=file) from error
    for key in _unknown(given, ServeDeploySchema):
        raise SettingsError(
            f"there is no setting {key}",
            file=file,
            remedy="Ray Serve would ignore it; correct or remove it",
        )
    for application in schema.applications:
        if application.import_path == _BUILD:
            _check(application.model_dump(exclude_unset=True), file)
    return schema


class _Strict(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, where YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _check(application: Mapping[str, Any], file: Path) -> None:
    """What Ray Serve's schema leaves open: our own arguments and the names of our deployments."""
    try:
        args = Arguments.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise SettingsError(f"args.{_first(error)}", file=file) from error
    if not args.ensembles:
        raise SettingsError("args.ensembles is missing", file=file, remedy="name at least one")
    names = deployments(args)
    for one in application.get("deployments", ()):
        if one["name"] not in names:
            raise SettingsError(
                f"there is no deployment {one['name']!r}",
                file=file,
                remedy=f"the arguments make {', '.join(names)}",
            )
        scaling = one.get("autoscaling_config")
        if scaling is None:
            continue
        try:
            policy = AutoscalingConfig.model_validate(scaling).policy
            if policy.policy_function == _POLICY:
                ByQueuedImages(**policy.policy_kwargs)
        except (ValidationError, TypeError, ValueError) as error:
            what = _first(error) if isinstance(error, ValidationError) else str(error)
            raise SettingsError(f"{one['name']}.autoscaling_config: {what}", file=file) from error


def _unknown(given: object, annotation: Any, at: str = "") -> Iterator[str]:
    """Dotted keys that a pydantic model, or one inside it, does not have."""
    models = [*_models(annotation)]
    if isinstance(given, list):
        (of,) = get_args(annotation) or (Any,) if get_origin(annotation) is list else (annotation,)
        for index, one in enumerate(given):
            yield from _unknown(one, of, f"{at}[{index}]")
    elif isinstance(given, Mapping) and models:
        # Of a choice of models, the one that knows most of what is given.
        fields = max(
            (model.model_fields for model in models),
            key=lambda known: len(known.keys() & given.keys()),
        )
        for key, value in given.items():
            name = f"{at}.{key}" if at else str(key)
            if key in fields:
                yield from _unknown(value, fields[key].annotation, name)
            else:
                yield name


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType):
        for one in get_args(annotation):
            yield from _models(one)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'][0].lower()}{first['msg'][1:]}"


def main(files: list[str]) -> int:
    """Check each file; 2 where one is wrong."""
    for name in files:
        try:
            load(Path(name))
        except CryorayError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{name}: good")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
