"""Whether a file of `torch.export` is only what it should be: a graph of ATen operators and its weights.

`torch.export.load` takes more than that from a file, and does what it says: it unpickles (`use_pickle`, objects, sample
inputs that are not tensors), evaluates the expressions of shapes as Python, and calls whatever an operator's name leads
to inside `torch`. All of that is looked for and refused here, before it reads the file. What it reads is a copy of what
was looked at: its reader of archives takes names without regard to case, and Python's does not.
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
MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|extra/.+|models/[^/]+\.json"
    r"|data/(weights/(weight_\d+|[^/]+_weights_config\.json)|constants/(tensor_\d+|[^/]+_constants_config\.json))"
    r"|data/sample_inputs/[^/]+\.pt"
)
"""What torch 2.13 writes into an archive, below its one folder."""
NAMES = ("name", "buffer_name", "parameter_name", "tensor_constant_name")
SHAPES = {"Symbol", "Integer", "Mul", "Add", "Pow", "Max", "Min", "Mod", "FloorDiv", "CeilDiv", "Rational", "Float"}
SHAPES |= {"Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "true", "false", "True", "False", "oo", "int_oo"}
SHAPES |= {"Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Infinity"}
PLAIN = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator)
PLAIN += (ast.unaryop, ast.Compare, ast.cmpop, ast.Tuple)


def checked_archive(path: Path) -> io.BytesIO:
    """A copy of the file, for `torch.export.load`.

    Raises:
        UserError: it is no such file, or would do more than compute.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        for problem in _problems(members):
            raise UserError(
                f"{path} is not loaded: {problem}. Such a file can do anything; export the policy again, from a "
                "module of tensors and ATen operators alone, with a newer torch, or as ONNX."
            )
    except (zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no program of torch.export ({error}): write it with torch.export.save.") from None
    with zipfile.ZipFile(copy := io.BytesIO(), "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    copy.seek(0)
    return copy


def _problems(members: list[tuple[str, bytes]]) -> Iterator[str]:
    content = dict(members)
    root = members[0][0].partition("/")[0] if members else ""
    if len({name.casefold() for name, _ in members}) < len(members):
        yield "it has two members of one name"
    if any(name.rpartition("/")[2].startswith("serialized_") for name in content):
        yield "it is of a torch before 2.9, which kept its weights in a pickle"
    for name in content:
        if re.search(r"/(custom|opaque)_obj|/aotinductor/", name):
            yield f"it holds {name}, an object or compiled code"
        if not name.startswith(f"{root}/") or not MEMBERS.fullmatch(name.removeprefix(f"{root}/")):
            yield f"it holds {name}, which torch.export.save does not write"
    graphs = [name for name in content if name.startswith(f"{root}/models/")]
    if not graphs or content.get(f"{root}/archive_format") != b"pt2":
        raise ValueError("it has no graph")
    for name, data in members:
        folder = name.rpartition("/")[0]
        if name.endswith(".pt") and data and not _is_data(data):
            yield f"{name} is a pickle of more than tensors"
        if name.endswith("_config.json"):
            payloads = json.loads(data).get("config", {}).values()
            for payload in (p for p in payloads if p.get("use_pickle")):
                if not _is_data(content[f"{folder}/{payload['path_name']}"]):
                    yield f"{payload['path_name']} is a pickle of more than tensors"
    for name in graphs:
        yield from _in_graph(json.loads(content[name]))


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
