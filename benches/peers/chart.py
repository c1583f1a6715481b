"""A bar chart of what `benches/compare` measured, as SVG: how long each program takes, relative to amdanet.

    python chart.py RESULTS.json > RESULTS.svg
"""
import json
import math
import sys
from html import escape

WIDTH, LEFT, RIGHT, TOP = 860, 150, 690, 76
BAR, GAP, GROUP = 18, 7, 44
STYLE = ("text { font: 13px sans-serif; fill: #222 } .title { font-size: 16px; font-weight: bold } .case { font-weight: bold } "
         ".end { text-anchor: end } .middle { text-anchor: middle } .note { fill: #666 } .grid { stroke: #ddd } "
         ".ours { fill: #0072b2 } .peer { fill: #a9b4bd } .spread { stroke: #222; stroke-width: 1.5 }")


def step(most: float) -> float:
    """Between the lines of the grid: 0.5, 1, 2, 5, 10, ..., so that there are ten at most."""
    decade = 10 ** math.floor(math.log10(most / 10))
    return max(0.5, next(n * decade for n in (1, 2, 5, 10) if n * decade * 10 >= most))


def bars(about: dict, cases: list[dict]) -> str:
    ratio = lambda case, seconds: seconds / case["programs"][0]["median"]
    most = max(ratio(c, r["median"]) for c in cases for p in c["programs"] if not p["why"] for r in p["rounds"])
    between = step(most)
    most = math.ceil(most / between) * between
    x = lambda value: LEFT + (RIGHT - LEFT) * value / most
    rows, y = [], TOP
    for case in cases:
        y += GROUP
        rows.append(f'<text x="{LEFT}" y="{y - 8}" class="case">{escape(case["title"])}</text>')
        for index, program in enumerate(case["programs"]):
            middle = y + BAR / 2
            rows.append(f'<text x="{LEFT - 8}" y="{middle + 4.5}" class="end">{escape(program["name"])}</text>')
            if program["why"]:
                rows.append(f'<text x="{LEFT + 6}" y="{middle + 4.5}" class="note">does not count</text>')
            else:
                value, rounds = ratio(case, program["median"]), [ratio(case, r["median"]) for r in program["rounds"]]
                kind = "peer" if index else "ours"
                rows.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{x(value) - LEFT:.1f}" height="{BAR}" rx="2"/>')
                rows.append(f'<path class="spread" d="M{x(min(rounds)):.1f} {middle}H{x(max(rounds)):.1f}"/>')
                text = f'{1e3 * program["median"]:.4g} ms' + (f", {value:.2f} ×" if index else "")
                rows.append(f'<text x="{x(max(rounds)) + 8:.1f}" y="{middle + 4.5}">{text}</text>')
            y += BAR + GAP
    bottom = y + 6
    grid = []
    for number in range(round(most / between) + 1):
        value = number * between
        grid.append(f'<path class="grid" d="M{x(value):.1f} {TOP}V{bottom}"/>')
        grid.append(f'<text x="{x(value):.1f}" y="{bottom + 18}" class="middle">{value:g}</text>')
    where = about["gpu"] or about["processor"]
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 58}">', f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{bottom + 58}" rx="8" fill="#fff"/>',
        '<text x="20" y="30" class="title">Time relative to amdanet; shorter is faster</text>',
        f'<text x="20" y="52" class="note">{escape(where)}, {about["threads"]} threads; median of {about["rounds"]} rounds, '
        "lines from the fastest to the slowest</text>",
    ]
    axis = f'<text x="{(LEFT + RIGHT) / 2}" y="{bottom + 42}" class="middle">time of amdanet = 1</text>'
    return "\n".join(head + grid + rows + [axis, "</svg>"]) + "\n"


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        results = json.load(file)
    sys.stdout.write(bars(results, results["cases"]))
