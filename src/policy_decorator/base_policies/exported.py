"""Whether a file of `torch.export` is only what it should be: a graph of ATen operators and its weights.

`torch.export.load` takes more than that from a file, and does what it says: it unpickles (`use_pickle`, objects, sample
inputs that are not tensors), evaluates the expressions of shapes as Python, and calls whatever an operator's name leads
to inside `torch`. All of that is looked for and refused here, before it reads the file.
"""

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from policy_decorator.errors import UserError

OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|torch\.sym_\w+|_operator\.[a-z_]+|math\.\w+"
)
REFLECTION = re.compile(r"_operator\.(attrgetter|methodcaller|itemgetter|call)")
NAMES = ("name", "buffer_name", "parameter_name", "tensor_constant_name")
SHAPES = {"Symbol", "Integer", "Mul", "Add", "Pow", "Max", "Min", "Mod", "FloorDiv", "CeilDiv", "Rational", "Float"}
SHAPES |= {"Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "true", "false", "True", "False", "oo", "int_oo"}
SHAPES |= {"Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Infinity"}
PLAIN = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator)
PLAIN += (ast.unaryop, ast.Compare, ast.cmpop, ast.Tuple)


def check_exported(path: Path) -> None:
    """Raises UserError for a file that is none, or that would do more than compute."""
    try:
        with zipfile.ZipFile(path) as archive:
            for problem in _problems(archive):
                raise UserError(
                    f"{path} is not loaded: {problem}. Such a file can do anything; export the policy again, from a "
                    "module of tensors and ATen operators alone, or as ONNX."
                )
    except (zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no program of torch.export ({error}): write it with torch.export.save.") from None


def _problems(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    graphs = [n for n in names if re.search(r"(^|/)(models/[^/]+|serialized_exported_program)\.json$", n)]
    if not graphs:
        raise ValueError("it has no graph")
    for name in names:
        folder, _, file = name.rpartition("/")
        if file.startswith(("custom_obj", "opaque_obj")) or "/aotinductor" in f"/{name}":
            yield f"it holds {name}, an object or compiled code"
        if file.endswith(".pt") and archive.getinfo(name).file_size and not _is_data(archive.read(name)):
            yield f"{name} is a pickle of more than tensors"
        if file.endswith("_config.json"):
            payloads = json.loads(archive.read(name)).get("config", {}).values()
            for payload in (p for p in payloads if p.get("use_pickle")):
                if not _is_data(archive.read(f"{folder}/{payload['path_name']}")):
                    yield f"{payload['path_name']} is a pickle of more than tensors"
    for name in graphs:
        yield from _in_graph(json.loads(archive.read(name)))


def _is_data(pickled: bytes) -> bool:
    try:
        torch.load(io.BytesIO(pickled), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return False
    return True


def _in_graph(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for part in node:
            yield from _in_graph(part)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "target" and (not OPERATORS.fullmatch(str(value)) or REFLECTION.fullmatch(str(value))):
            yield f"its operator {value!r} is none of ATen's"
        elif key in NAMES and isinstance(value, str) and not re.fullmatch(r"[\w.]*", value):
            yield f"its name {value!r} is none"
        elif key == "expr_str" and not _is_plain(str(value)):
            yield f"its shape {value!r} is no plain expression"
        elif key in ("in_spec", "out_spec") and "defaultdict" in str(value):
            yield "it takes or gives defaultdicts"
        elif key != "metadata":
            yield from _in_graph(value)


def _is_plain(expression: str) -> bool:
    """Whether it is arithmetic of symbols, and nothing that Python could be made to do with it."""
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    nodes = list(ast.walk(tree))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    fine = all(re.fullmatch(r"[su]\d+|unbacked\w*", name) or name in SHAPES for name in names)
    return fine and all(isinstance(node, PLAIN) for node in nodes) and all(re.fullmatch(r"\w+", t) for t in texts)
