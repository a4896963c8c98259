"""Results as JSON, as a table and as pictures."""

import json
from pathlib import Path

from .measure import Work, percentile


def shown(value: float, unit: str) -> str:
    """A value as people read it: seconds as milliseconds when they are few."""
    if unit == "s" and value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} {unit}"


def table(works: list[Work]) -> str:
    """Markdown: one row for each subject, then the targets."""
    lines = []
    for work in works:
        lines += [f"\n**{work.name}**: {work.what}\n", "| | median | p99 | samples |", "|---|---|---|---|"]
        for subject, samples in work.samples.items():
            last = shown(percentile(samples, 0.99), work.unit)
            lines.append(f"| {subject} | {shown(work.median(subject), work.unit)} | {last} | {len(samples)} |")
        for target, value, met in work.judged():
            lines.append(f"\n- {target}: {value:.3g}, {'met' if met else '**not met**'}")
    return "\n".join(lines)


def write(directory: Path, description: dict, works: list[Work]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    measured = [
        {
            "name": work.name,
            "what": work.what,
            "unit": work.unit,
            "samples": work.samples,
            "targets": [{"target": target, "value": value, "met": met} for target, value, met in work.judged()],
        }
        for work in works
    ]
    (directory / "results.json").write_text(json.dumps({"machine": description, "works": measured}, indent=1) + "\n")
    head = ["# Benchmarks", "", "Made by `scripts/bench`, which says how. All in one run, subjects taking turns.", ""]
    head += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in description.items())]
    pictures = [f"\n![{work.name}]({file_name(work)})" for work in works if draw(directory, work)]
    (directory / "results.md").write_text("\n".join(head) + "\n" + table(works) + "\n" + "\n".join(pictures) + "\n")


def file_name(work: Work) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in work.name.lower()).strip("-") + ".png"


def draw(directory: Path, work: Work) -> bool:
    """A bar for each subject, on a logarithmic scale where they are far apart; nothing where there is but one."""
    if len(work.samples) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    subjects = list(work.samples)
    medians = [work.median(subject) for subject in subjects]
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.45 * len(subjects)))
    colours = ["tab:orange" if subject.startswith(("podspawn", "project")) else "tab:gray" for subject in subjects]
    bars = axes.barh(subjects[::-1], medians[::-1], color=colours[::-1])
    axes.bar_label(bars, [shown(value, work.unit) for value in medians[::-1]], padding=3)
    if min(medians) > 0 and max(medians) / min(medians) > 20:
        axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_title(f"{work.name} [{work.unit}], median", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(directory / file_name(work), dpi=110)
    pyplot.close(figure)
    return True
