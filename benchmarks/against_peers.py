"""The workbench's methods against the packages that people use, on the same tensors and the same calibration, in one run.

    python -m venv benchmarks/.peers
    benchmarks/.peers/bin/pip install torch==2.13.0 hqq auto-round gptqmodel llmcompressor bitsandbytes gguf torchao
    python benchmarks/against_peers.py                     # or WORKBENCH_PEERS_PYTHON=/path/to/python
    python benchmarks/against_peers.py --install           # makes the environment first
    python benchmarks/against_peers.py --quick             # few layers, few steps, little text
    python benchmarks/against_peers.py --only hqq gguf     # some peers; --again measures finished ones anew

Peers live in an environment of their own and run in a process of their own (``peers_worker.py``), which gets tensors and
hands dequantized weights back. Each contest pairs a peer with our method of the same name at the same bits, group and
symmetry. One code judges both sides: the mean squared error of layers' outputs on inputs from held-out text (over the
energy of the outputs, mean of the layers; calibration never saw these inputs), and held-out perplexity of tiny-gemma3 with
the weights put into all linear layers but the tied head. Ratios are ours over the peer's, below 1 is better for us; that of
the layer error is the geometric mean over layers. Seconds are those of quantizing, without loading; data-free methods
take the best of three rounds after a warm-up on both sides. Whole-model methods have their layers taken from that run.
A peer that is not installed or cannot run here is named with its error.

What "same settings" leaves different: our scales are float32 and the peers' mostly float16 (0.125 bits at groups of 128);
symmetric grids are the full range on our side (codes -8 to 7). Our seconds include measuring each layer's error and that of
its rounding to nearest, which peers do not do (not so where single layers are rounded to nearest).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
from methods_cells import RESULTS, Cells, markdown, number  # noqa: E402
from methods_models import Gemma, MiniLM, layer_rows, with_weights  # noqa: E402

#: What ``--install`` installs.
REQUIREMENTS = ("hqq", "auto-round", "gptqmodel", "llmcompressor", "bitsandbytes", "gguf", "torchao")

#: Layers of the layer contests.
LAYERS = {
    "gemma": ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj", "model.layers.5.mlp.gate_proj"),
    "minilm": (
        "encoder.layer.0.attention.self.query",
        "encoder.layer.2.intermediate.dense",
        "encoder.layer.5.output.dense",
    ),
}


@dataclass(frozen=True)
class Contest:
    """A peer, and our method of the same name with the same settings."""

    peer: str
    title: str
    bits: int
    group: int
    """Weights of a row that share a scale; -1 for whole rows."""
    symmetric: bool
    ours: str
    """Our method's text form; ``{steps}`` stands for the optimiser's steps."""
    method: str = ""
    grid: str = ""
    scopes: tuple[str, ...] = ("layers", "model")
    data_free: bool = False

    @property
    def key(self) -> str:
        """What the contest is stored under."""
        return f"{self.title} W{self.bits} {self.granularity}{'' if self.symmetric else ' asymmetric'}"

    @property
    def granularity(self) -> str:
        """Ours, as text."""
        return f"group:{self.group}" if self.group > 0 else "channel"

    @property
    def our_grid(self) -> str:
        """Ours, as text."""
        return self.grid or f"uniform:bits={self.bits},range={'full' if self.symmetric else 'asymmetric'}"


CONTESTS = (
    Contest("hqq", "hqq", 4, 128, False, "hqq", data_free=True),
    Contest("hqq", "hqq", 3, 128, False, "hqq", data_free=True),
    Contest("bitsandbytes", "bitsandbytes NF4", 4, 64, True, "rtn", grid="nf4", data_free=True),
    Contest("gguf", "gguf Q4_0", 4, 32, True, "rtn", data_free=True),
    Contest("torchao", "torchao intx RTN", 4, 128, True, "rtn", data_free=True),
    Contest("torchao", "torchao intx RTN", 4, 128, False, "rtn", data_free=True),
    Contest("torchao", "torchao intx HQQ (scale only)", 4, 128, True, "hqq", "hqq", data_free=True),
    Contest("torchao-int4", "torchao int4 (default)", 4, 128, False, "rtn", data_free=True),
    Contest("torchao-awq", "torchao AWQ", 4, 128, True, "awq", scopes=("layers",)),
    Contest("gptqmodel", "GPTQModel GPTQ", 4, 128, True, "gptq"),
    Contest("gptqmodel", "GPTQModel GPTQ", 4, -1, True, "gptq"),
    Contest("llmcompressor-gptq", "LLM Compressor GPTQ", 4, 128, True, "gptq", scopes=("model",)),
    Contest("llmcompressor-gptq", "LLM Compressor GPTQ", 3, 128, True, "gptq", scopes=("model",)),
    Contest("llmcompressor-awq", "LLM Compressor AWQ", 4, 128, True, "awq", scopes=("model",)),
    Contest("auto-round", "AutoRound", 4, 128, True, "autoround:steps={steps}", scopes=("model",)),
    Contest("auto-round", "AutoRound", 3, 128, True, "autoround:steps={steps}", scopes=("model",)),
)


@dataclass(eq=False)
class Ground:
    """Everything that both sides are given, and the one judge."""

    samples: int = 64
    length: int = 128
    rows: int = 1024
    part: int = 8
    steps: int = 200
    seed: int = 0
    threads: int = 2
    repeats: int = 3
    layers: int = 3
    """Layers of each model in the layer contests."""
    limit: int | None = None
    python: str = ""
    timeout: float = 3600.0

    @cached_property
    def gemma(self) -> Gemma:
        """The language model."""
        return Gemma(samples=self.samples, length=self.length, part=self.part, limit=self.limit)

    @cached_property
    def calibration(self) -> Any:
        """Samples for whole models, all of one length."""
        return self.gemma.calibration(self.seed)

    @cached_property
    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Weight, calibration inputs and held-out inputs of each layer of the layer contests."""
        found: dict[str, dict[str, np.ndarray]] = {}
        minilm = MiniLM(samples=self.samples, length=self.length)
        for subject, known in ((self.gemma, LAYERS["gemma"]), (minilm, LAYERS["minilm"])):
            module, names = subject.float_module(), list(known[: self.layers])
            seen = layer_rows(module, names, subject.calibration(self.seed).batches, self.rows)
            fresh = layer_rows(module, names, self._held_out(subject), self.rows)
            for name in names:
                weight = np.ascontiguousarray(module.get_submodule(name).weight.detach().numpy())
                found[f"{subject.name} {name}"] = {"weight": weight, "inputs": seen[name], "fresh": fresh[name]}
        return found

    def _held_out(self, subject: Any) -> Any:
        """Batches of text that no calibration sees."""
        from workbench.calibration import Calibration
        from workbench.resources import held_out_text_path

        texts = held_out_text_path().read_text(encoding="utf-8").split("\f\n")
        return Calibration.from_texts(subject.source, texts, samples=16, length=self.length, seed=1).batches

    @cached_property
    def whole(self) -> dict[str, dict[str, np.ndarray]]:
        """The layers of the language model among them, by parameter name."""
        return {
            f"{name.split(' ', 1)[1]}.weight": each
            for name, each in self.arrays.items()
            if name.startswith(self.gemma.name)
        }

    def errors(self, weights: Mapping[str, np.ndarray], given: Mapping[str, dict[str, np.ndarray]]) -> dict[str, float]:
        """Return each layer's squared output error over its output energy, on held-out inputs, float64."""
        found = {}
        for name, each in given.items():
            if name in weights:
                inputs, weight = each["fresh"].astype(np.float64), each["weight"].astype(np.float64)
                lost = inputs @ (weight - weights[name]).T
                found[name] = float((lost**2).sum() / ((inputs @ weight.T) ** 2).sum())
        return found

    def peer(self, contest: Contest, scope: str) -> dict[str, Any]:
        """Run a peer in its process; return its weights, seconds, versions, notes and error."""
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            place = Path(folder)
            if scope == "layers":
                arrays = {}
                for position, each in enumerate(self.arrays.values()):
                    arrays |= {f"{position}.weight": each["weight"], f"{position}.inputs": each["inputs"]}
                np.savez(place / "layers.npz", **arrays)  # type: ignore[arg-type]
            rows = [batch.options["input_ids"].numpy() for batch in self.calibration.batches]
            np.save(place / "tokens.npy", np.concatenate(rows))
            from workbench import demo_path

            job = {
                **asdict(contest),
                "scope": scope,
                "model": str(demo_path("tiny-gemma3")),
                "steps": self.steps,
                "seed": self.seed,
                "threads": self.threads,
                "repeats": self.repeats,
            }
            (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
            command = [self.python, str(HERE / "peers_worker.py"), folder]
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": ""}
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=self.timeout, env=environment, check=False
                )
            except subprocess.TimeoutExpired:
                return {"error": f"not done after {self.timeout:.0f} s", "weights": {}}
            if not (place / "result.json").exists():
                last = (done.stderr.strip().splitlines() or ["no word"])[-1]
                return {"error": f"the process ended with {done.returncode}: {last[:300]}", "weights": {}}
            result = json.loads((place / "result.json").read_text(encoding="utf-8"))
            result["weights"] = {}
            if not result["error"]:
                with np.load(place / "weights.npz") as stored:
                    result["weights"] = {name: stored[name] for name in stored.files}
                if scope == "layers":
                    names = list(self.arrays)
                    result["weights"] = {names[int(key)]: value for key, value in result["weights"].items()}
        return result

    def ours(self, contest: Contest, scope: str) -> dict[str, Any]:
        """Run our method of the same name; the same answer as ``peer`` gives, with bits per weight."""
        method = contest.ours.format(steps=self.steps)
        if scope == "layers":
            return self._our_layers(contest, method)
        from workbench.calibration import Calibration
        from workbench.methods.runner import quantize_model
        from workbench.quantization.recipe import Entry, Recipe

        entry = Entry("*", weight=contest.our_grid, granularity=contest.granularity, method=method, activation="float")
        calibration = Calibration.from_loader(self.calibration.batches)
        seconds = []
        quantized: Any = None
        for _ in range(self.repeats if contest.data_free else 1):
            started = time.perf_counter()
            given = None if contest.data_free else calibration
            quantized = quantize_model(self.gemma.source, Recipe((entry,)), given, seed=self.seed)
            seconds.append(time.perf_counter() - started)
        module = quantized.module()
        state = {name: value.detach().float().numpy() for name, value in module.named_parameters()}
        return {"weights": state, "seconds": min(seconds), "bits": quantized.bits_per_weight}

    def _our_layers(self, contest: Contest, method: str) -> dict[str, Any]:
        from workbench.methods.layer import quantize_layer
        from workbench.quantization import quantize

        def each(weight: np.ndarray, inputs: np.ndarray) -> Any:
            if method == "rtn":  # the method's own function, which measures no errors, as the peers' do not
                return quantize(weight, contest.our_grid, contest.granularity)
            # Inputs are given as the peers get them: to data-free methods none, as rows to the others.
            known = None if contest.data_free else inputs
            result = quantize_layer(
                weight, method, contest.our_grid, granularity=contest.granularity, inputs=known, seed=self.seed
            )
            return result.quantized

        draw = np.random.default_rng(0)
        each(*(draw.standard_normal(shape, dtype=np.float32) for shape in ((128, 256), (512, 256))))  # compiles
        weights, seconds, bits = {}, [], 0.0
        for _ in range(self.repeats):
            started = time.perf_counter()
            found = {name: each(given["weight"], given["inputs"]) for name, given in self.arrays.items()}
            weights = {name: quantized.dequantize() for name, quantized in found.items()}
            seconds.append(time.perf_counter() - started)
            bits = float(np.mean([quantized.bits_per_weight for quantized in found.values()]))
        return {"weights": weights, "seconds": min(seconds), "bits": bits}

    def judge(self, contest: Contest, scope: str, side: dict[str, Any]) -> dict[str, Any]:
        """Return the figures of one side, without its weights."""
        weights = side.pop("weights")
        if side.get("error"):
            return side
        given = self.arrays if scope == "layers" else self.whole
        # AWQ scales inputs and weights against each other: its layers alone cannot be compared with the float ones.
        side["errors"] = {} if contest.ours.startswith("awq") and scope == "model" else self.errors(weights, given)
        if scope == "model":
            side["perplexity"] = self.gemma.judge(with_weights(self.gemma, weights))
        return side

    def contest(self, contest: Contest, scope: str, side: str) -> dict[str, Any]:
        """Run and judge one side of one contest."""
        found = self.peer(contest, scope) if side == "peer" else self.ours(contest, scope)
        return self.judge(contest, scope, found)


def rows_of(cells: Mapping[str, Mapping[str, Any]], scope: str) -> list[list[str]]:
    """Return the table's rows of one scope: peer's figures, ours, ratios."""
    rows = []
    for contest in CONTESTS:
        peer, ours = (cells.get(f"{contest.key} | {scope} | {side}") for side in ("peer", "ours"))
        if peer is None or ours is None:
            continue
        row = [f"{contest.key} | {contest.ours.partition(':')[0]}"]
        row += [number(_mean(side), 4) for side in (peer, ours)] + [number(_layer_ratio(peer, ours))]
        if scope == "model":
            row += [number(side.get("perplexity", {}).get("value"), 5) for side in (peer, ours)]
            row.append(number(_ratio(ours.get("perplexity", {}).get("value"), peer.get("perplexity", {}).get("value"))))
        row += [number(_seconds(side), 3) for side in (peer, ours)]
        row.append(number(_ratio(_seconds(ours), _seconds(peer)), 3))
        rows.append(row)
    return rows


def _seconds(side: Mapping[str, Any]) -> float | None:
    return None if side.get("error") else side.get("seconds")


def _mean(side: Mapping[str, Any]) -> float | None:
    errors = list(side.get("errors", {}).values())
    return float(np.mean(errors)) if errors else None


def _ratio(ours: float | None, peer: float | None) -> float | None:
    return ours / peer if ours is not None and peer else None


def _layer_ratio(peer: Mapping[str, Any], ours: Mapping[str, Any]) -> float | None:
    theirs, own = peer.get("errors", {}), ours.get("errors", {})
    both = [own[name] / theirs[name] for name in theirs if name in own and theirs[name] > 0.0]
    return float(np.exp(np.mean(np.log(both)))) if both and min(both) > 0.0 else None


def report(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Return both tables, and who could not run, as markdown."""
    head = ["peer | ours", "layer error, peer", "ours", "ratio"]
    seconds = ["seconds, peer", "ours", "ratio"]
    parts = []
    for scope, title, columns in (
        ("layers", "Layers of tiny-gemma3 and all-MiniLM-L6-v2", [*head, *seconds]),
        ("model", "tiny-gemma3, all linear layers", [*head, "perplexity, peer", "ours", "ratio", *seconds]),
    ):
        columns[0:1] = ["peer", "ours"]
        rows = [[*row[0].split(" | "), *row[1:]] for row in rows_of(cells, scope)]
        parts.append(f"### {title}\n\n{markdown(columns, rows)}")
    failed = [f"- {key}: {cell['error']}" for key, cell in cells.items() if cell.get("error")]
    notes = [f"- {key}: {note}" for key, cell in cells.items() for note in cell.get("notes", [])]
    versions = next((cell["versions"] for cell in cells.values() if cell.get("versions")), {})
    parts.append("Could not run:\n\n" + ("\n".join(failed) or "- nobody") + "\n")
    parts.append("\n".join(notes))
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return "\n\n".join(part for part in parts if part)


def peers_python(install: bool) -> str:
    """Return the Python of the peers' environment.

    Raises:
        SystemExit: there is none; one sentence says how to make it.
    """
    given = os.environ.get("WORKBENCH_PEERS_PYTHON")
    folder = HERE / ".peers"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if install and given is None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=True
        ).stdout.strip()
        pip = [str(python), "-m", "pip", "install"]
        subprocess.run([*pip, f"torch=={torch}"], check=True)
        for each in REQUIREMENTS:  # one at a time: one that fails is named by its contest and hinders nobody
            subprocess.run([*pip, each, f"torch=={torch}"], check=False)
    found = given or str(python)
    if not Path(found).exists():
        message = (
            f"the peers need an environment of their own: run with --install, or set WORKBENCH_PEERS_PYTHON ({found})"
        )
        raise SystemExit(message)
    return found


def _word(cell: Mapping[str, Any]) -> str:
    return cell.get("error") or f"{cell['seconds']:.2f} s"


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, print the tables, store the cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one layer of each model, few steps, little text")
    parser.add_argument(
        "--only", nargs="*", metavar="PEER", help=f"of {', '.join(dict.fromkeys(c.peer for c in CONTESTS))}"
    )
    parser.add_argument("--scope", choices=("layers", "model"), help="only layers, or only whole models")
    parser.add_argument("--install", action="store_true", help="make benchmarks/.peers first")
    parser.add_argument("--again", action="store_true", help="measure finished contests anew")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--steps", type=int, default=200, help="of AutoRound, on both sides")
    parser.add_argument("--output", type=Path, help="JSON of the cells")
    asked = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(asked.threads)
    sizes: dict[str, Any] = {"steps": asked.steps, "threads": asked.threads}
    if asked.quick:
        sizes |= {"samples": 8, "length": 64, "rows": 256, "steps": min(asked.steps, 5), "repeats": 1, "layers": 1}
        sizes |= {"limit": 2000}
    ground = Ground(**sizes, python=peers_python(asked.install))
    settings = {name: value for name, value in asdict(ground).items() if name not in {"python", "timeout"}}
    output = asked.output or RESULTS / f"against_peers{'_quick' if asked.quick else ''}.json"
    cells = Cells(output, settings)
    for contest in CONTESTS:
        if asked.only and contest.peer not in asked.only:
            continue
        for scope in contest.scopes:
            if asked.scope and scope != asked.scope:
                continue
            for side in ("peer", "ours"):
                key = f"{contest.key} | {scope} | {side}"
                if asked.again:
                    cells.found.pop(key, None)
                cell = cells.get(key, lambda c=contest, s=scope, w=side: ground.contest(c, s, w), retry=True)
                print(f"{key}: {_word(cell)}", flush=True)
    print(f"\n{report(cells.found)}\n\nstored in {output}")


if __name__ == "__main__":
    main()
