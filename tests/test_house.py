"""The house around the code: documents that must stay in step with it, and rules that no other tool checks."""

import ast
import dataclasses
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import policy_decorator

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "policy_decorator"
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
)

LONGEST = 300
LONG_FILES: dict[str, str] = {"refine.py": "one run from its first check to its summary"}
"""Path below src/policy_decorator -> why it may have more lines than LONGEST."""

NEWCOMERS_PATH = ("types.py", "decorator.py", "rollout.py", "rl/sac.py", "train.py")

SIMULATORS = {"metaworld", "gymnasium_robotics", "mujoco", "minari", "robosuite"}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def files_of_the_repository() -> list[Path]:
    """Tracked files and new ones that are not ignored; skips outside a git checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode().split("\0")
    except (OSError, subprocess.SubprocessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def below_source(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def anchors(markdown: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", read(page))
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page: str) -> None:
    assert re.findall(r"\{\{[A-Z_]+\}\}", read(page)) == []


def test_one_version_everywhere() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert policy_decorator.__version__ == version
    assert re.search(rf"^## \[{re.escape(version)}\]", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert f"\nversion: {version}\n" in read("CITATION.cff")


def test_make_targets() -> None:
    makefile = read("Makefile")
    targets = re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)
    assert targets[0] == "help", "`make` alone must explain, not act"
    assert set(targets) >= {"help", "setup", "venv", "demo", "test", "lint", "check", "format", "clean"}
    phony = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(targets)
    text = "\n".join(read(page) for page in ("README.md", "CONTRIBUTING.md", "docs/architecture.md", ".ci/run"))
    named = set(re.findall(r"(?:`|^ *)make ([a-z-]+)\b", text, flags=re.MULTILINE))
    assert named <= set(targets), "a page names a target that does not exist"


def test_ci_script_is_executable_and_parses() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, timeout=120).returncode == 0


def test_no_path_of_a_machine_and_no_registry() -> None:
    # Put together from pieces, so that this file does not match itself.
    machine = "/" + "(?:" + "|".join(("work", "root", "farm")) + ")/"
    halves = (("py", "pi"), ("python", "hosted"), ("npm", "js"), ("ana", "conda"), ("download.py", "torch"))
    hosts = [re.escape(first + second) + r"\." for first, second in halves]
    forbidden = re.compile("|".join([rf"(?<![\w.$}}]){machine}", *(host + "org" for host in hosts)]))
    assert forbidden.search("see /" + "root/x")
    assert forbidden.search("https://py" + "pi.org/simple")
    found = []
    for path in files_of_the_repository():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        lines = enumerate(text.splitlines(), start=1)
        found += [f"{path.relative_to(ROOT)}:{n}: {line.strip()[:80]}" for n, line in lines if forbidden.search(line)]
    assert found == []


def test_files_stay_small() -> None:
    lengths = {below_source(p): len(p.read_text(encoding="utf-8").splitlines()) for p in source_files()}
    long = {name for name, length in lengths.items() if length > LONGEST}
    assert long == set(LONG_FILES), "split the file, or name it in LONG_FILES with a reason"
    assert sum(lengths[name] for name in NEWCOMERS_PATH) <= 400, "README promises about 400 lines"


def test_departures_are_documented() -> None:
    page = read("docs/differences-from-the-paper.md")
    departing = [below_source(p) for p in source_files() if "# Differs from" in p.read_text(encoding="utf-8")]
    assert len(departing) >= 3
    assert [name for name in departing if f"`{name}`" not in page] == []
    named = set(re.findall(r"`([a-z_/]+\.py)`", page)) - {"tests/test_house.py"}
    assert [name for name in named if not (SOURCE / name).exists()] == []


def different_settings(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(x):
            yield from different_settings(x, y, f"{prefix}{field.name}.")
        elif x != y:
            yield prefix + field.name


@pytest.mark.parametrize(("name", "other"), [("quick", "paper"), ("fast", "quick")])
def test_presets_are_documented_by_what_differs(name: str, other: str) -> None:
    from policy_decorator.experiments.presets import settings

    page = read("docs/differences-from-the-paper.md")
    section = page.split(f"## The preset `{name}`")[1].split("\n## ")[0]
    table = re.findall(r"^\| `([a-z_.]+)` \| .* \| (.*) \| .* \|$", section, re.MULTILINE)
    preset = settings(name, "any task")
    assert {setting for setting, _ in table} == set(different_settings(settings(other, "any task"), preset))
    for setting, written in table:
        says(preset, setting, written)


def says(config: Any, name: str, written: str) -> None:
    """The page's value of a setting is the code's."""
    value = config
    for part in name.split("."):
        value = getattr(value, part)
    said = written.replace(",", "").replace("`", "")
    assert said == str(value) or float(said) == value, f"{name} is {value}, the page says {written}"


def test_quick_preset_of_the_hand_is_documented() -> None:
    from policy_decorator.experiments.presets import settings

    section = read("docs/differences-from-the-paper.md").split("## `quick` on the Adroit hand")[1].split("\n## ")[0]
    table = re.findall(r"^\| `([a-z_.]+)` \| (.*) \| (.*) \| (.*) \| .* \|$", section, re.MULTILINE)
    for column, task in enumerate(("adroit/door", "adroit/pen", "adroit/hammer"), start=1):
        config = settings("quick", task)
        different = set(different_settings(settings("quick", "any task"), config)) - {"task"}
        assert different <= {row[0] for row in table}
        for row in table:
            says(config, row[0], row[column])


def test_every_task_is_listed() -> None:
    from policy_decorator.envs import TASKS

    listed = re.findall(r"`((?:metaworld|adroit|toy|maniskill|robosuite)/[a-z-]+)`", read("docs/tasks.md"))
    assert sorted(listed) == sorted(TASKS)


def test_names_page_names_what_exists() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in source_files())
    for line in read("docs/names.md").splitlines():
        cells = line.split("|")
        for word in re.findall(r"`([A-Za-z_]+)`", "|".join(cells[2:])):
            assert re.search(rf"\b{word}\b", text), f"docs/names.md names {word}"


def test_simulators_are_imported_lazily_in_envs_and_demos_only() -> None:
    """import-linter says where; that it must be inside a function, and mujoco too, is said here."""
    wrong = []
    for path in source_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = {id(node) for block in ast.walk(tree) if _is_type_checking(block) for node in ast.walk(block)}
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if id(node) in guarded or not SIMULATORS & set(_imported(node)):
                continue
            room = below_source(path).split("/")[0]
            if room not in ("envs", "demos") or id(node) not in inside:
                wrong.append(f"{below_source(path)}:{getattr(node, 'lineno', 0)}")
    assert wrong == []


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module.split(".")[0]]
    return []


def commands_in(page: str) -> dict[str, set[str]]:
    """ "refine" or "imitate bet" -> the options that `pidec` lines of a page give it."""
    found: dict[str, set[str]] = {}
    for line in re.findall(r"\bpidec ([a-z][^`\n]*)", read(page).replace("\\\n", " ")):
        words = line.split()
        name = " ".join(words[: 2 if words[0] == "imitate" and len(words) > 1 else 1])
        found.setdefault(name, set()).update(w for w in words if w.startswith("--"))
    return found


@pytest.mark.parametrize("command", sorted(commands_in("README.md")))
def test_commands_of_the_readme_exist(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from policy_decorator.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    assert main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert [option for option in sorted(commands_in("README.md")[command]) if option not in shown] == []
