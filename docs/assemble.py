"""
Gather what the docs site is made of, so that the same files read well in the repository and on the site.

Pages that stand elsewhere (SECURITY.md and the like) come in, files that pages link to come along, links are turned to where
all of it stands then, and the page of settings is made from the README's table and the code. A link to what is not
there ends it; between pages, and to their headings, the site's own build looks.

    python docs/assemble.py build/docs
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any, get_args

from notifyworker.settings import FLEET_SETTINGS, Settings

ROOT = Path(__file__).parents[1]
#: Pages beside those in docs/: where each stands, and its name on the site.
OTHERS = {
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]*)(#[^)\s]*)?(?=\))")
_SETTINGS = """\
# Settings

Keyword of `Worker`, environment variable, or option of `notifyworker worker`: the command line wins over the environment, that
over the keyword. `notifyworker config show` tells where each value comes from. Suffixes are units: `_s` seconds, `_bytes` bytes,
`_days` days.
"""
_README = {"#settings": "settings.md", "#a-handler": "readme.md#a-handler"}


def assemble(into: Path) -> None:
    """Write all of it to a folder, which is made anew. Raises SystemExit for a link that leads nowhere."""
    if into.exists():
        shutil.rmtree(into)
    into.mkdir(parents=True)
    pages = {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    pages |= {ROOT / name: target for name, target in OTHERS.items()} | {ROOT / "README.md": "readme.md"}
    files: set[Path] = set()
    broken: list[str] = []
    for path, name in pages.items():
        text = _linked(path, path.read_text(encoding="utf-8"), pages, files, broken)
        (into / name).write_text(text, encoding="utf-8")
    (into / "settings.md").write_text(settings_page(), encoding="utf-8")
    for file in files:
        target = into / "files" / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if broken:
        raise SystemExit("\n".join(broken))


def _linked(page: Path, text: str, pages: dict[Path, str], files: set[Path], broken: list[str]) -> str:
    def turned(found: re.Match[str]) -> str:
        to, heading = found[1], found[2] or ""
        target = (page.parent / to).resolve()
        if target == ROOT / "README.md" and heading in _README:
            return _README[heading]
        if target in pages:
            return pages[target] + heading
        if target.is_file():
            files.add(target)
            return f"files/{target.relative_to(ROOT)}{heading}"
        broken.append(f"{page.relative_to(ROOT)}: {to} is no file")
        return found[0]

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(turned, part) for part in parts)


def settings_page() -> str:
    """Every setting: what the README says of it, and what the code takes."""
    rows = re.findall(r"^\| `(\w+)`( \*)? \| (.*?) \|(.*)\|$", _readme_settings(), re.MULTILINE)
    meanings = {name: (default, meaning.strip().replace("](docs/", "](")) for name, _, default, meaning in rows}
    told = [_SETTINGS]
    for field_name, field in Settings.model_fields.items():
        name = "schema" if field_name == "schema_name" else field_name
        default, meaning = meanings[name]
        option = name.replace("_", "-")
        told.append(f"## {name}\n\n{meaning[:1].upper()}{meaning[1:]}{'.' if meaning and meaning[-1] not in '.)' else ''}\n")
        told.append(f"- default: {default}{_taken(field)}\n- `NOTIFYWORKER_{name.upper()}`, `--{option}`")
        if name in FLEET_SETTINGS:
            told.append(f"- one for the fleet: `notifyworker config set {name} {field.default:g}`")
        told.append("")
    return "\n".join(told)


def _readme_settings() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.partition("\n## Settings\n")[2].partition("\n## ")[0]


def _taken(field: Any) -> str:
    """What values it takes, where its type says so."""
    if choices := [
        choice for part in (field.annotation, *get_args(field.annotation)) for choice in get_args(part) if isinstance(choice, str)
    ]:
        return "; one of " + ", ".join(f"`{choice}`" for choice in dict.fromkeys(choices))
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    metadata = [*field.metadata, *(m for part in get_args(field.annotation) for m in _of_field_info(part))]
    bounds = [
        f"{word} {value:g}"
        for m in metadata
        for attribute, word in words.items()
        if (value := getattr(m, attribute, None)) is not None
    ]
    return "; " + " and ".join(bounds) if bounds else ""


def _of_field_info(part: Any) -> list[Any]:
    return [m for info in getattr(part, "__metadata__", ()) for m in getattr(info, "metadata", ())]


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
