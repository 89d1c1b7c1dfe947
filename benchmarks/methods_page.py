"""Makes docs/methods.md, and the tables of the README's part on methods, from what the benchmarks stored.

    python benchmarks/methods_page.py            # after methods.py, status_quo.py, against_peers.py, methods_speed.py
    python benchmarks/methods_page.py --check    # says what is out of date, writes nothing

Nothing is measured here and no figure is typed: a run that is missing leaves its part out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import against_peers
import methods
import methods_speed
import status_quo
from methods_cells import RESULTS, markdown

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "methods.md"
README = ROOT / "README.md"
#: Between these lines the README's tables are made anew.
MARKS = ("<!-- made by benchmarks/methods_page.py -->", "<!-- end of what benchmarks/methods_page.py makes -->")


def stored(name: str) -> dict[str, Any]:
    """Return what a benchmark stored; empty where it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def bench_of(found: Mapping[str, Any]) -> methods.Bench:
    """Return the sizes that stored cells were measured with."""
    return methods.Bench(**found["settings"])


def page() -> str:
    """Return docs/methods.md."""
    parts = [
        "# Methods, measured",
        "Made by `python benchmarks/methods_page.py` from `benchmarks/results/`; each part names the script that measured it "
        "and tells there what was done. Figures are means over the seeds that ran, ± the standard deviation between them.",
    ]
    whole = stored("methods")
    if whole:
        bench = bench_of(whole)
        parts.append("## How good, by which method: `python benchmarks/methods.py`")
        parts.append(_sizes(whole) + ", the same calibration samples for everybody.")
        parts += [methods.table(bench, word, whole["cells"]) for word in bench.subjects]
        parts += ["### Expected orders", methods.orders(whole["cells"])]
    study = stored("status_quo")
    if study:
        parts.append("## Which choices matter: `python benchmarks/status_quo.py`")
        parts.append(_sizes(study) + ".")
        report = status_quo.report(status_quo.Study(bench_of(study)), study["cells"], list(status_quo.BLOCKS))
        parts.append("\n".join(f"#{line}" if line.startswith("## ") else line for line in report.splitlines()))
    peers = stored("against_peers")
    if peers:
        parts.append("## Against the packages that people use: `python benchmarks/against_peers.py`")
        parts.append("Ratios are ours over the peer's: below 1 is better for us. " + _machine(peers) + ".")
        parts.append(against_peers.report(peers["cells"]))
    speed = stored("methods_speed")
    if speed:
        parts.append("## Speed: `python benchmarks/methods_speed.py`")
        parts.append("Ratios are the other side's time over ours. " + _machine(speed) + ".")
        parts.append(methods_speed.report(speed))
    return "\n\n".join(parts) + "\n"


def summary() -> str:
    """Return the README's tables: each subject's own figure, peers, choices and speed in short."""
    parts = []
    whole = stored("methods")
    if whole:
        bench = bench_of(whole)
        for word in bench.subjects:
            head, _, rest = methods.main_table(bench, word, whole["cells"]).removeprefix("### ").partition("\n\n")
            parts.append(f"**{head}**\n\n{rest}")
    parts += [each for each in (_peers_in_short(), _choices_in_short(), _speed_in_short()) if each]
    return "\n\n".join(parts)


def _peers_in_short() -> str:
    """Return the ratios to each peer's own method on the whole language model."""
    peers = stored("against_peers")
    if not peers:
        return ""
    rows = [
        [*row[0].split(" | "), row[3], row[6], row[9]]
        for row in against_peers.rows_of(peers["cells"], "model")
        if row[9] != "—"
    ]
    head = ["peer", "ours", "layer error, ratio", "perplexity, ratio", "seconds, ratio"]
    title = (
        "**`python benchmarks/against_peers.py`**: tiny-gemma3's linear layers by other packages and by the method of the same "
        "name here, same tensors, samples, bits and groups, one thread; ours over the peer's, below 1 is better for us"
    )
    return f"{title}\n\n{markdown(head, rows)}"


def _choices_in_short() -> str:
    """Return, for each axis of a learned method, how much it is worth beside the noise of seeds."""
    study = stored("status_quo")
    if not study:
        return ""
    rows = []
    for axis in status_quo.AXES:
        row = [axis]
        for word in status_quo.BLOCKS:
            found = status_quo.weigh(study["cells"], word, axis)
            row += ["—"] * 3 if found is None else [f"{found.best}", f"{found.span:.2f}", f"{found.noise:.2f}"]
        rows.append(row)
    head = ["axis", *(each for _ in status_quo.BLOCKS for each in ("best choice", "worst / best", "two seeds"))]
    seeds = len({key.rpartition(" | ")[2] for key in study["cells"]})
    names = " and ".join(bench_of(study).subject(word).name for word in status_quo.BLOCKS)
    title = (
        f"**`python benchmarks/status_quo.py`**: one choice of a learned method at a time, the first two blocks of {names} (left, "
        f"right) at 3 bits, {seeds} seeds; factors in the error that the blocks hand on"
    )
    return f"{title}\n\n{markdown(head, rows)}"


def _speed_in_short() -> str:
    """Return the ratios to the plain code that one would write."""
    speed = stored("methods_speed")
    if not speed:
        return ""
    search = speed["search"]
    rows = [
        [
            f"exponent of {search['layers']} layers of MiniLM from sketches, against Nelder-Mead over the tensors",
            f"{search['ratio_without_sketching']:.0f}×, {search['ratio_with_sketching']:.0f}× with making the sketches",
        ]
    ]
    for word, title in (("adaround", "AdaRound"), ("nupes", "NUPES")):
        steps = [each for each in speed["steps"] if each["method"] == word]
        rows.append([f"a step of {title}, against the plain PyTorch loop on all rows", _range(steps, "ratio")])
        if any(each["ratio_compiled"] for each in steps):
            rows.append([f"the same against that loop under torch.compile ({title})", _range(steps, "ratio_compiled")])
    rows.append(["GPTQ of a layer, against the plain PyTorch loop", _range(speed["gptq"], "ratio")])
    return markdown(["`python benchmarks/methods_speed.py`", "faster by"], rows)


def _range(each: list[dict[str, Any]], name: str) -> str:
    known = sorted(one[name] for one in each if one[name])
    return f"{known[0]:.1f}–{known[-1]:.1f}×"


def with_summary(readme: str) -> str:
    """Return the README with its tables made anew.

    Raises:
        SystemExit: the README has lost the lines that the tables stand between.
    """
    before, first, rest = readme.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not (first and last):
        raise SystemExit(f"README.md lacks the lines {MARKS[0]} and {MARKS[1]}")
    return f"{before}{first}\n\n{summary()}\n\n{last}{after}"


def _sizes(found: Mapping[str, Any]) -> str:
    known = found["settings"]
    sizes = f"{known['steps']} steps for whoever learns, {known['samples']} samples of {known['length']} tokens"
    return f"{_machine(found)}; {sizes}"


def _machine(found: Mapping[str, Any]) -> str:
    known = found["machine"]
    return f"torch {known['torch']}, transformers {known['transformers']}, {known['cores']} cores ({known['date']})"


def main(arguments: list[str] | None = None) -> None:
    """Write both files, or say which are out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is out of date")
    asked = parser.parse_args(arguments)
    made = {PAGE: page(), README: with_summary(README.read_text(encoding="utf-8"))}
    late = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in late:
        if not asked.check:
            path.write_text(made[path], encoding="utf-8")
        print(f"{path.relative_to(ROOT)} {'is out of date' if asked.check else 'written'}")
    if asked.check and late:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
