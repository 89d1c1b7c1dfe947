"""The nested view of a model's layers, and its text form in which repeated blocks are shown once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.checkpoints.layer import Layer


class Tree(Mapping[str, "Tree"]):
    """A node of a model's names: ``model.tree["model"]["layers"]["0"]["mlp"]["down_proj"].layer``.

    A node may hold a layer, children, or both (a fused projection and its parts).
    """

    def __init__(self, name: str = "", path: str = "") -> None:
        self.name = name
        """The last part of the path."""
        self.path = path
        """The dotted path from the root."""
        self.layer: Layer | None = None
        self.children: dict[str, Tree] = {}

    @classmethod
    def of(cls, layers: Mapping[str, Layer], name: str = "") -> Tree:
        """Build the tree of a model's layers, in their order."""
        root = cls(name)
        for path, layer in layers.items():
            node = root
            for part in path.split("."):
                if part not in node.children:
                    node.children[part] = cls(part, f"{node.path}.{part}" if node is not root else part)
                node = node.children[part]
            node.layer = layer
        return root

    def __getitem__(self, key: str) -> Tree:
        """Return a child, or a descendant by its dotted path."""
        node = self
        for part in key.split("."):
            if part not in node.children:
                raise KeyError(key)
            node = node.children[part]
        return node

    def __iter__(self) -> Iterator[str]:
        return iter(self.children)

    def __len__(self) -> int:
        return len(self.children)

    def __bool__(self) -> bool:
        return True  # a leaf has no children, yet is a node

    def layers(self) -> Iterator[Layer]:
        """Yield the layers at and below this node, in order."""
        if self.layer is not None:
            yield self.layer
        for child in self.children.values():
            yield from child.layers()

    @property
    def parameters(self) -> int:
        """Weights at and below this node."""
        return sum(layer.parameters for layer in self.layers())

    def rows(self, *, collapse: bool = True) -> Iterator[TreeRow]:
        """Yield the lines of the text form, from the children of this node down.

        Arguments:
            collapse: show a run of numbered siblings that are alike in names, shapes and types once, as ``0-25``.
        """
        yield from _rows(self, "", collapse=collapse, depth=0)

    def text(self, *, collapse: bool = True) -> str:
        """Return the text form: one line for each node."""
        lines = [self.name] if self.name else []
        listed = list(self.rows(collapse=collapse))
        widest = max((len(row.branch) + len(row.label) for row in listed), default=0)
        for row in listed:
            label = f"{row.branch}{row.label}"
            lines.append(f"{label:<{widest}}  {row.description}".rstrip())
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        count = sum(1 for _ in self.layers())
        return f"Tree({self.path or self.name!r}, {count} layers, {short_count(self.parameters)} parameters)"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text())}</pre>"


@dataclass(frozen=True)
class TreeRow:
    """One line of the text form."""

    branch: str
    """Box-drawing lines to the left of the label."""
    label: str
    """The node's name, or ``0-25`` for collapsed siblings."""
    node: Tree
    """The node, the first of collapsed ones."""
    repeats: int
    """How many siblings the line stands for."""
    depth: int

    @property
    def description(self) -> str:
        """Shape, type, kind and role of a layer; the number of parameters of a branch."""
        times = f"{self.repeats} × " if self.repeats > 1 else ""
        if self.node.layer is None:
            return f"{times}{short_count(self.node.parameters)}"
        return times + describe(self.node.layer)


def describe(layer: Layer) -> str:
    """Return ``640x256 bfloat16 linear (q_proj)`` for a layer."""
    shape = "x".join(map(str, layer.shape)) or "1"
    role = f" ({layer.role})" if layer.role and layer.role != layer.kind and not layer.name.endswith(layer.role) else ""
    return f"{shape} {layer.dtype} {layer.kind}{role}"


def short_count(number: int) -> str:
    """Return a count as people say it: ``27.4B``, ``5.8M``, ``12.3k``, ``640``."""
    if number < 1000:
        return str(number)
    for size, letter in ((10**3, "k"), (10**6, "M"), (10**9, "B")):
        text = f"{number / size:.3g}"
        if float(text) < 1000:
            return text + letter
    return f"{number / 10**12:.3g}T" if number < 999.5e12 else f"{number // 10**12}T"


def _rows(node: Tree, indent: str, *, collapse: bool, depth: int) -> Iterator[TreeRow]:
    runs = list(_runs(list(node.children.values()), collapse=collapse))
    for position, run in enumerate(runs):
        last = position == len(runs) - 1
        first = run[0]
        label = first.name if len(run) == 1 else f"{first.name}-{run[-1].name}"
        yield TreeRow(indent + ("└── " if last else "├── "), label, first, len(run), depth)
        yield from _rows(first, indent + ("    " if last else "│   "), collapse=collapse, depth=depth + 1)


def _runs(children: list[Tree], *, collapse: bool) -> Iterator[list[Tree]]:
    """Group consecutive numbered children that are alike."""
    run: list[Tree] = []
    shape: tuple | None = None
    for child in children:
        if not collapse or not child.name.isdecimal():
            if run:
                yield run
            yield [child]
            run, shape = [], None
            continue
        new = _form(child)
        if run and (new != shape or int(child.name) != int(run[-1].name) + 1):
            yield run
            run = []
        run.append(child)
        shape = new
    if run:
        yield run


def _form(node: Tree) -> tuple:
    """Return what makes two blocks look alike: names, shapes and types all the way down."""
    layer = node.layer
    own = (layer.shape, layer.dtype, layer.kind) if layer is not None else None
    return (own, tuple((name, _form(child)) for name, child in node.children.items()))
