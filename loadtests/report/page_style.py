"""The page's style sheet and its one script: no file, font or address from outside."""

from loadtests.report.figures.style import COLOURS

# Lighter Okabe-Ito on a dark ground: at least 4.5 to 1 against it
DARK_COLOURS = ("#4aa3e0", "#f5874a", "#33c79a", "#e09cc5", "#a4d8f7", "#f0b946", "#f0f0f2")


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--v{i}: {colour};" for i, colour in enumerate(colours))


_LIGHT = f"""
  --page: #ffffff; --panel: #f6f6f8; --ink: #1b1b1f; --muted: #5f5f69; --grid: #dcdce2;
  --good: #0b6e4f; --bad: #b3182d; --warn: #8a5a00; --same: #5f5f69; --link: #0b5cad;
  --good-bg: #e2f4ec; --bad-bg: #fce8ea; --warn-bg: #fdf1d9; {_variables(COLOURS)}
"""
_DARK = f"""
  --page: #131316; --panel: #1d1d22; --ink: #ececf0; --muted: #a6a6b2; --grid: #35353d;
  --good: #5fd3a5; --bad: #ff8c98; --warn: #f2c261; --same: #a6a6b2; --link: #7fbcf5;
  --good-bg: #12352a; --bad-bg: #45191f; --warn-bg: #3c2f12; {_variables(DARK_COLOURS)}
"""

CSS = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
@media print {{
  :root {{ color-scheme: light; {_LIGHT} }}
  nav {{ display: none; }}
  section, figure, tr {{ break-inside: avoid; }}
  .scroll {{ overflow: visible; }}
  body {{ font-size: 9pt; }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; max-width: 76rem; padding: 1.5rem clamp(0.8rem, 3vw, 2rem) 4rem;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; overflow-wrap: anywhere;
}}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0 0 0.2rem; }}
h2 {{ font-size: 1.25rem; margin: 2.6rem 0 0.6rem; padding-top: 0.6rem;
  border-top: 1px solid var(--grid); }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 0.4rem; }}
a {{ color: var(--link); }}
p, ul {{ margin: 0.4rem 0; }}
.muted, figcaption, caption {{ color: var(--muted); }}
nav {{ margin: 0.9rem 0 0; font-size: 0.9rem; }}
nav a {{ display: inline-block; margin-right: 1rem; }}
.verdict {{
  border-left: 6px solid var(--tone); background: var(--panel); border-radius: 0 6px 6px 0;
  margin: 1rem 0; padding: 0.8rem 1.1rem;
}}
.verdict p.answer {{ color: var(--tone); font-size: 1.3rem; font-weight: 700; margin: 0; }}
.verdict ul {{ padding-left: 1.2rem; }}
.verdict ul.answers {{ font-size: 1.05rem; }}
.pass {{ --tone: var(--good); }} .fail {{ --tone: var(--bad); }}
.inconclusive, .invalid {{ --tone: var(--warn); }}
.tone {{ font-weight: 700; white-space: nowrap; }}
span.better, span.pass {{ color: var(--good); }} span.worse, span.fail {{ color: var(--bad); }}
span.same {{ color: var(--same); }} span.inconclusive, span.invalid {{ color: var(--warn); }}
.scroll {{ overflow-x: auto; margin: 0.6rem 0 1rem; }}
.footnote {{ font-size: 0.86rem; margin: -0.7rem 0 1.4rem; }}
table {{ border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }}
caption {{ caption-side: top; text-align: left; padding: 0.3rem 0; }}
th, td {{ padding: 0.3rem 0.48rem; text-align: right; border-bottom: 1px solid var(--grid);
  overflow-wrap: normal; white-space: nowrap; }}
thead th {{ vertical-align: bottom; border-bottom: 2px solid var(--muted); white-space: normal; }}
th.name, th.long, td.long {{ text-align: left; }}
tbody th {{ font-weight: 600; white-space: normal; min-width: 5.5rem; }}
td.long {{ white-space: normal; min-width: 13rem; max-width: 34rem; }}
tbody tr:hover {{ background: var(--panel); }}
td.better, td.pass {{ color: var(--good); background: var(--good-bg); }}
td.worse, td.fail {{ color: var(--bad); background: var(--bad-bg); }}
td.invalid {{ color: var(--warn); background: var(--warn-bg); }}
td.inconclusive {{ color: var(--warn); }}
td.same {{ color: var(--same); }}
th button {{ all: unset; cursor: pointer; }}
th button:hover, th button:focus-visible {{ text-decoration: underline; }}
th[aria-sort="ascending"] button::after {{ content: " ↑"; }}
th[aria-sort="descending"] button::after {{ content: " ↓"; }}
figure {{ margin: 0.6rem 0 1.6rem; }}
figcaption {{ font-size: 0.9rem; max-width: 60rem; }}
figure svg {{ display: block; width: 100%; min-width: 42rem; height: auto; }}
dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.15rem 1rem;
  font-size: 0.9rem; }}
dt {{ font-weight: 600; }} dd {{ margin: 0; }}
@media (max-width: 40rem) {{ dl {{ display: block; }} dd {{ margin-bottom: 0.4rem; }} }}
pre {{ overflow-x: auto; background: var(--panel); padding: 0.8rem; border-radius: 6px;
  font-size: 0.82rem; }}
details > summary {{ cursor: pointer; margin: 0.6rem 0; color: var(--link); }}
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => {
      const text = row.cells[column].textContent.trim();
      if (text.startsWith("\\u221e")) return Infinity;
      const number = parseFloat(text.replace(/,/g, ""));
      return Number.isNaN(number) ? (text === "-" ? -Infinity : text) : number;
    };
    const order = (a, b) => typeof a === "number" && typeof b === "number"
      ? (a === b ? 0 : a - b) : String(a).localeCompare(String(b), undefined, {numeric: true});
    const rows = Array.from(body.rows).sort((a, b) => order(key(a), key(b)));
    body.append(...(up ? rows : rows.reverse()));
  });
}
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
"""
"""Sorts a table by the column whose heading is pressed; without it the page loses nothing else."""
