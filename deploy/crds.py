"""
Check KEDA's and CloudNativePG's manifests against their own definitions, which are not Kubernetes', and not ours to ship.

    python deploy/crds.py FILE..

takes the CustomResourceDefinitions of their releases (config/crd/bases/ in either repository). A field that they do not
know is an error. `make manifests CRDS="FILE.."` does it beside the rest.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

MANIFESTS = Path(__file__).parent / "kubernetes"


def main(files: list[str]) -> int:
    """Print a line for each manifest; return the exit code."""
    known = {}
    for file in files:
        definition = yaml.safe_load(Path(file).read_text(encoding="utf-8"))["spec"]
        for version in definition["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
            known[definition["names"]["kind"], f"{definition['group']}/{version['name']}"] = schema
    wrong = 0
    for name in ("cluster", "scaling"):
        for manifest in yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8")):
            schema = known.get((manifest["kind"], manifest["apiVersion"]))
            errors = ["no definition was given"] if schema is None else _errors(schema, manifest)
            wrong += bool(errors)
            sys.stdout.write(f"{manifest['kind']}: {'; '.join(errors) or 'passed'}\n")
    return 1 if wrong else 0


def _errors(schema: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    found = Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in found]


def _strict(schema: Any) -> Any:
    """Let objects have no fields but those that are told, as the API server has it with strict validation."""
    if isinstance(schema, dict):
        schema = {name: _strict(inner) for name, inner in schema.items()}
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        return schema
    return [_strict(inner) for inner in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
