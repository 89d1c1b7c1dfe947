"""Runs jobs in tosa-tools' reference model, inside that package's own environment.

Started as a script by ``workbench.integer.judges.tosa``: ``python -I tosa_worker.py FOLDER``. It imports numpy and what
tosa-tools brings, and nothing of the workbench. FOLDER holds ``jobs.json`` and the arrays it names; every job's output is
written there as ``NUMBER.npy``, a failure as ``NUMBER.txt``.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    """Run every job of a folder."""
    import tosa.DType  # pyright: ignore[reportMissingImports]
    import tosa.Op  # pyright: ignore[reportMissingImports]
    import tosa_reference_model  # pyright: ignore[reportMissingImports]
    from serializer import tosa_serializer  # pyright: ignore[reportMissingImports]

    kinds, operators = tosa.DType.DType, tosa.Op.Op

    def run(job: dict[str, Any]) -> np.ndarray:
        graph = tosa_serializer.TosaSerializer(str(folder), tosa_serializer.ConstMode.EMBED)
        tensors: dict[str, Any] = {}
        fed = []
        for name, tensor in job["tensors"].items():
            values = np.load(folder / tensor["file"])
            kind = getattr(kinds, tensor["type"])
            if tensor["constant"]:
                tensors[name] = graph.addConst(list(values.shape), kind, values)
            else:
                tensors[name] = graph.addPlaceholder(list(values.shape), kind, None)
                fed.append(values)
        for step in job["steps"]:
            attribute = tosa_serializer.TosaSerializerAttribute()
            arguments = [getattr(kinds, each[1:]) if str(each).startswith("@") else each for each in step["attribute"]]
            getattr(attribute, step["kind"])(*arguments)
            add = graph.addOutput if step["last"] else graph.addIntermediate
            output = add(step["shape"], getattr(kinds, step["type"]))
            tensors[step["output"]] = output
            names = [tensors[each].name for each in step["inputs"]]
            graph.addOperator(getattr(operators, step["operator"]), names, [output.name], attribute)
        outputs, status = tosa_reference_model.run(bytes(graph.serialize()), fed)
        if status != tosa_reference_model.GraphStatus.TOSA_VALID:
            message = f"the reference model says {status}"
            raise RuntimeError(message)
        last = job["steps"][-1]
        return np.frombuffer(np.ascontiguousarray(outputs[0]).tobytes(), dtype=last["numpy"]).reshape(last["shape"])

    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    for number, job in enumerate(jobs):
        try:
            np.save(folder / f"{number}.npy", run(job))
        except Exception as error:
            (folder / f"{number}.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
    (folder / "version.txt").write_text(version("tosa-tools"), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
