"""Run the other examples, and put what they print and draw on one page.

    python examples/gallery.py                # all of them, to outputs/gallery.html
    python examples/gallery.py xor vae        # some

Each runs as its own command, one after another, since they share the processor. The page is written
anew after each, and keeps what earlier runs of the others have left. All take about half an hour on
two cores.
"""

import argparse
import ast
import html
import json
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "gallery")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>fnn: the gallery</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 1rem }}
img {{ max-width: 100%; display: block; margin: 1rem 0 }}
pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: 13px; line-height: 1.35 }}
h2 {{ margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem }}
nav a {{ margin-right: .8rem }}
.failed {{ color: #b00 }}
</style>
<h1>The gallery</h1>
<nav>{links}</nav>
{sections}
</html>
"""


def run(name, folder):
    """Run an example into a folder; what its page says is kept there, beside its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-15:] or [f"ended with code {done.returncode}"]
    result = {
        "printed": done.stdout.strip(),
        "error": last if done.returncode else [],
        "seconds": time.perf_counter() - start,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return result


def section(name, folder):
    """The example's first lines, its pictures, and what it printed."""
    result = json.loads((folder / "result.json").read_text())
    title, *parts = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())).split("\n\n")
    pictures = [path.name for path in sorted(folder.glob("*.png"))]
    blocks = [f'<h2 id="{name}">{html.escape(title)}</h2>']
    blocks += [element("pre" if part.startswith(" ") else "p", part) for part in parts]
    blocks += [f'<img src="{name}/{picture}" alt="{picture}">' for picture in pictures]
    blocks.append(element("pre", result["printed"]))
    if result["error"]:
        blocks.append(element("pre", "\n".join(result["error"]), "failed"))
    blocks.append(element("p", f"{result['seconds']:.0f} seconds"))
    return "\n".join(blocks)


def element(tag, text, style=""):
    return f'<{tag} class="{style}">{html.escape(text)}</{tag}>'


def write(out):
    """The page of all examples that have run."""
    ran = [name for name in NAMES if (out / name / "result.json").exists()]
    links = "".join(f'<a href="#{name}">{name}</a> ' for name in ran)
    sections = "\n".join(section(name, out / name) for name in ran)
    path = out / "gallery.html"
    path.write_text(PAGE.format(links=links, sections=sections))
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="which examples; all by default")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs"))
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"no example {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")

    failed = []
    for name in args.names or NAMES:
        print(f"{name:22}", end="", flush=True)
        result = run(name, args.out / name)
        failed += [name] * bool(result["error"])
        print(f"{result['seconds']:6.0f} s{'  failed' * bool(result['error'])}", flush=True)
        path = write(args.out)
    print(f"page: {path}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
