"""The house's rules about imports, held by reading the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "trine"
LEAVES = {"errors", "manifest", "progress", "stability", "config"}
ARROWS = {
    "data": set(),
    "weights": set(),
    "native": set(),
    "moe": {"native"},
    "optim": {"native"},
    "model": {"moe", "weights", "native"},
    "evaluate": {"model", "data", "native"},
    "train": {"model", "moe", "optim", "data", "evaluate", "weights", "native"},
    "estimate": {"train", "model", "optim", "data", "weights"},
    "report": set(),
    "merge": {"weights", "native"},
    "surgery": {"merge", "weights"},
    "spectrum": {"weights"},
}
"""Room to rooms it may import, besides the leaves and config models (`*/config.py`)."""
EVERYTHING = {"cli", "recipe", "chain", "completion", "study", "batch_view", "rehearsal", "steps"}
SMALL_CORE = {"torch", "numpy", "safetensors", "transformers", "pydantic"}
IN_MEMORY_DATA = {"shards", "pack", "buffer", "planned", "loader"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append(node.module or "")
    return found


def test_rooms_import_only_along_the_arrows() -> None:
    wrong = []
    for path in modules():
        here = room(path)
        if here in EVERYTHING or here == "__init__":
            continue
        for name in imports(path):
            if not name.startswith("trine."):
                continue
            there, is_config_model = name.split(".")[1], name.endswith(".config")
            allowed = ARROWS.get(here, set()) | LEAVES | {here}
            if there not in allowed and not is_config_model:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_table() -> None:
    rooms = {p.name for p in SOURCE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert rooms <= set(ARROWS) | EVERYTHING | LEAVES


def test_packages_import_nothing_in_init() -> None:
    for path in SOURCE.glob("*/__init__.py"):
        assert imports(path) in ([], ["__future__"]), path


@pytest.mark.parametrize(
    "path", [p for p in modules() if room(p) in {"model", "moe", "optim", "train", "spectrum"}], ids=str
)
def test_core_rooms_import_only_the_small_core(path: Path) -> None:
    allowed = SMALL_CORE | set(sys.stdlib_module_names) | {"trine"}
    for name in imports(path):
        assert name.split(".")[0] in allowed, f"{path}: {name}"


def test_light_core_imports_no_torch() -> None:
    code = (
        "import sys, trine.recipe, trine.config.load, trine.cli.main, trine.manifest;"
        "heavy = {'torch', 'numpy', 'transformers', 'pyarrow', 'tokenizers', 'jinja2'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_config_fields_are_all_read() -> None:
    """A field that nothing reads is deleted: each name occurs outside the config models."""
    sources = [p for p in modules() if p.name != "config.py" and p.name != "recipe.py"]
    recipe = (SOURCE / "recipe.py").read_text()
    text = "\n".join(p.read_text() for p in sources) + recipe[recipe.index("class Config") :]
    unread = []
    for path in [*SOURCE.glob("*/config.py"), SOURCE / "recipe.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    name = field.target.id
                    own = path.read_text() if path.name == "config.py" else ""
                    used_here = own.count(f"self.{name}") > 0
                    if f".{name}" not in text and f'"{name}"' not in text and not used_here:
                        unread.append(f"{path.parent.name}.{node.name}.{name}")
    assert not unread, unread


def test_transformers_opens_folders_without_network_and_without_their_code() -> None:
    calls = 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr == "from_pretrained":
                given = {one.arg: getattr(one.value, "value", None) for one in node.keywords}
                where = f"{path}:{node.lineno}"
                assert (given.get("local_files_only"), given.get("trust_remote_code")) == (True, False), where
                calls += 1
    assert calls >= 6
