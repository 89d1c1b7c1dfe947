"""The session's recipe: what every layer of the model gets, edited cell by cell, and the model quantized by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import traitlets

from workbench.errors import RecipeError, WorkbenchError
from workbench.panels.long_run import LongRun, duration
from workbench.panels.recipe_plan import RecipePlan, needs_inputs, plan_recipe, reads_images
from workbench.panels.state import Checked

if TYPE_CHECKING:
    from workbench.calibration.data import Calibration
    from workbench.methods.result import LayerResult
    from workbench.panels.jobs import Job
    from workbench.panels.session import Session
    from workbench.quantization.recipe import Recipe

#: The columns that are typed into, in order.
FIELDS = ("pattern", "weight", "granularity", "scale", "activation", "method")


def _read_recipe(state: Any, value: Any) -> Recipe:
    from workbench.methods.recipes import check_methods
    from workbench.quantization.recipe import Recipe

    _ = state
    recipe = Recipe.of(value)
    check_methods(recipe)
    return recipe


def _read_samples(_state: Any, value: Any) -> int:
    try:
        count = -1 if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        count = -1
    if count != value or not 1 <= count <= 100_000:
        message = f"calibration takes 1 to 100,000 samples, not {str(value)[:40]!r}"
        raise RecipeError(message)
    return count


def _read_output(_state: Any, value: Any) -> str:
    if not isinstance(value, str):
        message = f"the folder for the quantized model is a path, not {str(value)[:40]!r}"
        raise RecipeError(message)
    return value.strip()


def _read_seed(_state: Any, value: Any) -> int:
    try:
        seed = -1 if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        seed = -1
    if seed != value or not 0 <= seed < 2**31:
        message = f"the seed is a whole number from 0 to {2**31 - 1:,}, not {str(value)[:40]!r}"
        raise RecipeError(message)
    return seed


class RecipeState(LongRun):
    """The recipe of a session and what quantizing the model by it has given; get it by ``RecipeState.of(session)``."""

    kind: ClassVar[str] = "recipe"

    recipe: Any = Checked(None, _read_recipe)
    """The recipe; a preset's name or a mapping may be assigned."""
    samples = Checked(64, _read_samples)
    """Texts or images that methods learn from."""
    seed = Checked(0, _read_seed)
    """Of every random choice."""

    output = Checked("", _read_output)
    """Folder that the quantized model is written to, where a run that was cut off goes on; empty keeps it in memory."""

    results: Mapping[str, LayerResult] = traitlets.Any({}, read_only=True)  # pyright: ignore[reportAssignmentType]
    """Layers that the last run has finished, by name."""
    quantized: Any = traitlets.Any(None, read_only=True)
    """The ``QuantizedModel`` of the last run that came to its end, or None."""
    made_by: Any = traitlets.Any(None, read_only=True)
    """The recipe, samples and seed that ``results`` were made by."""

    def __init__(self, session: Session) -> None:
        self._planned: tuple[Any, Any, RecipePlan] | None = None
        super().__init__(session)
        with session.lock:
            self._set_first()

    def _set_first(self) -> None:
        """Start from the session's own grid, rounded to nearest: what its error panels show."""
        from workbench.quantization.recipe import Entry, Recipe

        session = self.session
        entry = Entry(
            "*",
            weight=str(session.grid),
            granularity=session.granularity,
            scale=session.scale_rule,
            activation="float",
            method="rtn",
        )
        self.recipe = Recipe((entry,))

    # ------------------------------------------------------------------ editing

    def edit(self, row: int, field: str, text: str) -> str:
        """Set one cell; returns one sentence where the text cannot be used, and then nothing has changed.

        An empty cell leaves the setting to the entries before it.
        """
        from workbench.methods.recipes import check_methods

        with self.lock:
            recipe, value = self.recipe, text.strip()
            try:
                if field not in FIELDS or not 0 <= row < len(recipe.entries):
                    return f"the recipe has no cell {field!r} in row {row + 1}"
                entry = replace(recipe.entries[row], **{field: value if field == "pattern" else value or None})
                changed = recipe.replaced(row, entry)
                check_methods(changed)
            except WorkbenchError as error:
                return str(error)
            self.recipe = changed
            return ""

    def edit_transforms(self, text: str) -> str:
        """Set the transforms before rounding, parted by ``;``; returns one sentence where they cannot be used."""
        from workbench.methods.recipes import check_methods

        with self.lock:
            words = tuple(part.strip() for part in text.split(";") if part.strip())
            if words == self.recipe.transforms:
                return ""
            try:
                changed = replace(self.recipe, transforms=words, name="")
                check_methods(changed)
            except WorkbenchError as error:
                return str(error)
            self.recipe = changed
            return ""

    def add(self, pattern: str, **settings: Any) -> None:
        """Add an entry at the end, where it overrides all before it; one for this very pattern gives way to it."""
        from workbench.quantization.recipe import Entry

        def added(recipe: Recipe) -> Recipe:
            kept = [each for each in recipe.entries if each.pattern != pattern]
            return replace(recipe, entries=(*kept, Entry(pattern, **settings)), name="")

        self._change(added)

    def add_row(self) -> None:
        """Add an entry that says nothing yet, for the session's present layer."""
        self._change(lambda recipe: recipe.but(self.session.layer_name or "*"))

    def remove(self, row: int) -> None:
        """Remove an entry."""
        self._change(lambda recipe: recipe.removed(row))

    def move(self, row: int, place: int) -> None:
        """Move an entry to another place."""
        self._change(lambda recipe: recipe.moved(row, place))

    def load(self, path: str) -> bool:
        """Read a recipe from a YAML file; False where that fails, with a message."""
        return self._file(path, lambda recipe_type, where: setattr(self, "recipe", recipe_type.load(where)))

    def save(self, path: str) -> bool:
        """Write the recipe to a YAML file; False where that fails, with a message."""
        return self._file(path, lambda _type, where: self.recipe.save(where))

    def _file(self, path: str, act: Any) -> bool:
        from workbench.quantization.recipe import Recipe

        if not path.strip():
            self.complain("type the path of a recipe file, e.g. recipe.yaml")
            return False
        try:
            act(Recipe, path.strip())
        except WorkbenchError as error:
            self.complain(error)
            return False
        return True

    def _change(self, act: Any) -> None:
        with self.lock:
            try:
                self.recipe = act(self.recipe)
            except WorkbenchError as error:
                self.complain(error)

    def plan(self) -> RecipePlan:
        """Return what the recipe gives each layer of the session's model."""
        key = (self.session.model, self.recipe)
        if self._planned is None or self._planned[0] is not key[0] or self._planned[1] != key[1]:
            self._planned = (*key, plan_recipe(*key))
        return self._planned[2]

    @property
    def fresh(self) -> bool:
        """Whether ``quantized`` is what the present recipe gives."""
        return self.quantized is not None and self.made_by == self.making()

    def making(self) -> tuple[Any, int, int]:
        """Return what a run of now would be made by: recipe, samples, seed."""
        return (self.recipe, self.samples, self.seed)

    # ------------------------------------------------------------------ quantizing the model

    def start(self) -> None:
        """Quantize the model by the recipe; layers come as they are finished and stay when it is stopped."""
        with self.lock:
            model = self.session.model
            if model is None:
                self.complain("open a model first: a recipe quantizes a model")
                return
            try:
                self.recipe.check_patterns({*model.layers, *model.fused, *model.tied})
            except WorkbenchError as error:
                self.complain(error)
                return
            making = self.making()
            self.set_trait("quantized", None)
            self.set_trait("results", {})
            self.set_trait("made_by", making)
        self.begin(lambda job: self._work(job, model, making), f"quantizing {model.name}")

    def _work(self, job: Job, model: Any, making: tuple[Any, int, int]) -> str:
        made = self.make(job, model, making, lambda fraction, label: self.tell(job, fraction, label))
        count = len(made.layers)
        return f"{count} layers in {duration(self.seconds_so_far())}, {made.bits_per_weight:.3f} bits per weight"

    def make(self, job: Job, model: Any, making: tuple[Any, int, int], progress: Any) -> Any:
        """Quantize on the worker, publish layers as they come, and return the ``QuantizedModel``."""
        from workbench.methods.runner import quantize_model

        recipe, samples, seed = making
        with self.lock:
            output = self.output or None

        def on_layer(result: LayerResult) -> None:
            with self.lock:
                job.check()
                self.set_trait("results", {**self.results, result.name: result})

        made = quantize_model(
            model,
            recipe,
            calibration_of(model, recipe, samples, seed),
            output=output,
            seed=seed,
            progress=progress,
            on_layer=on_layer,
        )
        with self.lock:
            job.check()
            self.set_trait("results", dict(made.layers))
            self.set_trait("made_by", making)
            self.set_trait("quantized", made)
        return made

    def forget(self) -> None:
        """Drop what belongs to the model before; the recipe stays."""
        self._planned = None
        self.set_trait("quantized", None)
        self.set_trait("results", {})
        self.set_trait("made_by", None)

    def kept(self) -> str:
        """Say how many layers stay."""
        count = len(self.results)
        return f"{count} layer{'s' if count != 1 else ''} kept"

    def to_spec(self) -> dict[str, Any]:
        """Return the recipe and the settings as plain data."""
        with self.lock:
            settings = {"samples": self.samples, "seed": self.seed, "output": self.output}
            return {"recipe": self.recipe.to_dict(), **settings}


def calibration_of(model: Any, recipe: Recipe, samples: int, seed: int) -> Calibration | None:
    """Return the shipped inputs for a model's family, or None where the recipe needs none and nothing has to run.

    Raises:
        CheckpointError: the model needs inputs of another kind.
    """
    from workbench.calibration.data import Calibration

    if not needs_inputs(model, recipe):
        return None
    make = Calibration.from_images if reads_images(model) else Calibration.from_texts
    return make(model, samples=samples, seed=seed)
